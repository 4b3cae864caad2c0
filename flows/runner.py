"""The process that starts flow runs when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.runner import Runner
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType

from flows.deployments import DEPLOYMENTS, Deployed

__all__ = ["serve_flows"]

RUNS_AT_ONCE = 2
"""As many as cores that can be counted on. A run is a process with its own libraries."""


class _Runner(Runner):
    """Stops at SIGTERM as at Ctrl-C; Prefect's own handler exits in the middle of its loop."""

    async def serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._stop_serving = task.cancel
        await self.start()

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._stop_serving)


def serve_flows(every_s: Mapping[str, float] | None = None) -> None:
    """Register every deployment and run what is due, two at a time, until told to stop.

    Parameters
    ----------
    every_s
        Seconds between runs, above 0, of deployments by name; the others keep their schedule.
    """
    # Schedules stay on while this process is down: a report that was due then is made later, of
    # the hours it was due for. Pausing them would also make stopping wait for Prefect.
    runner = _Runner(limit=RUNS_AT_ONCE, pause_on_shutdown=False)
    for one in DEPLOYMENTS:
        runner.add_deployment(_deployment(one, (every_s or {}).get(one.name)))
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(runner.serve())


def _deployment(one: Deployed, every_s: float | None) -> RunnerDeployment:
    return RunnerDeployment.from_flow(
        one.flow,
        one.name,
        schedule=Cron(one.cron, timezone="UTC")
        if every_s is None
        else Interval(timedelta(seconds=every_s)),
        description=one.description,
        tags=list(one.tags),
        concurrency_limit=one.concurrency_limit,
        triggers=None
        if one.on_event is None
        else [DeploymentEventTrigger(name=f"{one.name} on {one.on_event}", expect={one.on_event})],
        # A path would only be found from this process's working folder.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
