"""How a proposed experiment looks: Markdown, table rows and the Pareto plot."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from flows.artifacts import markdown_table

if TYPE_CHECKING:
    from optimizer.experiment_plan import Plan
    from optimizer.pareto import Placed

__all__ = ["draw", "figures", "front_table", "page", "table"]

_WANTED = 3
_SHOWN = 20
_COLOURS = {
    "front": "tab:green",
    "perhaps front": "tab:olive",
    "perhaps dominated": "tab:orange",
    "dominated": "tab:red",
}


def page(name: str, end: datetime, planned: Plan, draft: str | None) -> str:
    """What to try next and why, as Markdown."""
    message = f"{planned.message[:1].upper()}{planned.message[1:]}."
    lines = [f"# Next experiment of {name}", "", f"{end:%Y-%m-%d %H:%M} UTC.", "", message, ""]
    if draft is not None:
        lines += [f"`llmopt experiments start {draft}` begins it; nothing starts by itself.", ""]
    if planned.proposals:
        lines += [*_why(planned), "", *markdown_table(table(planned)), ""]
    if len(planned.rungs) > 1:
        rounds = ", then ".join(
            f"{rung.candidates} candidates with {rung.samples_each} requests each"
            for rung in planned.rungs
        )
        lines += [
            f"Successive halving: {rounds}. The draft is the first round; the next plan sees its "
            "outcomes and proposes who is left.",
            "",
        ]
    if planned.front:
        lines += ["## Pareto-optimal settings", "", _found(planned), ""]
        lines += [*markdown_table(front_table(planned.front)), ""]
    return "\n".join(lines)


def table(planned: Plan) -> list[dict[str, str]]:
    """One row a proposal, best first, 20 at most."""
    return [
        {
            "candidate": planned.label(one.candidate) + ("" if one.configured else " (new)"),
            "difference": f"{one.difference:+.3f} ± {one.difference_std:.3f}",
            "better": f"{one.better:.0%}",
            "effect": f"{one.effect:g}",
            "requests": f"{one.samples}",
            "USD": f"{one.cost_usd:.2f}",
            "expected gain": f"{one.gain:.1f}",
            "gain per USD": f"{one.gain_per_usd:.2f}",
        }
        for one in planned.proposals[:_SHOWN]
    ]


def front_table(front: tuple[Placed, ...]) -> list[dict[str, str]]:
    """One row an arm or role, the Pareto-optimal first."""
    order = [*_COLOURS, "unknown"]
    return [
        {
            "setting": one.candidate.name,
            "kind": one.candidate.kind,
            "standing": one.standing,
            **{
                name: "" if found.value is None else f"{found.value:.4g}"
                for name, found in one.candidate.measures.items()
            },
        }
        for one in sorted(front, key=lambda one: order.index(one.standing))
    ]


def figures(planned: Plan) -> dict[str, float]:
    """Numbers that can be compared over time."""
    best = planned.proposals[0]
    return {
        "requests_per_day": planned.requests_per_day,
        "on_front": float(len(planned.on_front)),
        "best_gain": best.gain,
        "best_cost_usd": best.cost_usd,
        "best_samples": float(best.samples),
        "best_probability_better": best.better,
    }


def draw(planned: Plan, file: Path) -> bool:
    """Plot quality against cost as a PNG; False where neither is known of any setting."""
    shown = [
        one
        for one in planned.front
        if all(
            part in one.candidate.measures and one.candidate.measures[part].value is not None
            for part in ("quality", "cost_usd")
        )
    ]
    if not shown:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for one in shown:
        measures = one.candidate.measures
        cost, quality = measures["cost_usd"].value, measures["quality"].value
        assert cost is not None and quality is not None
        marker = "o" if one.candidate.kind == "arm" else "D"
        axis.plot(1000 * cost, quality, marker, color=_COLOURS[one.standing], markersize=9)
        axis.annotate(
            one.candidate.name, (1000 * cost, quality), xytext=(7, 5), textcoords="offset points"
        )
    axis.set(xlabel="USD per 1,000 requests", ylabel="quality")
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    return True


def _why(planned: Plan) -> list[str]:
    best, evidence = planned.proposals[0], planned.evidence
    assert evidence is not None
    return [
        f"From {evidence.decisions} decisions with a complete reward, "
        f"{planned.requests_per_day:.0f} decisions a day. The champion draws "
        f"{planned.label(evidence.incumbent)} most often.",
        "",
        f"First is {planned.label(best.candidate)}: better with probability {best.better:.0%}. "
        f"{best.samples} requests find a difference of {best.effect:g} in reward with power 80 % "
        f"and cost about {best.cost_usd:.2f} USD; choosing better afterwards is expected to gain "
        f"{best.gain:.1f} (reward summed over the horizon). These are beliefs to plan with, "
        "no proof of a difference.",
    ]


def _found(planned: Plan) -> str:
    number = len(planned.on_front)
    names = ", ".join(one.candidate.name for one in planned.on_front)
    if number >= _WANTED:
        return f"{number} settings that no other one dominates: {names}."
    return (
        f"Only {number} of {len(planned.front)} settings are not dominated"
        f"{': ' + names if names else ''}; {_WANTED} are wanted. Arms with another balance of "
        "quality, cost and latency would add to them."
    )
