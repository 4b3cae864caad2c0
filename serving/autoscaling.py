"""How many replicas: by the decisions they make, whichever door these come in by, and by forecast.

Ray Serve's own rule counts requests at its ingress; it does not see the fast lane. What is expected
comes with the figures of the replicas (`serving.expected_load`), so that the policy, which runs in
Ray's controller, only computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from time import monotonic
from typing import TYPE_CHECKING, Any

from optimizer.capacity import Outlook, replicas_for, required_rate
from optimizer.settings import Autoscaling
from serving.expected_load import EXPECTED

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
        metrics = context.aggregated_metrics or {}
        rates = metrics.get(_METRIC, {})
        if not rates:
            return context.target_num_replicas, {}
        wanted = required_rate(sum(rates.values()), _outlook(metrics))
        return replicas_for(wanted, self._target), {}


def _outlook(metrics: Mapping[str, Mapping[Any, float]]) -> Outlook | None:
    """What the replica tells that expects most; None if none expects anything."""
    names = {field.name: f"{EXPECTED}{field.name}" for field in fields(Outlook)}
    told = [
        Outlook(**{name: metrics[figure][replica] for name, figure in names.items()})
        for replica in metrics.get(names["ahead"], {})
        if all(replica in metrics.get(figure, {}) for figure in names.values())
    ]
    # Ray makes 0 of a figure that is no longer told.
    known = [one for one in told if one.ahead > 0]
    return max(known, key=lambda one: one.ahead, default=None)


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
