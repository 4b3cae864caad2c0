"""Flow runs whose process died: seen within minutes, and started again.

Prefect's own retries happen inside of a run's process, so they can't help a process that is gone.
The runner that started it reports it as crashed, at once. If the runner died as well, the run stays
"Running" until its heartbeats have been missing for a while: an automation in Prefect's server then
reports it as crashed. Either way it is started again here, with the time it was scheduled for, so
that it does what it was to do then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.events import EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import AwaitingRetry

__all__ = ["HEARTBEAT_S", "STARTS", "detect_dead_runs", "restart_crashed"]

HEARTBEAT_S = 30
"""Between signs of life of a run; Prefect allows no less."""

STARTS = 3
"""So often a run is started in all, also one that kills its process each time."""

_MISSED_S = 600.0
"""Workers of the user's own beat every 180 s unless told otherwise: three of those, and some."""

_RECENT = timedelta(days=1)
_NAME = "llmopt: runs without heartbeats have crashed"
_BEAT = "prefect.flow-run.heartbeat"


async def detect_dead_runs(
    client: PrefectClient, tags: Sequence[str], missed_s: float = _MISSED_S
) -> None:
    """Have the server report runs as crashed that have stopped giving signs of life; idempotent.

    Parameters
    ----------
    tags
        Runs with one of these tags are watched; others on the same server are not ours.
    missed_s
        So long, in seconds, a run may give no sign; 10 or more.
    """
    ended = ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")
    wanted = AutomationCore(
        name=_NAME,
        description=f"No sign of life for {missed_s:g} s from a run tagged {' or '.join(tags)}.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            # A process killed in its first second has never sent a heartbeat.
            after={_BEAT, "prefect.flow-run.Running", "prefect.flow-run.Retrying"},
            expect={_BEAT, *(f"prefect.flow-run.{name}" for name in ended)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {
                    "prefect.resource.id": [f"prefect.tag.{tag}" for tag in tags],
                    "prefect.resource.role": ["tag"],
                }
            ),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=missed_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"No sign of life for {missed_s:g} s."
            )
        ],
    )
    found = await client.read_automations_by_name(_NAME)
    if not found:
        await client.create_automation(wanted)
    for one in found[:1]:
        # The description says all that can differ. An update would make the server forget which
        # runs it waits for: those that died together with the runner that starts now.
        if one.description != wanted.description:
            await client.update_automation(one.id, wanted)
    for one in found[1:]:
        await client.delete_automation(one.id)


async def restart_crashed(client: PrefectClient, deployments: Sequence[str]) -> int:
    """Start runs again that have crashed within a day, `STARTS` times in all.

    Parameters
    ----------
    deployments
        Names of those whose runs are ours.

    Returns
    -------
    How many. Of two processes that do it at once, the second changes nothing.
    """
    crashed = FlowRunFilter.model_validate(
        {
            "state": {"type": {"any_": ["CRASHED"]}},
            "end_time": {"after_": datetime.now(UTC) - _RECENT},
        }
    )
    ours = DeploymentFilter.model_validate({"name": {"any_": list(deployments)}})
    restarted = 0
    for run in await client.read_flow_runs(flow_run_filter=crashed, deployment_filter=ours):
        if run.run_count < STARTS:
            state: State[object] = AwaitingRetry(message="Its process died; it is started again.")
            await client.set_flow_run_state(run.id, state)
            restarted += 1
    return restarted
