"""Runs of flows in Prefect that are over: deleted through its API.

Prefect's own clean-up (`PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED`) needs a variable of the server;
this needs only its API, so it also works where the server is the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

__all__ = ["drop_flow_runs"]

_AT_ONCE = 100
"""Below the API's own limit of 200."""


def drop_flow_runs(deployments: Sequence[str], before: datetime, *, dry_run: bool = False) -> int:
    """Delete the runs of deployments that ended before a moment; idempotent.

    Parameters
    ----------
    deployments
        Names. A server of the user's own may hold runs of others, which stay.
    before
        With time zone.
    dry_run
        Only count.

    Returns
    -------
    How many.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.exceptions import ObjectNotFound

    ours = DeploymentFilter.model_validate({"name": {"any_": list(deployments)}})
    old = FlowRunFilter.model_validate(
        {
            "end_time": {"before_": before},
            "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}},
        }
    )
    dropped = 0
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_flow_runs(
                deployment_filter=ours,
                flow_run_filter=old,
                limit=_AT_ONCE,
                offset=dropped if dry_run else 0,
            )
            for run in () if dry_run else runs:
                try:
                    client.delete_flow_run(run.id)
                except ObjectNotFound:
                    continue  # another was faster
            dropped += len(runs)
            if len(runs) < _AT_ONCE:
                return dropped
