"""The tables that ``llmopt models`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.catalogue import CatalogueEntry
from registry.policy_version import Differences, PolicyVersion

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["catalogue_table", "diff_table", "prompts_table", "version_table", "versions_table"]


def versions_table(versions: Sequence[PolicyVersion]) -> Table:
    """One line a version."""
    table = _table(
        "policy versions" if versions else "no policy version is registered yet",
        ("decision point", "version", "aliases", "algorithm", "samples", "ledger", "registered"),
    )
    for one in versions:
        table.add_row(
            one.decision_point,
            one.label,
            ", ".join(one.aliases),
            one.algorithm,
            _text(one.samples),
            str(one.position),
            f"{one.created_at:%Y-%m-%d %H:%M:%S}",
            style="bold" if "champion" in one.aliases else None,
        )
    return table


def version_table(version: PolicyVersion) -> Table:
    """All that is known of one version."""
    table = _table(f"{version.decision_point} {version.label}", ("", ""))
    described = version.as_json()
    groups = {name: described.pop(name) for name in ("parameters", "metrics", "tags")}
    for name, value in described.items():
        shown = ", ".join(value) if isinstance(value, list) else _text(value)
        table.add_row(name.replace("_", " "), shown)
    for group, values in groups.items():
        table.add_section()
        for name, value in sorted(values.items()):
            table.add_row(f"{group}: {name}", _text(value))
    return table


def diff_table(found: Differences) -> Table:
    """Settings, then metrics, that differ."""
    table = _table(
        f"{found.before.decision_point}: what differs",
        ("", found.before.label, found.after.label),
    )
    _pairs(table, found.settings)
    table.add_section()
    _pairs(table, found.metrics)
    return table


def catalogue_table(entries: Mapping[str, CatalogueEntry]) -> Table:
    """One line a model."""
    table = _table(
        "list prices, USD per million tokens",
        ("model", "price of", "in", "out", "context", "tokens/s", "capabilities"),
    )
    for name, one in entries.items():
        capabilities = [*one.capabilities, *(["deprecated"] if one.deprecated else [])]
        table.add_row(
            name,
            f"{one.provider}/{one.model}" if one.provider else "not known",
            _text(one.price_in_usd),
            _text(one.price_out_usd),
            _text(one.context_tokens),
            _text(one.speed_tokens_s),
            ", ".join(capabilities),
        )
    return table


def prompts_table(prompts: Iterable[Mapping[str, Any]]) -> Table:
    """One line a prompt variant."""
    table = _table(
        "prompt variants",
        ("decision point", "variant", "version", "in MLflow", "characters", "arms that name it"),
    )
    for one in prompts:
        table.add_row(
            one["decision_point"],
            one["variant"],
            one["version"],
            _text(one["number"]),
            str(one["characters"]),
            ", ".join(one["models"]),
        )
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pairs(table: Table, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (before, after) in pairs.items():
        table.add_row(name, _text(before), _text(after))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
