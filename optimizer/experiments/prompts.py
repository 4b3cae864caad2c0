"""An experiment over prompt variants: arms that differ in nothing else."""

from __future__ import annotations

import json
from typing import Any

from optimizer.errors import InvalidInput, UnknownName
from optimizer.settings import ArmSettings, DecisionPoint

__all__ = ["prompt_experiment"]


def prompt_experiment(
    point: DecisionPoint, model: str | None = None, share: float = 0.2
) -> dict[str, Any]:
    """The definition of an experiment that compares a decision point's prompt variants.

    Each prompt variant is a variant of the experiment, with one arm for each model and its
    parameters. Only models that have every variant take part: else the variants would differ in
    their models, too. Of one model, Thompson sampling moves units to the better prompt; with
    several, a decision's propensity does not tell the variant's, so shares stay equal.

    Parameters
    ----------
    point
        Whose arms.
    model
        Only arms of this model; of all models if left out.
    share
        Share of units that take part, in (0, 1].

    Returns
    -------
    Plain values, for `llmopt experiments create`.

    Raises
    ------
    UnknownName
        If no arm has that model.
    InvalidInput
        If no model has two prompt variants, or the share is out of range.

    Examples
    --------
    >>> arms = [ArmSettings(model="small", prompt_variant=name) for name in ("default", "brief")]
    >>> found = prompt_experiment(DecisionPoint(name="chat", arms=tuple(arms)))
    >>> [variant["name"] for variant in found["variants"]], found["allocation"]
    (['default', 'brief'], 'thompson')
    """
    if not 0 < share <= 1:
        raise InvalidInput("share", share, "above 0 and at most 1")
    models = {arm.model for arm in point.arms}
    if model is not None and model not in models:
        raise UnknownName("model", model, f"one of {', '.join(sorted(models))}")
    groups: dict[str, dict[str, ArmSettings]] = {}
    for arm in point.arms:
        if model in (None, arm.model):
            same = json.dumps([arm.model, arm.parameters], sort_keys=True)
            groups.setdefault(same, {})[arm.prompt_variant] = arm
    widest = max(groups.values(), key=len)
    if len(widest) < 2:
        raise InvalidInput(
            "arms",
            [arm.prompt_variant for arm in point.arms],
            f"decision point {point.name!r} has no two arms that differ in prompt_variant only; "
            "add such an arm",
        )
    complete = [group for group in groups.values() if widest.keys() <= group.keys()]
    return {
        "name": "prompts" if model is None else f"prompts of {model}",
        "decision_point": point.name,
        "allocation": "thompson" if len(complete) == 1 else "fixed",
        "share": share,
        "variants": [
            {
                "name": name,
                "arms": [
                    group[name].model_dump(mode="json", exclude={"traits"}) for group in complete
                ],
            }
            for name in widest
        ],
    }
