"""Policy variants in PostgreSQL: the configurations of a decision point by their numbers.

The states that pinned versions serve with are here, too, so that neither Valkey nor MLflow is
needed to serve them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import psycopg

from optimizer.errors import InvalidInput, UnknownName
from optimizer.feature_schema import FeatureSchema
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef
from optimizer.rollout.versioning import Configuration, Variant, configuration, next_version
from optimizer.settings import DecisionPoint
from serving.feature_schemas import known_schemas, store_schema

__all__ = [
    "add_variant",
    "archive",
    "archived",
    "drop_pinned",
    "pin_state",
    "pinned_state",
    "variant_point",
    "variant_schemas",
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
ALTER TABLE policy_variants ADD COLUMN IF NOT EXISTS schema_id bigint;
ALTER TABLE policy_variants ADD COLUMN IF NOT EXISTS archived_at timestamptz;
"""
_LOCK = 0x6C6C6D766172

_OLD_PINNED = """
SELECT count(*), coalesce(sum(length(state)), 0)::bigint
FROM pinned_states JOIN policy_variants USING (decision_point, variant) WHERE archived_at < %s
"""
_DROP_PINNED = """
WITH gone AS (
    DELETE FROM pinned_states s USING policy_variants v
    WHERE v.decision_point = s.decision_point AND v.variant = s.variant AND v.archived_at < %s
    RETURNING state
)
SELECT count(*), coalesce(sum(length(state)), 0)::bigint FROM gone
"""


def variants(connection: psycopg.Connection[Any], decision_point: str) -> dict[str, PolicySettings]:
    """The policies of all variants that a decision point ever had, oldest first."""
    _create_tables(connection)
    rows = connection.execute(
        "SELECT variant, policy FROM policy_variants WHERE decision_point = %s "
        "ORDER BY string_to_array(variant, '.')::int[]",
        (decision_point,),
    ).fetchall()
    return {variant: PolicySettings.model_validate(policy) for variant, policy in rows}


def add_variant(
    connection: psycopg.Connection[Any], point: DecisionPoint, schema: FeatureSchema
) -> str:
    """Name a configuration, "major.minor", as `optimizer.rollout.versioning` says.

    One that was archived is taken out of the archive.

    Parameters
    ----------
    point
        The decision point with the policy.
    schema
        The feature layout.
    """
    _create_tables(connection)
    store_schema(connection, point.name, schema)
    new = configuration(point, schema.schema_id)
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
            "INSERT INTO policy_variants "
            "(decision_point, variant, policy, configuration, schema_id) "
            "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (decision_point, variant) "
            "DO UPDATE SET schema_id = excluded.schema_id, archived_at = NULL",
            (
                point.name,
                variant,
                point.policy.model_dump_json(),
                msgspec.json.encode(new).decode(),
                schema.schema_id,
            ),
        )
    return variant


def variant_schemas(
    connection: psycopg.Connection[Any], decision_point: str
) -> dict[str, FeatureSchema]:
    """The feature layout of each variant, apart from those made before layouts were stored."""
    _create_tables(connection)
    known = known_schemas(connection, decision_point)
    rows = connection.execute(
        "SELECT variant, schema_id FROM policy_variants WHERE decision_point = %s",
        (decision_point,),
    ).fetchall()
    return {variant: known[number] for variant, number in rows if number in known}


def archive(connection: psycopg.Connection[Any], decision_point: str, variant: str) -> None:
    """Say that a variant is not to serve any more; its versions stay readable."""
    _create_tables(connection)
    connection.execute(
        "UPDATE policy_variants SET archived_at = now() WHERE decision_point = %s AND variant = %s",
        (decision_point, variant),
    )


def archived(connection: psycopg.Connection[Any], decision_point: str) -> set[str]:
    """The variants that are archived."""
    _create_tables(connection)
    rows = connection.execute(
        "SELECT variant FROM policy_variants WHERE decision_point = %s AND archived_at IS NOT NULL",
        (decision_point,),
    ).fetchall()
    return {variant for (variant,) in rows}


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
    _create_tables(connection)
    row = connection.execute(
        "SELECT state FROM pinned_states WHERE decision_point = %s AND variant = %s "
        "AND position = %s",
        (decision_point, ref.variant, ref.pinned),
    ).fetchone()
    return None if row is None else bytes(row[0])


def drop_pinned(
    connection: psycopg.Connection[Any], archived_before: datetime, *, dry_run: bool = False
) -> tuple[int, int]:
    """Drop the pinned states of variants that were archived before a moment.

    MLflow still has those that it keeps. A variant in a plan cannot be archived.

    Returns
    -------
    How many, and their bytes.
    """
    _create_tables(connection)
    query = _OLD_PINNED if dry_run else _DROP_PINNED
    row = connection.execute(query, (archived_before,)).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def _create_tables(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute(  # the column that came last: all is there
        "SELECT FROM pg_attribute WHERE attrelid = to_regclass('policy_variants') "
        "AND attname = 'archived_at'"
    ).fetchone()
    if row is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLES)
