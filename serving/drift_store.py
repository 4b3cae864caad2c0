"""What drift checks found, and what is still to be done about it, in PostgreSQL.

A finding is written down once with the action that is due, in one transaction with the results of
its window; acting takes it from there (`serving.drift_actions`). So whoever is killed between
leaves work that the next one does, and two who check the same window write the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import psycopg

from optimizer.drift_check import DriftCheck, Finding
from optimizer.drift_settings import DriftSettings

__all__ = ["create_tables", "drift_history", "online_alarms", "save_check"]

_TABLES = """
CREATE TABLE IF NOT EXISTS drift_results (
    decision_point text NOT NULL,
    window_end timestamptz NOT NULL,
    reference_rows bigint NOT NULL,
    current_rows bigint NOT NULL,
    result jsonb NOT NULL,
    PRIMARY KEY (decision_point, window_end)
);
CREATE TABLE IF NOT EXISTS drift_actions (
    decision_point text NOT NULL,
    window_end timestamptz NOT NULL,
    what text NOT NULL,
    action text NOT NULL,
    reason text NOT NULL,
    evidence jsonb NOT NULL,
    acted_at timestamptz,
    told_at timestamptz,
    PRIMARY KEY (decision_point, window_end, what)
);
"""
_LOCK = 0x6C6C6D6472
_LOCK_OF_POINTS = 0x6472
_KEPT = timedelta(days=90)


def save_check(
    connection: psycopg.Connection[Any],
    decision_point: str,
    window_end: datetime,
    check: DriftCheck,
    findings: Sequence[Finding],
    settings: DriftSettings,
) -> list[str]:
    """Write down a window's results and the actions that are due.

    Parameters
    ----------
    connection
        In autocommit mode.
    window_end
        Names the window; results of the same window are replaced, actions are kept.
    findings
        Those of the check, and others such as `online_alarms`.
    settings
        Rules and cooldown: an action is ``wait`` if the same kind of drift was acted upon less
        than that before.

    Returns
    -------
    For each finding, the action that was chosen for it now or before.
    """
    create_tables(connection)
    with connection.transaction():
        # One at a time for each decision point, so that two runs see each other's actions.
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK_OF_POINTS, decision_point)
        )
        connection.execute(
            "INSERT INTO drift_results VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (decision_point, window_end) DO UPDATE SET result = excluded.result, "
            "reference_rows = excluded.reference_rows, current_rows = excluded.current_rows",
            (
                decision_point,
                window_end,
                check.reference_rows,
                check.current_rows,
                msgspec.json.encode(check).decode(),
            ),
        )
        connection.execute(
            "DELETE FROM drift_results WHERE decision_point = %s AND window_end < %s",
            (decision_point, window_end - _KEPT),
        )
        return [
            _choose(connection, decision_point, window_end, finding, settings)
            for finding in findings
        ]


def _choose(
    connection: psycopg.Connection[Any],
    decision_point: str,
    window_end: datetime,
    finding: Finding,
    settings: DriftSettings,
) -> str:
    action: str = getattr(settings.rules, finding.what)
    cooldown = timedelta(seconds=settings.cooldown_s)
    recent = connection.execute(
        "SELECT FROM drift_actions WHERE decision_point = %s AND what = %s AND action <> 'wait' "
        "AND window_end < %s AND window_end > %s LIMIT 1",
        (decision_point, finding.what, window_end + cooldown, window_end - cooldown),
    ).fetchone()
    row = connection.execute(
        "INSERT INTO drift_actions (decision_point, window_end, what, action, reason, evidence) "
        "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (decision_point, window_end, what) "
        "DO UPDATE SET what = excluded.what RETURNING action",
        (
            decision_point,
            window_end,
            finding.what,
            "wait" if recent is not None else action,
            finding.reason,
            json.dumps(finding.evidence, default=str),
        ),
    ).fetchone()
    assert row is not None
    return str(row[0])


def online_alarms(
    connection: psycopg.Connection[Any], decision_point: str, start: datetime, end: datetime
) -> list[Finding]:
    """What the learner's detectors said in a span of time, as one finding or none."""
    row = connection.execute("SELECT to_regclass('audit')").fetchone()
    if row is None or row[0] is None:
        return []
    rows = connection.execute(
        "SELECT reason, evidence FROM audit WHERE decision_point = %s AND action = 'learner.drift' "
        "AND at >= %s AND at < %s ORDER BY id",
        (decision_point, start, end),
    ).fetchall()
    if not rows:
        return []
    reason = "; ".join(dict.fromkeys(reason for reason, _ in rows[-5:]))
    evidence: Mapping[str, Any] = {"alarms": [evidence for _, evidence in rows[-20:]]}
    return [Finding("online", f"{len(rows)} alarms of the learner: {reason}", dict(evidence))]


def drift_history(
    connection: psycopg.Connection[Any], decision_point: str, limit: int = 20
) -> list[dict[str, Any]]:
    """The newest windows with their results and actions, newest first."""
    create_tables(connection)
    rows = connection.execute(
        "SELECT window_end, result FROM drift_results WHERE decision_point = %s "
        "ORDER BY window_end DESC LIMIT %s",
        (decision_point, limit),
    ).fetchall()
    actions = connection.execute(
        "SELECT window_end, what, action, reason, acted_at, told_at FROM drift_actions "
        "WHERE decision_point = %s AND window_end = ANY(%s) ORDER BY what",
        (decision_point, [window_end for window_end, _ in rows]),
    ).fetchall()
    names = ("what", "action", "reason", "acted_at", "told_at")
    return [
        {
            "window_end": window_end,
            **result,
            "findings": [
                dict(zip(names, one[1:], strict=True)) for one in actions if one[0] == window_end
            ],
        }
        for window_end, result in rows
    ]


def create_tables(connection: psycopg.Connection[Any]) -> None:
    """Make the tables where there are none."""
    row = connection.execute("SELECT to_regclass('drift_actions')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLES)
