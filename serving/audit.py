"""The audit table: who changed what, why, and on which evidence. Old rows go, none is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from feature_repo.archive import write_rows

__all__ = ["AuditEntry", "count_before", "drop_before", "record", "trail"]

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


def count_before(connection: psycopg.Connection[Any], before: datetime) -> int:
    """How many entries are older than a moment."""
    _create_table(connection)
    row = connection.execute("SELECT count(*) FROM audit WHERE at < %s", (before,)).fetchone()
    return 0 if row is None else int(row[0])


def drop_before(
    connection: psycopg.Connection[Any], before: datetime, folder: Path | None
) -> tuple[int, Path | None]:
    """Write entries older than a moment to a parquet file, then drop them.

    Of two at once one waits. A process killed between both leaves a file that the next replaces.

    Parameters
    ----------
    folder
        Made if it is missing; None drops without a copy.

    Returns
    -------
    How many went, and the file, if any.
    """
    _create_table(connection)
    old = sql.SQL("FROM audit WHERE at < {}").format(sql.Literal(before))
    with connection.transaction():
        # Nobody else drops, and nobody adds an entry of the past: what is written is what goes.
        connection.execute("LOCK TABLE audit IN SHARE ROW EXCLUSIVE MODE")
        row = connection.execute(sql.SQL("SELECT count(*), min(id) ") + old).fetchone()
        if row is None or not row[0]:
            return 0, None
        file = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"audit-{row[1]}.parquet"
            part = file.with_suffix(".part")
            query = sql.SQL(
                "SELECT id, at, decision_point, actor, action, reason, evidence::text AS evidence "
            )
            write_rows(connection, query + old + sql.SQL(" ORDER BY id"), part, "audit")
            part.replace(file)
        connection.execute(sql.SQL("DELETE ") + old)
    return int(row[0]), file


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('audit')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
