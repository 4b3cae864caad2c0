"""How tuned parameters look: Markdown, and rows of the Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from flows.artifacts import markdown_table
from optimizer.settings import DecisionPoint

if TYPE_CHECKING:
    from optimizer.parameter_tuning import ParametersTuned

__all__ = ["front_rows", "page"]


def page(
    point: DecisionPoint,
    end: datetime,
    tuned: Sequence[ParametersTuned],
    refused: Mapping[tuple[str, str], str],
    drafts: Mapping[str, str],
) -> str:
    """Winners, what to do with them, fronts, and what could not be searched."""
    lines = [f"# Parameters of {point.name}", "", f"{end:%Y-%m-%d %H:%M} UTC.", ""]
    for model in dict.fromkeys(one.model for one in tuned):
        lines += _model(point, model, [one for one in tuned if one.model == model], drafts)
    if tuned:
        lines += ["## Pareto fronts", "", *markdown_table(front_rows(tuned)), ""]
    if refused:
        lines += ["## Not tuned", ""]
        lines += [f"- {' for '.join(filter(None, who))}: {why}" for who, why in refused.items()]
        lines += [""]
    return "\n".join(lines)


def front_rows(tuned: Sequence[ParametersTuned]) -> list[dict[str, str]]:
    """One row for each setting that no other one dominates, as measured."""
    return [
        {
            "model": one.model,
            "task": one.task or "all",
            "parameters": _told(tried.parameters),
            "quality": f"{tried.quality:.3f}",
            "USD per 1,000": f"{1000 * tried.cost_usd:.4g}",
            "believed worth": f"{tried.worth:.3f}",
            "": " ".join(
                name
                for name, which in (("present", one.present), ("winner", one.winner))
                if tried is which
            ),
        }
        for one in tuned
        for tried in one.front
    ]


def _model(
    point: DecisionPoint,
    model: str,
    tuned: Sequence[ParametersTuned],
    drafts: Mapping[str, str],
) -> list[str]:
    from optimizer.parameter_challenge import beside, challengers, settings_lines, to_add

    lines = [f"## {model}", "", *(f"- {_sentence(one)}" for one in tuned), ""]
    if new := to_add(point, challengers(point, tuned)):
        lines += [
            f"Arms come from the settings. Add under `arms` of `{point.name}` in llmopt.yaml, then "
            "restart:",
            "",
            "```yaml",
            *(settings_lines(arm) for arm in new),
            "```",
            "",
        ]
    if model in drafts:
        lines += [
            f"`llmopt experiments start {drafts[model]}` then begins the drafted experiment; "
            "nothing starts by itself, and only the experiment's units meet the challenger. It is "
            "measured on all task types.",
            "",
        ]
    untried = [one for one in tuned if one.untried is not None and not one.better]
    if untried:
        lines += [
            "The log answers only for settings that it drew. This one, which nobody has tried, "
            "would teach most:",
            "",
            "```yaml",
            settings_lines(beside(point, model, untried[0].untried or {})),
            "```",
            "",
        ]
    return lines


def _sentence(one: ParametersTuned) -> str:
    counts = f"{one.trials} trials"
    counts += f", {one.pruned} pruned" if one.pruned else ""
    counts += f", {one.failed} failed" if one.failed else ""
    kind = f"for {one.task}" if one.task else "for all tasks"
    if not one.better:
        return f"{kind}: nothing better than {_told(one.present.parameters)} ({counts})"
    return (
        f"{kind}: {_told(one.winner.parameters)} is believed worth {one.winner.worth:.3f} where "
        f"{_told(one.present.parameters)} is worth {one.present.worth:.3f} ({counts})"
    )


def _told(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items()) or "no parameters"
