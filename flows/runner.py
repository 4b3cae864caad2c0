"""The process that starts flow runs when they are due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runner import Runner

from flows.deployments import DEPLOYMENTS
from flows.recovery import HEARTBEAT_S, detect_dead_runs, restart_crashed
from flows.registration import deployment

__all__ = ["serve_flows"]

RUNS_AT_ONCE = 2
"""As many as cores that can be counted on. A run is a process of hundreds of megabytes, so this is
also the limit of memory. Others wait until one has ended."""

_RECOVERY_S = 10.0
"""Between looks for runs whose process died."""

_LOG = logging.getLogger(__name__)


class _Runner(Runner):
    """Stops at SIGTERM as at Ctrl-C; Prefect's own handler exits in the middle of its loop."""

    async def serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._stop_serving = task.cancel
        recovery = asyncio.create_task(_recover())
        try:
            await self.start()
        finally:
            recovery.cancel()

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._stop_serving)


async def _recover() -> None:
    """Start runs again whose process died, for as long as this process runs."""
    names = [one.name for one in DEPLOYMENTS]
    watched = False
    while True:
        try:
            async with get_client() as client:
                if not watched:
                    await detect_dead_runs(client, sorted({t for d in DEPLOYMENTS for t in d.tags}))
                    watched = True
                if restarted := await restart_crashed(client, names):
                    _LOG.warning("%d runs whose process died are started again", restarted)
        except (httpx.HTTPError, PrefectException, RuntimeError) as error:
            _LOG.warning(
                "Prefect is away, looking for dead runs again in %g s: %s", _RECOVERY_S, error
            )
        await asyncio.sleep(_RECOVERY_S)


def serve_flows(every_s: Mapping[str, float] | None = None) -> None:
    """Register every deployment and run what is due, two at a time, until told to stop.

    Parameters
    ----------
    every_s
        Seconds between runs, above 0, of deployments by name; the others keep their schedule.
    """
    # Schedules stay on while this process is down: a report that was due then is made later, of
    # the hours it was due for. Pausing them would also make stopping wait for Prefect.
    runner = _Runner(limit=RUNS_AT_ONCE, heartbeat_seconds=HEARTBEAT_S, pause_on_shutdown=False)
    for one in DEPLOYMENTS:
        runner.add_deployment(deployment(one, (every_s or {}).get(one.name)))
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(runner.serve())
