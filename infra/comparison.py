"""What came out beside what fixed rules would have got: the table of `replay` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "Line", "comparison_lines", "comparison_table"]

COLUMNS = ("quality", "USD per 1,000 requests", "reward")

_RULES = {
    "best_single": "best single model",
    "cheapest": "cheapest model",
    "random": "uniform random",
    "oracle": "oracle (sees every outcome)",
}


@dataclass(frozen=True)
class Line:
    """A line of the table: its label, and a text for each of `COLUMNS`."""

    label: str
    cells: tuple[str, str, str]
    ours: bool = False


def comparison_lines(ours: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """Our means beside those of the fixed rules.

    Parameters
    ----------
    ours
        By what its line is called, at least one, each with ``quality``, ``cost_usd``, ``reward``,
        ``last_third`` and ``baselines`` as `optimizer.replay_summary.summary` gives them. Fixed
        rules are those of the first.
    """
    several = len(ours) > 1
    lines = []
    for name, result in ours.items():
        lines.append(_line(name, result, result.get("seeds"), ours=True))
        if "without_control" in result:
            share = f"{100 * result['control_share']:.0f} %"
            label = f"  without the uniform control ({share})"
            lines.append(_line(label, result["without_control"]))
        lines.append(_line("  its last third", result["last_third"]))
    rules = next(iter(ours.values()))["baselines"]
    for name, label in _RULES.items():
        model = rules[name].get("model")
        lines.append(_line(f"{label} ({model})" if model else label, rules[name]))
    for name, result in ours.items():
        mix = result["baselines"]["equal_cost_mix"]["quality"]
        whose = f"the cost of {name}" if several else "our cost"
        lines.append(Line(f"best mix of two models at {whose}", (f"{mix:.4f}", "", "")))
    return lines


def comparison_table(ours: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """`comparison_lines` for a terminal, with a title above."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for line in comparison_lines(ours):
        table.add_row(escape(line.label), *line.cells, style="bold" if line.ours else None)
    return table


def _line(
    label: str,
    means: Mapping[str, Any],
    seeds: Mapping[str, Any] | None = None,
    *,
    ours: bool = False,
) -> Line:
    def cell(measure: str, factor: float, digits: int) -> str:
        text = f"{factor * means[measure]:.{digits}f}"
        if seeds is None or seeds[measure]["low"] is None:
            return text
        half = factor * (seeds[measure]["high"] - seeds[measure]["mean"])
        return f"{text} ±{half:.{digits}f}"

    return Line(
        label, (cell("quality", 1, 4), cell("cost_usd", 1000, 3), cell("reward", 1, 4)), ours
    )
