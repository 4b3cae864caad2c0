"""The process that starts flow runs when they are due."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron, Interval
from prefect.types.entrypoint import EntrypointType

from flows.report import report

__all__ = ["serve_flows"]

HOURLY = "0 * * * *"


class _Runner(Runner):
    """Stops at SIGTERM as at Ctrl-C; Prefect's own handler exits in the middle of its loop."""

    async def serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._stop_serving = task.cancel
        await self.start()

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._stop_serving)


def serve_flows(report_every_s: float | None) -> None:
    """Register every deployment and run what is due, one at a time, until told to stop.

    Parameters
    ----------
    report_every_s
        Seconds between reports, above 0; on the hour if None.
    """
    schedule = (
        Cron(HOURLY, timezone="UTC")
        if report_every_s is None
        else Interval(timedelta(seconds=report_every_s))
    )
    deployment = RunnerDeployment.from_flow(
        report,
        "report",
        schedule=schedule,
        description="What each decision point did in the last hours, and what it saved.",
        tags=["report"],
        # A path would only be found from this process's working folder.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # Schedules stay on while this process is down: a report that was due then is made later, of
    # the hours it was due for. Pausing them would also make stopping wait for Prefect.
    runner = _Runner(limit=1, pause_on_shutdown=False)
    runner.add_deployment(deployment)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(runner.serve())
