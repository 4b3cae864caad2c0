"""How a new policy reaches traffic, and how it is taken back."""

from optimizer.rollout.plan import PolicyRef, RoutingPlan, RunningExperiment

__all__ = ["PolicyRef", "RoutingPlan", "RunningExperiment"]
