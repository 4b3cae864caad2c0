"""How a new policy reaches traffic, and how it is taken back.

`optimizer.rollout.canary` leads a challenger through its stages, on the `evidence` of each, as its
`guardrails` say.
"""

from optimizer.rollout.plan import PolicyRef, RoutingPlan, RunningExperiment
from optimizer.rollout.settings import CanarySettings

__all__ = ["CanarySettings", "PolicyRef", "RoutingPlan", "RunningExperiment"]
