"""Budget plans in PostgreSQL, and what was spent so far."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import psycopg

__all__ = ["StoredPlan", "newest", "save", "spent"]

_TABLE = """
CREATE TABLE IF NOT EXISTS budget_plans (
    period_start timestamptz NOT NULL,
    hour timestamptz NOT NULL,
    at timestamptz NOT NULL,
    plan jsonb NOT NULL,
    PRIMARY KEY (period_start, hour)
);
"""
_LOCK = 0x6C6C6D627564


@dataclass(frozen=True)
class StoredPlan:
    """What a run of the budget flow found.

    Attributes
    ----------
    period_start, period_end, at
        ISO times: of the period, and when the plan was made.
    budget_usd, spent_usd
        For the period, and of it by then.
    unpriced
        Decisions of the period whose cost is not known (yet); they count as 0 in ``spent_usd``.
    status
        ``planned``, ``floors give way``, ``infeasible`` or ``no data``.
    message
        A sentence for people.
    price
        Value that one dollar more would bring; None without a plan.
    rows
        One for each decision point and hour: service, hour, requests, shares by model, quality,
        cost_usd, quality_floor, quality_short, quality_price_usd.
    """

    period_start: str
    period_end: str
    at: str
    budget_usd: float
    spent_usd: float
    unpriced: int
    status: str
    message: str
    price: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def save(connection: psycopg.Connection[Any], plan: StoredPlan) -> None:
    """Store a plan: one for each hour, the newest; told again it changes nothing."""
    with connection.transaction():
        _create(connection)
        connection.execute(
            "INSERT INTO budget_plans VALUES (%s, date_trunc('hour', %s::timestamptz), %s, %s)"
            " ON CONFLICT (period_start, hour) DO UPDATE SET at = excluded.at, plan = excluded.plan"
            " WHERE budget_plans.at <= excluded.at",
            (plan.period_start, plan.at, plan.at, json.dumps(asdict(plan))),
        )


def newest(
    connection: psycopg.Connection[Any], before: datetime | None = None
) -> StoredPlan | None:
    """The newest plan, made before a time if one is given."""
    if connection.execute("SELECT to_regclass('budget_plans')").fetchone() == (None,):
        return None
    row = connection.execute(
        "SELECT plan FROM budget_plans WHERE at < coalesce(%s, 'infinity'::timestamptz)"
        " ORDER BY at DESC LIMIT 1",
        (before,),
    ).fetchone()
    return None if row is None else StoredPlan(**row[0])


def spent(
    connection: psycopg.Connection[Any], start: datetime, end: datetime
) -> dict[str, tuple[float, int]]:
    """US dollars known to be spent in a span by decision point, and decisions of unknown cost."""
    if connection.execute("SELECT to_regclass('decisions')").fetchone() == (None,):
        return {}
    rows = connection.execute(
        "SELECT d.decision_point, coalesce(sum(r.cost), 0), count(*) FILTER (WHERE r.cost IS NULL)"
        " FROM decisions d LEFT JOIN LATERAL ("
        "    SELECT known_after[2] AS cost FROM rewards r"
        "    WHERE r.decision_id = d.decision_id AND r.decided_at = d.decided_at"
        "    ORDER BY position DESC LIMIT 1) r ON true"
        " WHERE d.decided_at >= %s AND d.decided_at < %s AND d.role <> 'shadow' GROUP BY 1",
        (start, end),
    )
    return {name: (float(cost), int(unknown)) for name, cost, unknown in rows}


def _create(connection: psycopg.Connection[Any]) -> None:
    # Two runs that make the table at once would fail on its type.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    connection.execute(_TABLE)
