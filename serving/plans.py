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
from optimizer.feature_schema import FeatureSchema
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.settings import DecisionPoint
from serving import audit
from serving.feature_schemas import known_schemas, policy_schema, store_schema
from serving.feature_use import check_computed, check_not_used
from serving.variants import (
    add_variant,
    pin_state,
    pinned_state,
    variant_point,
    variant_schemas,
)

__all__ = ["announce_features", "change", "current", "ensure"]

_TABLES = """
CREATE TABLE IF NOT EXISTS routing_plans (
    decision_point text PRIMARY KEY,
    plan jsonb NOT NULL,
    policy_of_settings jsonb NOT NULL
);
ALTER TABLE routing_plans ADD COLUMN IF NOT EXISTS schema_of_settings bigint;
ALTER TABLE routing_plans ADD COLUMN IF NOT EXISTS computed_schema bigint;
"""
_LOCK = 0x6C6C6D706C616E


def announce_features(
    connection: psycopg.Connection[Any], point: DecisionPoint, computed: FeatureSchema
) -> None:
    """Store the layout that settings bring, before a token is made with it, or refuse it.

    Called before anything of the platform starts, so that a refusal leaves everything as it was.

    Parameters
    ----------
    connection
        In autocommit mode.
    point
        Its settings.
    computed
        All columns that its requests get.

    Raises
    ------
    InvalidInput
        If it lacks a column that a live version uses, or the settings retire one that there is not.
    """
    wanted = policy_schema(point, computed)
    _create_tables(connection)
    row = _read(connection, point.name)
    if row is not None:
        check_not_used(connection, point.name, row, computed)
    store_schema(connection, point.name, computed)
    store_schema(connection, point.name, wanted)


def ensure(
    connection: psycopg.Connection[Any], point: DecisionPoint, computed: FeatureSchema, now_s: float
) -> RoutingPlan:
    """The plan of a decision point as its settings are now; made where there is none.

    If the settings name another policy than at the last start, it becomes the champion: who edits
    the settings means what they say. If they change what all policies share (arms, objective, the
    layout of features), each policy in the plan goes on as another variant. One that is pinned
    learns no more, and so keeps its layout.

    Parameters
    ----------
    connection
        In autocommit mode.
    point
        Its settings.
    computed
        All columns that its requests get.
    now_s
        Unix time in seconds.

    Raises
    ------
    InvalidInput
        As `announce_features`; nothing is changed then.
    """
    announce_features(connection, point, computed)
    wanted = policy_schema(point, computed)
    policy = point.policy.model_dump_json()
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = connection.execute(
            "SELECT policy_of_settings = %s::jsonb, schema_of_settings IS DISTINCT FROM %s "
            "FROM routing_plans WHERE decision_point = %s",
            (policy, wanted.schema_id, point.name),
        ).fetchone()
        if row is None:
            variant = add_variant(connection, point, wanted)
            first = RoutingPlan(point.name, 1, PolicyRef(variant), stage_at=now_s)
            connection.execute(
                "INSERT INTO routing_plans VALUES (%s, %s, %s, %s, %s)",
                (
                    point.name,
                    msgspec.json.encode(first).decode(),
                    policy,
                    wanted.schema_id,
                    computed.schema_id,
                ),
            )
            return first
        edited, relaid = not row[0], row[1]
        connection.execute(
            "UPDATE routing_plans SET policy_of_settings = %s, schema_of_settings = %s, "
            "computed_schema = %s WHERE decision_point = %s",
            (policy, wanted.schema_id, computed.schema_id, point.name),
        )

        def update(plan: RoutingPlan) -> RoutingPlan:
            same = {ref: _as_now(connection, point, wanted, relaid, ref) for ref in plan.refs()}
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
                champion=PolicyRef(add_variant(connection, point, wanted)),
                challenger=None,
                challenger_share=0.0,
            )

        return change(
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


def _as_now(
    connection: psycopg.Connection[Any],
    point: DecisionPoint,
    wanted: FeatureSchema,
    relaid: bool,
    ref: PolicyRef,
) -> PolicyRef:
    """The same policy under the settings of now, with the state that it is pinned to.

    Its layout is that of the settings if they have just changed it. Else it keeps its own: it may
    have been rolled back to.
    """
    own = variant_schemas(connection, point.name).get(ref.variant)
    schema = wanted if own is None or (relaid and ref.pinned is None) else own
    variant = add_variant(connection, variant_point(connection, point, ref.variant), schema)
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
    plan = _read(connection, decision_point)
    if plan is None:
        raise _no_plan(decision_point)
    return plan


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
    InvalidInput
        If the new plan names a version that looks at features which are no longer computed.
    """
    _create_tables(connection)
    with connection.transaction():
        row = connection.execute(
            "SELECT plan::text, computed_schema FROM routing_plans WHERE decision_point = %s "
            "FOR UPDATE",
            (decision_point,),
        ).fetchone()
        if row is None:
            raise _no_plan(decision_point)
        old = msgspec.json.decode(row[0], type=RoutingPlan)
        new = update(old)
        if new == old:
            return old
        computed = known_schemas(connection, decision_point).get(row[1])
        for ref in set(new.refs()) - set(old.refs()):
            if computed is not None:
                check_computed(connection, decision_point, ref, computed)
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


def _read(connection: psycopg.Connection[Any], decision_point: str) -> RoutingPlan | None:
    row = connection.execute(
        "SELECT plan::text FROM routing_plans WHERE decision_point = %s", (decision_point,)
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=RoutingPlan)


def _no_plan(decision_point: str) -> UnknownName:
    return UnknownName(
        "decision_point", decision_point, "one that the platform has been started with"
    )


def _create_tables(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute(  # the column that came last: all is there
        "SELECT FROM pg_attribute WHERE attrelid = to_regclass('routing_plans') "
        "AND attname = 'computed_schema'"
    ).fetchone()
    if row is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLES)
