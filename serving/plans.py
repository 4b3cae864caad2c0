"""Routing plans and policy variants in PostgreSQL: the truth that replicas and learner follow.

A change of plan is one transaction under a row lock: the next plan, and the audit entry that says
who changed it and why. Whoever changes a plan then announces it through Valkey
(`serving.snapshots.SnapshotStore.publish_plan`); the learner announces it again if that is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import psycopg

from optimizer.errors import InvalidInput, UnknownName
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.rollout.versioning import Configuration, Variant, configuration, next_version
from optimizer.settings import DecisionPoint
from serving import audit

__all__ = [
    "add_variant",
    "change",
    "current",
    "ensure",
    "pin_state",
    "pinned_state",
    "variant_point",
    "variants",
]

_TABLES = """
CREATE TABLE IF NOT EXISTS policy_variants (
    decision_point text NOT NULL,
    variant text NOT NULL,
    policy jsonb NOT NULL,
    configuration jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (decision_point, variant)
);
CREATE TABLE IF NOT EXISTS pinned_states (
    decision_point text NOT NULL,
    variant text NOT NULL,
    position bigint NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (decision_point, variant, position)
);
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


def variants(connection: psycopg.Connection[Any], decision_point: str) -> dict[str, PolicySettings]:
    """The policies of all variants that a decision point ever had, oldest first."""
    _create_tables(connection)
    rows = connection.execute(
        "SELECT variant, policy FROM policy_variants WHERE decision_point = %s "
        "ORDER BY string_to_array(variant, '.')::int[]",
        (decision_point,),
    ).fetchall()
    return {variant: PolicySettings.model_validate(policy) for variant, policy in rows}


def add_variant(connection: psycopg.Connection[Any], point: DecisionPoint, schema_id: int) -> str:
    """Name a configuration, "major.minor", as `optimizer.rollout.versioning` says.

    Parameters
    ----------
    point
        The decision point with the policy.
    schema_id
        Of the feature layout.
    """
    _create_tables(connection)
    new = configuration(point, schema_id)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        rows = connection.execute(
            "SELECT variant, configuration FROM policy_variants WHERE decision_point = %s",
            (point.name,),
        ).fetchall()
        known = []
        for name, content in rows:
            major, minor = map(int, name.split("."))
            known.append(Variant(major, minor, 0, msgspec.convert(content, Configuration)))
        variant = next_version(known, new).variant.name
        connection.execute(
            "INSERT INTO policy_variants (decision_point, variant, policy, configuration) "
            "VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (
                point.name,
                variant,
                point.policy.model_dump_json(),
                msgspec.json.encode(new).decode(),
            ),
        )
    return variant


def variant_point(
    connection: psycopg.Connection[Any], point: DecisionPoint, variant: str
) -> DecisionPoint:
    """The settings of a decision point with the policy of a variant.

    Raises
    ------
    UnknownName
        If there is no such variant.
    """
    known = variants(connection, point.name)
    if variant not in known:
        raise UnknownName("variant", variant, f"one of {sorted(known)}")
    return point.model_copy(update={"policy": known[variant]})


def pin_state(
    connection: psycopg.Connection[Any], decision_point: str, ref: PolicyRef, state: bytes
) -> None:
    """Keep the state of a pinned version, so that neither Valkey nor MLflow is needed to serve it.

    Raises
    ------
    InvalidInput
        If the reference is not pinned.
    """
    _create_tables(connection)
    if ref.pinned is None:
        raise InvalidInput("pinned", None, "a ledger position")
    connection.execute(
        "INSERT INTO pinned_states VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (decision_point, ref.variant, ref.pinned, state),
    )


def pinned_state(
    connection: psycopg.Connection[Any], decision_point: str, ref: PolicyRef
) -> bytes | None:
    """What `pin_state` kept, or None."""
    row = connection.execute(
        "SELECT state FROM pinned_states WHERE decision_point = %s AND variant = %s "
        "AND position = %s",
        (decision_point, ref.variant, ref.pinned),
    ).fetchone()
    return None if row is None else bytes(row[0])


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
