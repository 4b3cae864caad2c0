"""How many replicas: by the decisions they make, whichever door these come in by.

Ray Serve's own rule counts requests at its ingress; it does not see the fast lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from optimizer.settings import Autoscaling

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

__all__ = ["DecisionRate", "autoscaling_config", "replicas_for_rate"]

_METRIC = "decisions_per_s"
_TARGET = "target_per_replica"
_LOOK_S = 15.0


class DecisionRate:
    """Decisions a second of one replica since it was last asked.

    Parameters
    ----------
    count
        Tells how many decisions were made so far.
    clock
        Seconds.
    """

    def __init__(self, count: Callable[[], int], clock: Callable[[], float] = monotonic) -> None:
        self._count = count
        self._clock = clock
        self._seen, self._at = count(), clock()

    def report(self) -> dict[str, float]:
        """What Ray Serve collects from each replica."""
        seen, now = self._count(), self._clock()
        rate = (seen - self._seen) / max(now - self._at, 1e-3)
        self._seen, self._at = seen, now
        return {_METRIC: rate}


class replicas_for_rate:  # noqa: N801  Ray calls it as a function, with state of its own
    """Ray Serve's policy: as many replicas as the rate of all needs, within Ray's bounds.

    Parameters
    ----------
    target_per_replica
        Decisions a second that one replica is to make.
    """

    def __init__(self, target_per_replica: float) -> None:
        self._target = target_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted; Ray waits its delays and keeps to its bounds."""
        rates = (context.aggregated_metrics or {}).get(_METRIC, {})
        if not rates:
            return context.target_num_replicas, {}
        return max(math.ceil(sum(rates.values()) / self._target), 1), {}


def autoscaling_config(wanted: Autoscaling) -> AutoscalingConfig:
    """Ray Serve's settings."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        upscale_delay_s=wanted.upscale_delay_s,
        downscale_delay_s=wanted.downscale_delay_s,
        look_back_period_s=_LOOK_S,
        policy=AutoscalingPolicy(
            policy_function="serving.autoscaling:replicas_for_rate",
            policy_kwargs={_TARGET: wanted.decisions_per_s},
        ),
    )
