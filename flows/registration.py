"""A deployment as Prefect is told of it."""

from __future__ import annotations

from datetime import timedelta

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType

from flows.deployments import COLLISION_STRATEGY, EVENT_PAUSE, Deployed

__all__ = ["deployment"]


def deployment(one: Deployed, every_s: float | None = None) -> RunnerDeployment:
    """Describe a deployment to Prefect.

    Parameters
    ----------
    every_s
        Seconds between runs, above 0, in place of its schedule.
    """
    return RunnerDeployment.from_flow(
        one.flow,
        one.name,
        schedule=Cron(one.cron, timezone="UTC")
        if every_s is None
        else Interval(timedelta(seconds=every_s)),
        triggers=[DeploymentEventTrigger(expect={one.event}, within=EVENT_PAUSE)]
        if one.event
        else [],
        description=one.description,
        tags=list(one.tags),
        parameters=dict(one.parameters),
        concurrency_limit=ConcurrencyLimitConfig(
            limit=one.concurrency_limit,
            collision_strategy=ConcurrencyLimitStrategy(COLLISION_STRATEGY),
        ),
        # A path would only be found from this process's working folder.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
