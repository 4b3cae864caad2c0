"""The winner of a search for parameters as a challenger: an arm to configure, and an experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.experiment_plan import BASELINE, arm_label
from optimizer.experiments.experiment import ArmPattern, Design, Variant
from optimizer.parameter_tuning import LEAST_GAIN, ParametersTuned
from optimizer.records import Arm
from optimizer.settings import ArmSettings, DecisionPoint, Settings

__all__ = ["beside", "challengers", "experiment", "settings_lines", "to_add", "with_arms"]


def challengers(point: DecisionPoint, found: Sequence[ParametersTuned]) -> list[ArmSettings]:
    """The winners that are better, as arms beside the first of their model; each once.

    Parameters
    ----------
    found
        Of one model, for one task type or several.
    """
    known: dict[bytes, ArmSettings] = {}
    for one in found:
        if one.better:
            made = beside(point, one.model, one.winner.parameters)
            known[made.arm().id] = made
    return list(known.values())


def beside(point: DecisionPoint, model: str, parameters: Mapping[str, Any]) -> ArmSettings:
    """An arm as the first of the model, with other parameters."""
    first = next(arm for arm in point.arms if arm.model == model)
    return first.model_copy(update={"parameters": dict(parameters)})


def experiment(
    point: DecisionPoint, model: str, arms: Sequence[ArmSettings], share: float, effect: float
) -> Design:
    """The present arm against the challengers, on a share of the units.

    Parameters
    ----------
    arms
        One or more, none of them the present arm.
    share
        Of the units, in (0, 1].
    effect
        Gain that is believed; the experiment stops once it has excluded half of it.
    """
    present = next(arm for arm in point.arms if arm.model == model).arm()
    variants = [Variant(BASELINE, (_pattern(present),))]
    for number, arm in enumerate((one.arm() for one in arms), start=1):
        name = f"challenger {number}: {arm_label(arm)}"[:200]
        variants.append(Variant(name, (_pattern(arm),)))
    return Design(
        decision_point=point.name,
        name=f"tuned parameters of {model}"[:200],
        variants=tuple(variants),
        share=share,
        smallest_effect=max(effect / 2, LEAST_GAIN),
    )


def to_add(point: DecisionPoint, arms: Sequence[ArmSettings]) -> tuple[ArmSettings, ...]:
    """Those that are not in the settings."""
    there = {arm.arm().id for arm in point.arms}
    return tuple(arm for arm in arms if arm.arm().id not in there)


def with_arms(settings: Settings, point: DecisionPoint, arms: Sequence[ArmSettings]) -> Settings:
    """The settings as they will be once these arms are written into them; known ones stay."""
    changed = point.model_copy(update={"arms": point.arms + to_add(point, arms)})
    points = tuple(changed if one is point else one for one in settings.decision_points)
    return settings.model_copy(update={"decision_points": points})


def settings_lines(arm: ArmSettings) -> str:
    """What to add under ``arms`` of the decision point in llmopt.yaml.

    Examples
    --------
    >>> print(settings_lines(ArmSettings(model="small", parameters={"temperature": 0.3})))
          - model: "small"
            parameters: {"temperature": 0.3}
    """
    lines = [f"      - model: {json.dumps(arm.model)}"]
    lines.append(f"        parameters: {json.dumps(arm.parameters)}")
    if arm.prompt_variant != "default":
        lines.append(f"        prompt_variant: {json.dumps(arm.prompt_variant)}")
    return "\n".join(lines)


def _pattern(arm: Arm) -> ArmPattern:
    return ArmPattern(arm.model, dict(arm.parameters), arm.prompt_variant)
