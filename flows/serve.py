"""Serve every flow on its schedule: ``python -m flows.serve``.

Runs in the foreground until SIGTERM or Ctrl-C. Each run of a flow is a process of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from optimizer.settings import load_settings

if TYPE_CHECKING:
    from prefect.schedules import Schedule

__all__ = ["main"]

HOURLY = "0 * * * *"

_QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def main(report_schedule: Schedule | None = None) -> None:
    """Serve until told to stop.

    Parameters
    ----------
    report_schedule
        When to report; hourly if None.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_API_URL", load_settings().prefect_address)
    # Prefect reads its settings while it is imported, so they stand before.
    from prefect import serve
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.report import report

    deployment = RunnerDeployment.from_flow(
        report,
        "report",
        schedule=report_schedule or Cron(HOURLY, timezone="UTC"),
        description="What each decision point did in the last hours, and what it saved.",
        tags=["report"],
        paused=False,  # a stop pauses it
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    serve(deployment, limit=1, print_starting_message=False)


if __name__ == "__main__":
    main()
