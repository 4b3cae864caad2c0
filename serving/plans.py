"""The routing plan of each decision point in PostgreSQL, changed in one transaction with its trail.

A stand-in of a few lines: epoch + 1 for each change, an audit entry beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import psycopg
from msgspec import structs

from optimizer.rollout.plan import PolicyRef, RoutingPlan
from serving import audit

__all__ = ["change", "current"]

_TABLE = """
CREATE TABLE IF NOT EXISTS routing_plans (
    decision_point text NOT NULL,
    epoch bigint NOT NULL,
    plan jsonb NOT NULL,
    PRIMARY KEY (decision_point, epoch)
);
"""
_LOCK = 0x6C6C6D706C61


def current(connection: psycopg.Connection[Any], decision_point: str) -> RoutingPlan:
    """The newest plan; of epoch 0 before the first change."""
    _create_table(connection)
    row = connection.execute(
        "SELECT plan FROM routing_plans WHERE decision_point = %s ORDER BY epoch DESC LIMIT 1",
        (decision_point,),
    ).fetchone()
    if row is None:
        return RoutingPlan(decision_point, 0, PolicyRef("1.0"))
    return msgspec.convert(row[0], RoutingPlan)


def change(
    connection: psycopg.Connection[Any],
    decision_point: str,
    update: Callable[[RoutingPlan], RoutingPlan],
    *,
    actor: str,
    action: str,
    reason: str,
    evidence: Mapping[str, Any],
) -> RoutingPlan:
    """Replace the plan by what ``update`` makes of it."""
    _create_table(connection)
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK & 0x7FFFFFFF, decision_point)
        )
        plan = current(connection, decision_point)
        plan = structs.replace(update(plan), epoch=plan.epoch + 1)
        connection.execute(
            "INSERT INTO routing_plans VALUES (%s, %s, %s)",
            (decision_point, plan.epoch, msgspec.json.encode(plan).decode()),
        )
        audit.record(connection, decision_point, actor, action, reason, evidence)
    return plan


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('routing_plans')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
