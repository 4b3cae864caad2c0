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
_FIRST_VARIANT = "1.0"


def ensure(connection: psycopg.Connection[Any], point: DecisionPoint, now_s: float) -> RoutingPlan:
    """The plan of a decision point; made where there is none.

    If the policy in the settings is another one than at the last start, it becomes the champion as
    a variant of its own: who edits the settings means what they say.

    Parameters
    ----------
    connection
        In autocommit mode.
    point
        Its settings.
    now_s
        Unix time in seconds.
    """
    _create_tables(connection)
    policy = point.policy.model_dump_json()
    with connection.transaction():
        row = connection.execute(
            "SELECT policy_of_settings = %s::jsonb FROM routing_plans WHERE decision_point = %s "
            "FOR UPDATE",
            (policy, point.name),
        ).fetchone()
        if row is None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(
                "INSERT INTO policy_variants (decision_point, variant, policy) VALUES (%s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                (point.name, _FIRST_VARIANT, policy),
            )
            first = RoutingPlan(point.name, 1, PolicyRef(_FIRST_VARIANT), stage_at=now_s)
            connection.execute(
                "INSERT INTO routing_plans VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (point.name, msgspec.json.encode(first).decode(), policy),
            )
        elif not row[0]:
            variant = add_variant(connection, point.name, point.policy)
            change(
                connection,
                point.name,
                lambda plan: msgspec.structs.replace(
                    plan, champion=PolicyRef(variant), challenger=None, challenger_share=0.0
                ),
                actor="settings",
                action="policy.replace",
                reason=f"the settings name another policy: variant {variant} serves",
                evidence={"policy": point.policy.model_dump()},
            )
            connection.execute(
                "UPDATE routing_plans SET policy_of_settings = %s WHERE decision_point = %s",
                (policy, point.name),
            )
    return current(connection, point.name)


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
    """Every configuration of a policy that a decision point ever had, oldest first."""
    _create_tables(connection)
    rows = connection.execute(
        "SELECT variant, policy FROM policy_variants WHERE decision_point = %s "
        "ORDER BY string_to_array(variant, '.')::int[]",
        (decision_point,),
    ).fetchall()
    return {variant: PolicySettings.model_validate(policy) for variant, policy in rows}


def add_variant(
    connection: psycopg.Connection[Any], decision_point: str, policy: PolicySettings
) -> str:
    """Name a configuration, "major.minor"; one that is known keeps its name.

    Another algorithm is a new major number, another hyper-parameter a new minor one.
    """
    _create_tables(connection)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        known = variants(connection, decision_point)
        for variant, other in known.items():
            if other == policy:
                return variant
        alike = [_numbers(name) for name, other in known.items() if other.name == policy.name]
        if alike:
            major, minor = max(alike)
            # A later algorithm may have taken the next major number; minors grow within one.
            variant = f"{major}.{minor + 1}"
        else:
            variant = f"{max((_numbers(name)[0] for name in known), default=0) + 1}.0"
        connection.execute(
            "INSERT INTO policy_variants (decision_point, variant, policy) VALUES (%s, %s, %s)",
            (decision_point, variant, policy.model_dump_json()),
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


def _numbers(variant: str) -> tuple[int, int]:
    major, minor = variant.split(".")
    return int(major), int(minor)


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
