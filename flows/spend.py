"""The event that has the budget planned anew, sent when money goes faster than it was planned."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

if TYPE_CHECKING:
    from optimizer.settings import Settings

__all__ = ["SPEND_EVENT", "watch_spend"]

SPEND_EVENT = "llmopt.spend"
"""Starts the deployment `budget`; systems of the user's own may send it, see docs/budget.md."""


@task(retries=3, retry_delay_seconds=[2, 10, 30], cache_policy=NO_CACHE)
def watch_spend(settings: Settings) -> str | None:
    """Send `SPEND_EVENT` if the newest plan does not hold; found again, it is the same event.

    Returns
    -------
    What was found, in one sentence.
    """
    from serving.spend_watch import find_overspent

    found = find_overspent(settings, datetime.now(UTC))
    if found is None:
        return None
    emit_event(
        SPEND_EVENT,
        {"prefect.resource.id": "llmopt.budget", "prefect.resource.name": "budget"},
        payload={
            "message": found.message,
            "spent_usd": found.spent_usd,
            "plan_at": found.plan_at,
        },
        id=uuid5(NAMESPACE_URL, f"{SPEND_EVENT}/{found.plan_at}/{found.reason}"),
    )
    return found.message
