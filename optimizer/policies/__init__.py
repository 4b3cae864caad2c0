"""Policies: an outcome model, an objective and a way to explore, freely combined.

The names people use are names of combinations, see `make_policy`.
"""

from optimizer.policies.base import Policy, draw, draw_many
from optimizer.policies.names import (
    COMBINATIONS,
    EXPLORATIONS,
    MODELS,
    POLICY_NAMES,
    PolicySettings,
    make_policy,
)
from optimizer.policies.outcome_model import OutcomeModel

__all__ = [
    "COMBINATIONS",
    "EXPLORATIONS",
    "MODELS",
    "POLICY_NAMES",
    "OutcomeModel",
    "Policy",
    "PolicySettings",
    "draw",
    "draw_many",
    "make_policy",
]
