"""What the ledger knows of decisions, read for people and reports (not by the learner)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd
import psycopg

from optimizer.records import Outcome
from serving.known_signals import real_values

__all__ = ["outcomes_frame", "recent_outcomes"]

_PIECE = 250


def recent_outcomes(
    connection: psycopg.Connection[Any], decision_point: str, limit: int
) -> list[Outcome]:
    """What is known of the decisions that the last ``limit`` events were about, newest first."""
    rows = connection.execute(
        "SELECT DISTINCT ON (decision_id) position, known_after FROM (SELECT decision_id, position,"
        " known_after FROM rewards WHERE decision_point = %s ORDER BY position DESC LIMIT %s) last "
        "ORDER BY decision_id, position DESC",
        (decision_point, limit),
    ).fetchall()
    return [
        Outcome(*real_values(known))
        for _, known in sorted(rows, reverse=True, key=lambda row: row[0])
    ]


def outcomes_frame(
    dsn: str, decision_point: str, start: datetime, end: datetime, newest: int | None = None
) -> pd.DataFrame:
    """Every decision that was served in a time span with what is known about its outcome.

    Parameters
    ----------
    start, end
        With time zone; the end is not included.
    newest
        Read at most so many, the newest.

    Returns
    -------
    One row a decision in time order: decided_at (UTC), model, role, propensity, policy_version,
    unit (a hash; where the caller named none, each decision is a unit of its own), quality,
    cost_usd, latency_s, feedback; NaN where unknown; proxied: whether a model predicted a quality
    where none was told. Such a quality is no evidence, so it counts as unknown here.
    """
    # Where `serving.tokens` keeps the unit; tokens of the first format have none.
    query = """
        SELECT d.decided_at, d.model, d.role, d.propensity, d.policy_version,
               ('x' || encode(CASE get_byte(d.token, 0)
                              WHEN 1 THEN substring(uuid_send(d.decision_id) from 1 for 8)
                              ELSE substring(d.token from 62 for 8) END, 'hex'))::bit(64)::bigint,
               CASE WHEN cardinality(r.known_after) = 4 THEN r.known_after[1] END,
               r.known_after[2], r.known_after[3], r.known_after[4],
               coalesce(cardinality(r.known_after) > 4, false)
        FROM (
            SELECT * FROM decisions
            WHERE decision_point = %s AND decided_at >= %s AND decided_at < %s
                AND role <> 'shadow'
            ORDER BY decided_at DESC, decision_id DESC LIMIT %s) d
        LEFT JOIN LATERAL (
            SELECT known_after FROM rewards r
            WHERE r.decision_id = d.decision_id AND r.decided_at = d.decided_at
            ORDER BY position DESC LIMIT 1) r ON true
        ORDER BY d.decided_at, d.decision_id
    """
    numbers = ["propensity", "policy_version", "quality", "cost_usd", "latency_s", "feedback"]
    columns = ["decided_at", "model", "role", *numbers[:2], "unit", *numbers[2:], "proxied"]
    pieces: list[pd.DataFrame] = []
    with psycopg.connect(dsn) as connection, connection.cursor("outcomes", binary=True) as cursor:
        cursor.execute(query, (decision_point, start, end, newest))
        # In pieces, since one long fetch would keep a replica's other threads from deciding.
        while not pieces or len(pieces[-1]) == _PIECE:
            pieces.append(pd.DataFrame(cursor.fetchmany(_PIECE), columns=columns, dtype=object))
    frame = pd.concat(pieces, ignore_index=True)
    frame["decided_at"] = pd.to_datetime(frame["decided_at"], utc=True)
    frame[numbers] = frame[numbers].astype(float)
    frame["proxied"] = frame["proxied"].astype(bool)
    frame["unit"] = frame["unit"].astype("int64")
    return frame
