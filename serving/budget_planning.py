"""From the ledger to a plan of what is left of the budget."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from optimizer.budget_settings import BudgetSettings, ServiceBudget
from optimizer.settings import Settings
from serving import budget_store
from serving.budget_store import StoredPlan
from serving.outcomes import outcomes_frame

if TYPE_CHECKING:
    from optimizer.budget_plan import BudgetPlan

__all__ = ["LEARNED_FROM", "make_plan"]

LEARNED_FROM = timedelta(days=7)
"""The span whose mean is what is expected."""

_NEWEST = 200_000


def make_plan(settings: Settings, budget: BudgetSettings, at: datetime) -> StoredPlan:
    """Spread what is left of the budget over decision points and the hours of the period.

    Parameters
    ----------
    at
        With time zone; only what was decided before counts.

    Raises
    ------
    psycopg.Error
        If PostgreSQL is away.
    """
    # scipy's solver takes a second to import.
    from optimizer.budget_plan import InfeasibleBudget, plan_budget
    from optimizer.service_demand import LEAST_ROWS, demands_of

    start, end = budget.span(at)
    dsn = settings.postgres_dsn()
    with psycopg.connect(dsn) as connection:
        spent = budget_store.spent(connection, start, at)
    found: dict[str, Any] = {
        "period_start": start.isoformat(),
        "period_end": end.isoformat(),
        "at": at.isoformat(),
        "budget_usd": budget.usd,
        "spent_usd": sum(cost for cost, _ in spent.values()),
        "unpriced": sum(unknown for _, unknown in spent.values()),
    }
    demands, unknown = [], []
    for point in settings.decision_points if spent or _any_decisions(dsn) else ():
        frame = outcomes_frame(dsn, point.name, at - LEARNED_FROM, at, _NEWEST)
        promised = budget.services.get(point.name, ServiceBudget())
        own = demands_of(point.name, frame, at, end, promised)
        demands += own
        if not own:
            unknown.append(point.name)
    if not demands:
        return StoredPlan(
            **found,
            status="no data",
            message=f"nothing to plan from yet: an arm needs {LEAST_ROWS} decisions of the last "
            f"{LEARNED_FROM.days} days with known quality and cost",
        )
    left = budget.usd - found["spent_usd"]
    try:
        plan = plan_budget(demands, max(left, 0.0))
    except InfeasibleBudget as error:
        return StoredPlan(
            **found,
            status="infeasible",
            message=f"{left:.6g} USD are left of {budget.usd:.6g}: {error}",
        )
    message = f"{plan.cost_usd:.6g} USD planned of {left:.6g} left"
    if unknown:
        message += f"; not known well enough and left out: {', '.join(unknown)}"
    return StoredPlan(
        **found,
        status="floors give way" if plan.notes else "planned",
        message=". ".join([message, *plan.notes]),
        price=plan.price,
        rows=_rows(plan),
    )


def _any_decisions(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT to_regclass('decisions') IS NOT NULL").fetchone()
    return found == (True,)


def _rows(plan: BudgetPlan) -> list[dict[str, Any]]:
    return [
        {
            "service": one.demand.tenant,
            "hour": one.demand.period,
            "requests": one.demand.requests,
            "shares": {
                option.name: share
                for option, share in zip(one.demand.options, one.shares, strict=True)
            },
            "quality": one.quality,
            "cost_usd": one.cost_usd,
            "quality_floor": one.demand.quality_floor,
            "quality_short": one.quality_short,
            "quality_price_usd": plan.quality_price_usd(one),
        }
        for one in plan.allocations
    ]
