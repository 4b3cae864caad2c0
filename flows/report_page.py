"""How a report looks: Markdown, table rows and a plot."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from flows.artifacts import markdown_table
from optimizer.confidence import ENOUGH, Estimate
from optimizer.readiness import ControlReadiness
from optimizer.report import Comparison, ReportSummary

__all__ = ["draw", "figures", "page", "table"]

Cell = str | int | float
_NAMES = {
    "reward": "reward",
    "quality": "quality",
    "cost_usd": "cost (USD)",
    "latency_s": "latency (s)",
}
_COLOURS = {"champion": "tab:blue", "control": "tab:orange", "fallback": "tab:grey"}


def page(name: str, start: datetime, end: datetime, summary: ReportSummary) -> str:
    """The report as Markdown."""
    lines = [f"# {name}", "", f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC", ""]
    if not summary.decisions:
        return "\n".join([*lines, "No decisions were logged in this span.", ""])
    lines += [*_banner(summary.readiness), _traffic(summary), ""]
    if "control" not in summary.complete:
        lines += ["No control decision has a complete outcome: nothing to compare with.", ""]
    lines += markdown_table(table(summary)) or ["No decision has a complete outcome yet."]
    cost = next(one for one in summary.comparisons if one.measure == "cost_usd").saved_per_1000
    if cost.value is not None:
        interval = "" if cost.low is None else f" ({_interval(cost)})"
        lines += [
            "",
            f"Saved against control: {_number(cost.value)} USD per 1,000 requests{interval}.",
        ]
    lines += [
        "",
        "Intervals hold at 95 %, however often they are looked at; none is given below "
        f"{ENOUGH} complete decisions in each group.",
        "",
        "## Models",
        "",
    ]
    lines += markdown_table(
        [
            {"role": role, "model": model, "share": _percent(share)}
            for role, shares in sorted(summary.arm_shares.items())
            for model, share in shares.items()
        ]
    )
    return "\n".join([*lines, ""])


def table(summary: ReportSummary) -> list[dict[str, Cell]]:
    """One row a measure."""
    return [
        {
            "measure": _NAMES[one.measure],
            "treated": _number(one.treated),
            "control": _number(one.control),
            "difference": _number(one.difference.value),
            "95 % interval": _interval(one.difference),
            "saving": _percent(one.saving.value),
            "95 % interval of the saving": _interval(one.saving, percent=True),
        }
        for one in summary.comparisons
        if one.treated is not None or one.control is not None
    ]


def figures(summary: ReportSummary) -> dict[str, float]:
    """The report's numbers by name, those that are known."""
    known = {f"decisions_{role}": float(count) for role, count in summary.decisions.items()}
    known |= {f"complete_{role}": float(count) for role, count in summary.complete.items()}
    known |= {f"proxied_{role}": float(count) for role, count in summary.proxied.items()}
    if summary.decisions:
        known["ready"] = float(summary.readiness.ready)
    for one in summary.comparisons:
        known |= {key: value for key, value in _named(one).items() if value is not None}
    return known


def draw(means: pd.DataFrame, start: datetime, end: datetime, file: Path) -> None:
    """Plot quality and cost over time, a line a role, as a PNG."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, column in zip(axes, ("quality", "cost_usd"), strict=True):
        for role, rows in means.groupby("role"):
            axis.plot(
                rows["bucket"], rows[column], marker="o", label=role, color=_COLOURS.get(str(role))
            )
        axis.set_ylabel(_NAMES[column])
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[1].set_xlim(start, end)
    figure.autofmt_xdate()
    figure.savefig(file, dpi=110)


def _banner(readiness: ControlReadiness) -> list[str]:
    """Stands above everything where no conclusion may be drawn."""
    if readiness.ready:
        return []
    head = (
        "> 🟠 **Not ready for conclusions yet.**"
        if readiness.trusted
        else "> 🔴 **Do not trust the comparison with control.** A check on these figures failed."
    )
    return [head, ">", *(f"> - {reason}" for reason in readiness.reasons), ""]


def _traffic(summary: ReportSummary) -> str:
    parts = [f"{count} {role}" for role, count in sorted(summary.decisions.items())]
    total = sum(summary.decisions.values())
    compared = ("champion", "control")
    missing = sum(
        summary.decisions.get(role, 0) - summary.complete.get(role, 0) for role in compared
    )
    text = f"{total} decisions: {', '.join(parts)}."
    if "fallback" in summary.decisions:
        text += " Fallback decisions are not compared."
    if proxied := sum(summary.proxied.values()):
        text += (
            f" Of {proxied} decisions without feedback the quality was predicted by a model, for "
            "learning alone: it is no evidence and left out of what follows."
        )
    if missing:
        text += (
            f" {missing} champion and control decisions lack a part of their outcome and are left "
            "out of what follows."
        )
    return text


def _named(one: Comparison) -> dict[str, float | None]:
    saved = one.saved_per_1000 if one.measure == "cost_usd" else None
    return {
        **(
            {}
            if saved is None
            else {
                "saved_usd_per_1000": saved.value,
                "saved_usd_per_1000_low": saved.low,
                "saved_usd_per_1000_high": saved.high,
            }
        ),
        f"{one.measure}_treated": one.treated,
        f"{one.measure}_control": one.control,
        f"{one.measure}_difference": one.difference.value,
        f"{one.measure}_difference_low": one.difference.low,
        f"{one.measure}_difference_high": one.difference.high,
        f"{one.measure}_saving": one.saving.value,
        f"{one.measure}_saving_low": one.saving.low,
        f"{one.measure}_saving_high": one.saving.high,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _interval(estimate: Estimate, *, percent: bool = False) -> str:
    if estimate.value is None:
        return ""
    if estimate.low is None:
        return "not enough data"
    show = _percent if percent else _number
    return f"{show(estimate.low)} to {show(estimate.high)}"
