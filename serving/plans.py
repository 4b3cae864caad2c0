"""Routing plans in PostgreSQL: the truth that replicas and learner follow.

A change of plan is one transaction under a row lock: the next plan, and the audit entry that says
who changed it and why. Whoever changes a plan then announces it through Valkey
(`serving.snapshots.SnapshotStore.publish_plan`); the learner announces it again if that is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import psycopg

from optimizer.errors import UnknownName
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.settings import DecisionPoint
from serving import audit
from serving.variants import add_variant, pin_state, pinned_state, variant_point

__all__ = ["change", "current", "ensure"]

_TABLES = """
CREATE TABLE IF NOT EXISTS routing_plans (
    decision_point text PRIMARY KEY,
    plan jsonb NOT NULL,
    policy_of_settings jsonb NOT NULL
);
"""
_LOCK = 0x6C6C6D706C616E


def ensure(
    connection: psycopg.Connection[Any], point: DecisionPoint, schema_id: int, now_s: float
) -> RoutingPlan:
    """The plan of a decision point as its settings are now; made where there is none.

    If the settings name another policy than at the last start, it becomes the champion: who edits
    the settings means what they say. If they change what all policies share (arms, objective, the
    layout of features), each policy in the plan goes on as another variant.

    Parameters
    ----------
    connection
        In autocommit mode.
    point
        Its settings.
    schema_id
        Of the feature layout.
    now_s
        Unix time in seconds.
    """
    _create_tables(connection)
    policy = point.policy.model_dump_json()
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = connection.execute(
            "SELECT policy_of_settings = %s::jsonb FROM routing_plans WHERE decision_point = %s",
            (policy, point.name),
        ).fetchone()
        if row is None:
            variant = add_variant(connection, point, schema_id)
            first = RoutingPlan(point.name, 1, PolicyRef(variant), stage_at=now_s)
            connection.execute(
                "INSERT INTO routing_plans VALUES (%s, %s, %s)",
                (point.name, msgspec.json.encode(first).decode(), policy),
            )
            return first
        edited = not row[0]

        def update(plan: RoutingPlan) -> RoutingPlan:
            same = {ref: _as_now(connection, point, schema_id, ref) for ref in plan.refs()}
            plan = msgspec.structs.replace(
                plan,
                champion=same[plan.champion],
                challenger=plan.challenger and same[plan.challenger],
                shadow=plan.shadow and same[plan.shadow],
            )
            if not edited:
                return plan
            return msgspec.structs.replace(
                plan,
                champion=PolicyRef(add_variant(connection, point, schema_id)),
                challenger=None,
                challenger_share=0.0,
            )

        plan = change(
            connection,
            point.name,
            update,
            actor="settings",
            action="policy.replace" if edited else "policy.renumber",
            reason="the settings name another policy"
            if edited
            else "the settings change arms, objective or features",
            evidence={"policy": point.policy.model_dump()},
        )
        connection.execute(
            "UPDATE routing_plans SET policy_of_settings = %s WHERE decision_point = %s",
            (policy, point.name),
        )
    return plan


def _as_now(
    connection: psycopg.Connection[Any], point: DecisionPoint, schema_id: int, ref: PolicyRef
) -> PolicyRef:
    """The same policy under the settings of now, with the state that it is pinned to."""
    variant = add_variant(connection, variant_point(connection, point, ref.variant), schema_id)
    now = PolicyRef(variant, ref.pinned)
    if now != ref and (state := pinned_state(connection, point.name, ref)) is not None:
        pin_state(connection, point.name, now, state)
    return now


def current(connection: psycopg.Connection[Any], decision_point: str) -> RoutingPlan:
    """The plan in force.

    Raises
    ------
    UnknownName
        If the decision point has none: the platform has never started with it.
    """
    _create_tables(connection)
    row = connection.execute(
        "SELECT plan::text FROM routing_plans WHERE decision_point = %s", (decision_point,)
    ).fetchone()
    if row is None:
        raise _no_plan(decision_point)
    return msgspec.json.decode(row[0], type=RoutingPlan)


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
    """Replace a plan by ``update(plan)``, one epoch on, with an audit entry, or not at all.

    Parameters
    ----------
    connection
        In autocommit mode, or within the caller's transaction.
    update
        Gives the new plan; what it raises leaves everything as it was. If it gives the plan back
        unchanged, nothing is written.
    actor, action, reason, evidence
        See `serving.audit.AuditEntry`.

    Returns
    -------
    The plan now in force; announce it with `SnapshotStore.publish_plan` after the commit.

    Raises
    ------
    UnknownName
        If the decision point has no plan.
    """
    _create_tables(connection)
    with connection.transaction():
        row = connection.execute(
            "SELECT plan::text FROM routing_plans WHERE decision_point = %s FOR UPDATE",
            (decision_point,),
        ).fetchone()
        if row is None:
            raise _no_plan(decision_point)
        old = msgspec.json.decode(row[0], type=RoutingPlan)
        new = update(old)
        if new == old:
            return old
        new = msgspec.structs.replace(new, epoch=old.epoch + 1)
        connection.execute(
            "UPDATE routing_plans SET plan = %s WHERE decision_point = %s",
            (msgspec.json.encode(new).decode(), decision_point),
        )
        audit.record(
            connection,
            decision_point,
            actor,
            action,
            reason,
            {
                **evidence,
                "plan_before": msgspec.to_builtins(old),
                "plan": msgspec.to_builtins(new),
            },
        )
    return new


def _no_plan(decision_point: str) -> UnknownName:
    return UnknownName(
        "decision_point", decision_point, "one that the platform has been started with"
    )


def _create_tables(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('routing_plans')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLES)
