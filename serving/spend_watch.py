"""Is money spent faster than the newest plan said? Then the plan is to be made again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from optimizer.settings import Settings
from serving import budget_store
from serving.budget_store import StoredPlan

__all__ = ["SHARES", "Overspent", "find_overspent", "overspent", "shares_crossed"]

SHARES = (0.5, 0.8, 1.0)
"""Of a period's budget, after each of which people are told and the rest is planned anew."""


@dataclass(frozen=True)
class Overspent:
    """What was found.

    Attributes
    ----------
    plan_at
        ISO time of the plan that does not hold.
    spent_usd
        In the period so far.
    reason
        Which of the two it was; the same for the same plan as long as nothing more is crossed.
    message
        A sentence for people.
    """

    plan_at: str
    spent_usd: float
    reason: str
    message: str


def shares_crossed(budget_usd: float, before_usd: float, spent_usd: float) -> tuple[float, ...]:
    """Those of `SHARES` that lie above what was spent before and not above what is spent now.

    Examples
    --------
    >>> shares_crossed(10.0, 4.0, 8.0)
    (0.5, 0.8)
    """
    return tuple(share for share in SHARES if before_usd < share * budget_usd <= spent_usd)


def overspent(plan: StoredPlan, spent_usd: float, at: datetime) -> Overspent | None:
    """Compare what was spent with a plan of the same period.

    Parameters
    ----------
    spent_usd
        In the period, by ``at``.
    at
        With time zone; in the plan's period.

    Returns
    -------
    What is wrong: one of `SHARES` was crossed since the plan was made, or what it gave to all hours
    up to the running one, to its end, is spent before that end. None if neither.
    """
    if crossed := shares_crossed(plan.budget_usd, plan.spent_usd, spent_usd):
        share = f"{crossed[-1]:.0%}"
        message = f"{spent_usd:.6g} USD are spent, {share} of the budget or more"
        return Overspent(plan.at, spent_usd, f"{share} of the budget", message)
    allowed = plan.spent_usd + sum(
        row["cost_usd"] for row in plan.rows if datetime.fromisoformat(row["hour"]) <= at
    )
    if plan.rows and spent_usd > allowed:
        hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        message = (
            f"{spent_usd:.6g} USD are spent, {allowed:.6g} were planned until the end of the hour "
            f"that began at {hour.isoformat()}"
        )
        return Overspent(plan.at, spent_usd, f"hour {hour.isoformat()}", message)
    return None


def find_overspent(settings: Settings, at: datetime) -> Overspent | None:
    """Look at the ledger and at the newest plan of the running period.

    Parameters
    ----------
    at
        With time zone.

    Returns
    -------
    None without a budget, without a plan to compare with, or if the plan holds.

    Raises
    ------
    psycopg.Error
        If PostgreSQL is away.
    """
    if settings.budget is None:
        return None
    start = settings.budget.span(at)[0]
    with psycopg.connect(settings.postgres_dsn(), connect_timeout=5) as connection:
        plan = budget_store.newest(connection, at)
        if plan is None or datetime.fromisoformat(plan.period_start) != start:
            return None
        spent = budget_store.spent(connection, start, at)
    return overspent(plan, sum(cost for cost, _ in spent.values()), at)
