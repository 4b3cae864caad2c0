"""Policies: an outcome model, an objective and a way to explore, freely combined.

The names people use are names of combinations, see `make_policy`.
"""

from optimizer.policies.base import Policy
from optimizer.policies.exploration import Exploration, Greedy, Static, Thompson, Ucb, Uniform
from optimizer.policies.names import POLICY_NAMES, PolicySettings, make_policy
from optimizer.policies.outcome_models import LinearHeads, MeanHeads, OutcomeModel

__all__ = [
    "POLICY_NAMES",
    "Exploration",
    "Greedy",
    "LinearHeads",
    "MeanHeads",
    "OutcomeModel",
    "Policy",
    "PolicySettings",
    "Static",
    "Thompson",
    "Ucb",
    "Uniform",
    "make_policy",
]
