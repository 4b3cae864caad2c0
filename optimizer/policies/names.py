"""The names of combinations that people know, and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from optimizer.policies.base import Policy
from optimizer.policies.exploration import Exploration, Static, Thompson, Ucb, Uniform
from optimizer.policies.outcome_models import LinearHeads, MeanHeads, OutcomeModel
from optimizer.records import Arm
from optimizer.reward import Objective

__all__ = ["POLICY_NAMES", "PolicySettings", "make_policy"]

PolicyName = Literal["linucb", "thompson", "static", "random"]
POLICY_NAMES: tuple[str, ...] = get_args(PolicyName)


class PolicySettings(BaseModel):
    """Which policy a decision point uses, and its hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PolicyName = Field("linucb", description="the combination, by its usual name")
    alpha: float = Field(
        0.3, ge=0, allow_inf_nan=False, description="width of the bonus of `linucb`, in std errors"
    )
    ridge: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="prior precision of `linucb`, in observations"
    )
    uniform_share: float = Field(
        0.01, gt=0, le=1, description="share of every decision that is spread over all candidates"
    )


def make_policy(
    settings: PolicySettings,
    arms: Sequence[Arm],
    feature_size: int,
    objective: Objective,
    *,
    static_arm: int = 0,
    schema_id: int = 0,
) -> Policy:
    """Put the parts together.

    Parameters
    ----------
    settings
        Name and hyper-parameters.
    arms
        In the order of probabilities.
    feature_size
        Length of feature vectors.
    objective
        What is maximised.
    static_arm
        The arm that ``static`` takes.
    schema_id
        Names the layout of the features; part of the lineage.
    """
    model: OutcomeModel
    exploration: Exploration
    if settings.name == "linucb":
        model = LinearHeads(len(arms), feature_size, settings.ridge)
        exploration = Ucb(settings.alpha)
        depends_on = f"linear {settings.ridge} {schema_id} {feature_size}"
    else:
        model = MeanHeads(len(arms))
        depends_on = "means"
        if settings.name == "thompson":
            exploration = Thompson()
        elif settings.name == "static":
            exploration = Static(static_arm)
        else:
            exploration = Uniform()
    ids = [arm.id for arm in arms]
    caps = (objective.cost_cap_usd, objective.latency_cap_s)
    lineage = f"{depends_on} {caps} {b''.join(ids).hex()}"
    return Policy(
        settings.name, ids, model, objective, exploration, settings.uniform_share, lineage
    )
