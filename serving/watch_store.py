"""The watch of each policy in PostgreSQL, beside its checkpoint, and the alerts of its alarms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import psycopg

from optimizer.learner_watch import Alarm
from serving import audit

__all__ = ["load", "record_alarms", "save"]

_TABLE = """
CREATE TABLE IF NOT EXISTS learner_watch (
    decision_point text NOT NULL,
    variant text NOT NULL,
    position bigint NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (decision_point, variant)
);
"""
_LOCK = 0x6C6C6D7761
_CALLED = {
    "reward": "reward",
    "residual": "reward minus what was predicted",
    "memory": "the share kept of what was learned",
}


def save(
    connection: psycopg.Connection[Any],
    decision_point: str,
    variant: str,
    position: int,
    state: bytes,
) -> None:
    """Keep a watch as of a position of the ledger, within the caller's transaction."""
    _create_table(connection)
    connection.execute(
        "INSERT INTO learner_watch VALUES (%s, %s, %s, %s) ON CONFLICT (decision_point, variant) "
        "DO UPDATE SET position = excluded.position, state = excluded.state",
        (decision_point, variant, position, state),
    )


def load(
    connection: psycopg.Connection[Any], decision_point: str, variant: str, position: int
) -> bytes | None:
    """The watch that belongs to a policy at this position, None if there is none."""
    _create_table(connection)
    row = connection.execute(
        "SELECT state FROM learner_watch WHERE decision_point = %s AND variant = %s "
        "AND position = %s",
        (decision_point, variant, position),
    ).fetchone()
    return None if row is None else bytes(row[0])


def record_alarms(
    connection: psycopg.Connection[Any],
    decision_point: str,
    variant: str,
    alarms: Iterable[Alarm],
    arms: dict[str, str],
) -> None:
    """Write an alert for each, within the transaction that saves the watch which raised them.

    So an alarm is told once: a learner that dies before that transaction raises it again, and one
    that dies after it does not.

    Parameters
    ----------
    arms
        What people call an arm, by its id in hexadecimal.
    """
    for alarm in alarms:
        who = f"of {arms.get(alarm.arm, alarm.arm)}" if alarm.arm else "of all arms together"
        what = _CALLED[alarm.stream]
        verdict = "predictions have become worse" if alarm.worse else "predictions hold"
        audit.record(
            connection,
            decision_point,
            "learner",
            "learner.drift",
            f"{what} {who} went from {alarm.before:.3f} to {alarm.after:.3f}; {verdict}",
            {"variant": variant, **msgspec.to_builtins(alarm), "worse": alarm.worse},
        )


def _create_table(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute("SELECT to_regclass('learner_watch')").fetchone()
    if row is not None and row[0] is not None:
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(_TABLE)
