"""The results as JSON for programs and Markdown for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.policies.race import Entry
from benchmarks.policies.standings import Standing, order_agreement
from benchmarks.processor import processor
from optimizer.replay_seeds import Interval

__all__ = ["Heat", "installed", "write_report"]

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas")
_NOTES = """\
Every policy sees the same features, order of requests and, seed by seed, the same late and lost
rewards. Policies that give probabilities are drawn at the same uniform numbers; those that draw by
themselves are seeded. Peers learn the reward as one number, ours the parts it is made of (quality
and, where it has a weight, cost). Each runs with one setting on every recording, see the end.

Reward, regret (the oracle's reward minus it) and the last third are means a request. `vs best peer`
is the difference of rewards on the same seeds. Times are medians of the calls of one pass, one
thread, the same process for all, features given: VW's text lines and River's dictionaries are made
beforehand. The ratio is to `{default}` on the same seed. Behind ± is half the 95 % interval over
seeds (Student's t).
"""


@dataclass(frozen=True)
class Heat:
    """The standings on one recording under one delay and share of missing rewards."""

    data: str
    weights: str
    requests: int
    models: int
    oracle: float
    best_single: tuple[str, float]
    delay: int
    missing: float
    standings: list[Standing]
    not_run: dict[str, str]


def installed(package: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(
    out: Path,
    heats: Sequence[Heat],
    entries: Sequence[Entry],
    default: str,
    seeds: int,
    command: str,
) -> None:
    """Write ``out`` with the suffixes ``.json`` and ``.md``.

    Parameters
    ----------
    out
        Path without suffix; its folder is made.
    heats
        In the order of the report.
    entries
        All that were to take part.
    default
        Name of the policy that times are compared with.
    seeds
        Their number.
    command
        That repeats it.
    """
    packages = (*_LIBRARIES, *sorted({entry.package for entry in entries if entry.package}))
    head: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "seeds": seeds,
        "default": default,
        "hardware": _hardware(),
        "versions": {"python": platform.python_version()}
        | {package: installed(package) for package in packages},
        "settings": {entry.name: entry.setting for entry in entries},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**head, "heats": [asdict(heat) for heat in heats]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(_markdown(head, heats), encoding="utf-8")


def _markdown(head: dict[str, Any], heats: Sequence[Heat]) -> str:
    versions = ", ".join(f"{name} {number or '-'}" for name, number in head["versions"].items())
    lines = [
        "# Policies head to head",
        "",
        f"{head['date']}, `{head['command']}`, {head['seeds']} seeds. {head['hardware']}.",
        f"{versions}.",
        "",
        _NOTES.format(default=head["default"]),
    ]
    for number, heat in enumerate(heats):
        lines += _section(heat)
        before = heats[number - 1] if number else None
        if before is not None and (before.data, before.weights) == (heat.data, heat.weights):
            tau = order_agreement(before.standings, heat.standings)
            lines += [f"Agreement of this order with the one above (Kendall's tau): {tau:.2f}.", ""]
    lines += ["## Settings", ""]
    lines += [f"- {name}: {setting}" for name, setting in head["settings"].items()]
    return "\n".join(lines) + "\n"


def _section(heat: Heat) -> list[str]:
    model, reward = heat.best_single
    late = f"rewards {heat.delay} decisions late, {100 * heat.missing:g} % never come"
    title = late if heat.delay or heat.missing else "rewards at once"
    lines = [
        f"## {heat.data}, {title}",
        "",
        f"{heat.requests} requests, {heat.models} models, weights {heat.weights or 'default'}. "
        f"Oracle {heat.oracle:.4f}, best single model {model} {reward:.4f}.",
        "",
        "| policy | reward | regret | last third | vs best peer | µs a decision | µs an update"
        " | decision, ratio | update, ratio |",
        "|---|" + "---:|" * 8,
    ]
    for each in heat.standings:
        name = f"**{each.name}**" if each.name.startswith("ours") else each.name
        cells = (
            name,
            _cell(each.reward, 4),
            _cell(each.regret, 4),
            _cell(each.last_third, 4),
            _cell(each.ahead, 4, "+"),
            _cell(each.decide_us, 1),
            _cell(each.learn_us, 1),
            _cell(each.decide_ratio, 2),
            _cell(each.learn_ratio, 2),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    if heat.not_run:
        lines += [f"Not run: {name} ({reason})." for name, reason in heat.not_run.items()] + [""]
    return lines


def _cell(value: Interval | None, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.high is None else f"{text} ± {value.high - value.mean:.{digits}f}"


def _hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"
