"""What a policy is, apart from what it learned: enough to build it anew anywhere."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field

from optimizer.policies import Policy, make_policy
from optimizer.settings import DecisionPoint

__all__ = ["PolicyDescription"]


class PolicyDescription(BaseModel):
    """The decision point's settings and the layout of its features.

    Examples
    --------
    >>> from optimizer.settings import ArmSettings
    >>> point = DecisionPoint(name="chat", arms=(ArmSettings(model="small"),))
    >>> description = PolicyDescription(decision_point=point, feature_names=("constant",))
    >>> description.arm_names
    ('small',)
    >>> description.policy().name
    'randucb'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision_point: DecisionPoint
    feature_names: tuple[str, ...] = Field(min_length=1, description="names, in their order")
    feature_groups: tuple[int, ...] | None = Field(
        None, description="what each feature is, see `FeatureEncoder.groups`"
    )
    schema_id: int = Field(0, ge=0, description="`FeatureEncoder.schema_id` of that layout")

    @property
    def arm_names(self) -> tuple[str, ...]:
        """A name for each arm, in the order of probabilities.

        It is the model, with parameters and variant where one model has several arms.
        """
        arms = self.decision_point.arms
        models = [arm.model for arm in arms]
        return tuple(
            arm.model
            if models.count(arm.model) == 1
            else f"{arm.model} {json.dumps(arm.parameters, sort_keys=True)} {arm.prompt_variant}"
            for arm in arms
        )

    def policy(self) -> Policy:
        """A policy that has learned nothing yet."""
        point = self.decision_point
        return make_policy(
            point.policy,
            point.records(),
            len(self.feature_names),
            point.objective(),
            static_arm=point.static_index,
            schema_id=self.schema_id,
            groups=self.feature_groups,
        )
