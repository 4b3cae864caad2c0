"""The audit table: who changed what, why, and on which evidence. Rows are only ever added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

__all__ = ["AuditEntry", "record", "trail"]

_TABLE = """
CREATE TABLE IF NOT EXISTS audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    decision_point text NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    reason text NOT NULL,
    evidence jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_point ON audit (decision_point, id);
"""
_LOCK = 0x6C6C6D617564


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change.

    Attributes
    ----------
    actor
        Who: ``learner``, ``command``, ``http``, or the name of a flow.
    action
        What, as ``noun.verb``: ``canary.step``, ``experiment.start``, ``policy.rollback``.
    reason
        A sentence for people.
    evidence
        The figures that it rests on.
    """

    at: datetime
    decision_point: str
    actor: str
    action: str
    reason: str
    evidence: dict[str, Any]


def record(
    connection: psycopg.Connection[Any],
    decision_point: str,
    actor: str,
    action: str,
    reason: str,
    evidence: Mapping[str, Any],
) -> None:
    """Add an entry, within the caller's transaction if there is one."""
    _create_table(connection)
    connection.execute(
        "INSERT INTO audit (decision_point, actor, action, reason, evidence) "
        "VALUES (%s, %s, %s, %s, %s)",
        (decision_point, actor, action, reason, json.dumps(dict(evidence), default=str)),
    )


def trail(
    connection: psycopg.Connection[Any], decision_point: str, limit: int = 100
) -> list[AuditEntry]:
    """The newest entries of a decision point, newest first."""
    _create_table(connection)
    rows = connection.execute(
        "SELECT at, decision_point, actor, action, reason, evidence FROM audit "
        "WHERE decision_point = %s ORDER BY id DESC LIMIT %s",
        (decision_point, limit),
    ).fetchall()
    return [AuditEntry(*row) for row in rows]


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('audit')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
