"""Feature layouts in PostgreSQL: those that decision tokens and policy variants were made with.

A layout is stored before anything uses it, so that a token can be read for as long as it is kept.
"""

from __future__ import annotations

from typing import Any

import psycopg

from optimizer.feature_schema import FeatureSchema
from optimizer.settings import DecisionPoint

__all__ = ["known_schemas", "policy_schema", "store_schema"]

_TABLE = """
CREATE TABLE IF NOT EXISTS feature_schemas (
    decision_point text NOT NULL,
    schema_id bigint NOT NULL,
    names text[] NOT NULL,
    groups int[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (decision_point, schema_id)
);
"""
_LOCK = 0x6C6C6D736368


def policy_schema(point: DecisionPoint, computed: FeatureSchema) -> FeatureSchema:
    """What new policy versions look at: all that is computed, less what the settings retire.

    Raises
    ------
    InvalidInput
        If the settings retire a column that is not computed.
    """
    return computed.without(point.retired_features)


def store_schema(
    connection: psycopg.Connection[Any], decision_point: str, schema: FeatureSchema
) -> None:
    """Keep a layout; done already is fine."""
    _create_table(connection)
    connection.execute(
        "INSERT INTO feature_schemas (decision_point, schema_id, names, groups) "
        "VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (decision_point, schema.schema_id, list(schema.names), list(schema.groups)),
    )


def known_schemas(
    connection: psycopg.Connection[Any], decision_point: str
) -> dict[int, FeatureSchema]:
    """Every layout that the decision point ever had, by its number."""
    _create_table(connection)
    rows = connection.execute(
        "SELECT schema_id, names, groups FROM feature_schemas WHERE decision_point = %s "
        "ORDER BY created_at, schema_id",
        (decision_point,),
    ).fetchall()
    return {number: FeatureSchema(tuple(names), tuple(groups)) for number, names, groups in rows}


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('feature_schemas')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
