"""The names of combinations that people know, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optimizer.policies.base import Policy
from optimizer.policies.drift import DriftAware
from optimizer.policies.exploration import (
    Epsilon,
    Exploration,
    Greedy,
    InverseGap,
    RandomUcb,
    Static,
    Thompson,
    Ucb,
    Uniform,
)
from optimizer.policies.forgetting import Discounted, Forgetting, Never, Window
from optimizer.policies.gradient import GradientHeads
from optimizer.policies.linear import LinearHeads
from optimizer.policies.means import MeanHeads
from optimizer.policies.outcome_model import OutcomeModel
from optimizer.policies.tuning import WidthTuner
from optimizer.records import Arm
from optimizer.reward import TARGETS, Objective

__all__ = [
    "COMBINATIONS",
    "EXPLORATIONS",
    "MODELS",
    "POLICY_NAMES",
    "PolicySettings",
    "make_policy",
]

COMBINATIONS: dict[str, tuple[str, str]] = {
    "randucb": ("linear", "randucb"),
    "tuned": ("linear", "tuned"),
    "linucb": ("linear", "ucb"),
    "linthompson": ("linear", "thompson"),
    "squarecb": ("linear", "gap"),
    "ucb1": ("gaussian", "ucb"),
    "thompson": ("beta", "thompson"),
    "epsilon": ("beta", "epsilon"),
    "ftrl": ("ftrl", "gap"),
    "adagrad": ("adagrad", "gap"),
    "trees": ("trees", "epsilon"),
    "static": ("beta", "static"),
    "random": ("beta", "uniform"),
}
"""Outcome model and exploration of each name."""

POLICY_NAMES: tuple[str, ...] = tuple(COMBINATIONS)

MODELS = ("beta", "gaussian", "linear", "ftrl", "adagrad", "trees")
_EXACT = ("beta", "gaussian", "linear")

EXPLORATIONS = (
    "ucb",
    "randucb",
    "tuned",
    "thompson",
    "gap",
    "epsilon",
    "greedy",
    "uniform",
    "static",
)


class PolicySettings(BaseModel):
    """Which policy a decision point uses, and its hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "randucb",
        description="a combination by its usual name, or MODEL+EXPLORATION, for instance trees+ucb",
    )
    alpha: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="width of the bonus of `ucb` and `randucb`, in std errors",
    )
    epsilon: float = Field(0.05, ge=0, le=1, description="share that `epsilon` explores with")
    gap_scale: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="how soon `gap` (squarecb) stops exploring"
    )
    uniform_share: float = Field(
        0.002, gt=0, le=1, description="share of every decision that is spread over all candidates"
    )
    forgetting: Literal["drift", "never", "discounted", "window"] = Field(
        "drift", description="`drift` forgets when outcomes contradict what was learned"
    )
    horizon: float = Field(
        2000.0, ge=10, allow_inf_nan=False, description="rewards that `discounted`, `window` keep"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        model, _, exploration = name.partition("+")
        if name not in COMBINATIONS and not (model in MODELS and exploration in EXPLORATIONS):
            raise ValueError(
                f"policy {name!r} is none of {', '.join(POLICY_NAMES)}, and not MODEL+EXPLORATION "
                f"with MODEL one of {', '.join(MODELS)} and EXPLORATION one of "
                f"{', '.join(EXPLORATIONS)}"
            )
        return name

    @property
    def parts(self) -> tuple[str, str]:
        """Outcome model and exploration."""
        if self.name in COMBINATIONS:
            return COMBINATIONS[self.name]
        model, _, exploration = self.name.partition("+")
        return model, exploration


def make_policy(
    settings: PolicySettings,
    arms: Sequence[Arm],
    feature_size: int,
    objective: Objective,
    *,
    static_arm: int = 0,
    schema_id: int = 0,
    groups: Sequence[int] | None = None,
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
    groups
        What each feature is, see `optimizer.policies.linear.LinearHeads`.
    """
    kind, rule = settings.parts
    number = len(arms)
    models: dict[str, Callable[[], OutcomeModel]] = {
        "beta": lambda: MeanHeads(number, beta=True),
        "gaussian": lambda: MeanHeads(number, beta=False),
        "linear": lambda: LinearHeads(number, feature_size, groups),
        "ftrl": lambda: GradientHeads(number, feature_size, "ftrl"),
        "adagrad": lambda: GradientHeads(number, feature_size, "adagrad"),
        "trees": lambda: _trees(number, feature_size),
    }
    explorations: dict[str, Callable[[], Exploration]] = {
        "ucb": lambda: Ucb(settings.alpha),
        "randucb": lambda: RandomUcb(settings.alpha),
        "tuned": lambda: RandomUcb(WidthTuner().width),
        "thompson": Thompson,
        "gap": lambda: InverseGap(settings.gap_scale),
        "epsilon": lambda: Epsilon(settings.epsilon),
        "greedy": Greedy,
        "uniform": Uniform,
        "static": lambda: Static(static_arm),
    }
    lineage = (
        f"{kind} {rule == 'tuned'} {schema_id} {feature_size} {groups} "
        f"{settings.forgetting} {settings.horizon} "
        f"{objective.cost_cap_usd} {objective.latency_cap_s}"
    )
    policy = Policy(
        settings.name,
        [arm.id for arm in arms],
        models[kind](),
        objective,
        explorations[rule](),
        _forgetting(settings, kind, number, feature_size),
        feature_size,
        settings.uniform_share,
        lineage,
        WidthTuner() if rule == "tuned" else None,
    )
    policy.describe({arm.id: arm.traits for arm in arms})
    return policy


def _forgetting(settings: PolicySettings, kind: str, arms: int, size: int) -> Forgetting:
    if settings.forgetting == "never":
        return Never()
    if settings.forgetting == "drift":
        return DriftAware(arms, len(TARGETS))
    if settings.forgetting == "window" and kind in _EXACT:
        return Window(settings.horizon, size if kind == "linear" else 1)
    # Steps of a gradient cannot be taken back, and trees keep a window of their own.
    return Discounted(arms, settings.horizon)


def _trees(arms: int, size: int) -> OutcomeModel:
    from optimizer.policies.trees import TreeHeads  # scikit-learn takes a second to import

    return TreeHeads(arms, size)
