"""The table that `llmopt evaluate` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.offpolicy import CHOSEN, LABELS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["evaluation_table", "support_line"]

_COLUMNS = {
    "reward": ("reward", 1.0, 4),
    "quality": ("quality", 1.0, 4),
    "cost_usd": ("USD per 1,000 requests", 1000.0, 3),
    "latency_s": ("seconds", 1.0, 2),
}


def evaluation_table(result: dict[str, Any]) -> Table:
    """Every estimator beside what was logged; intervals in brackets.

    Parameters
    ----------
    result
        As `infra.evaluations.run_evaluation` gives it.
    """
    from rich.table import Table

    table = Table(title=f"{result['policy']} on {result['source']}", title_justify="left")
    table.add_column("")
    known = [measure for measure in _COLUMNS if measure in result["logged"]]
    for measure in known:
        table.add_column(_COLUMNS[measure][0], justify="right")
    table.add_column("verdict")
    logged = [_cell(measure, result["logged"][measure]) for measure in known]
    table.add_row("logged traffic", *logged, "")
    for name, label in LABELS.items():
        found = result["estimators"][name]
        cells = [_cell(measure, found[measure]) for measure in known]
        style = "bold" if name == CHOSEN else None
        table.add_row(label, *cells, found["verdict"]["answer"], style=style)
    return table


def support_line(result: dict[str, Any]) -> str:
    """How far the log supports the question."""
    support = result["support"]
    return (
        f"{result['evaluated']} of {result['decisions']} decisions, effective sample size "
        f"{support['effective_sample_size']:.0f} ({support['needed']:.0f} needed), mean weight "
        f"{support['mean_weight']['value']:.3f}, largest {support['largest_weight']:.1f}, above "
        f"{support['clip']:g} {100 * support['clipped_share']:.2f} %"
    )


def _cell(measure: str, estimate: dict[str, Any]) -> str:
    _, factor, digits = _COLUMNS[measure]
    text = f"{factor * estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return text
    low, high = (f"{factor * estimate[end]:.{digits}f}" for end in ("low", "high"))
    return f"{text} ({low} to {high})"
