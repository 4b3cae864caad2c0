"""The log of a decision point, read for off-policy evaluation: decisions and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from optimizer.errors import InvalidToken
from optimizer.feature_schema import Translations
from optimizer.features import unpack
from optimizer.offpolicy.logged import LoggedDecisions, LoggedRow
from optimizer.records import Arm, Outcome
from serving.known_signals import real_values
from serving.tokens import FALLBACK, ROLES, Decision, parse

__all__ = ["LiveLog", "learned_until", "read_log", "reason_of_no_use"]

_CHUNK = 5000
_UNKNOWN = (None, None, None, None)

_COUNT = """
SELECT count(*) FROM decisions WHERE decision_point = %s AND decided_at >= %s AND decided_at < %s
    AND role <> 'shadow'
"""
_NEWEST = """
SELECT d.token, r.known_after
FROM (
    SELECT decision_id, decided_at, token FROM decisions
    WHERE decision_point = %s AND decided_at >= %s AND decided_at < %s AND role <> 'shadow'
    ORDER BY decided_at DESC, decision_id DESC LIMIT %s
) d
LEFT JOIN LATERAL (
    SELECT known_after FROM rewards
    WHERE decision_id = d.decision_id AND decided_at = d.decided_at
    ORDER BY position DESC LIMIT 1
) r ON true
ORDER BY d.decided_at, d.decision_id
"""


@dataclass(frozen=True)
class LiveLog:
    """What was read.

    Attributes
    ----------
    decisions
        In time order; None where there is none.
    logged
        Decisions in the span of time, also those that were not read.
    skipped
        Read but of no use, by reason: ``fallback`` (not drawn at random), ``arm`` (no longer
        configured), ``schema`` (a layout of features that is not known), ``token`` (of another
        version).
    """

    decisions: LoggedDecisions | None
    logged: int
    skipped: Counter[str]


def read_log(
    connection: psycopg.Connection[Any],
    decision_point: str,
    arms: Sequence[Arm],
    arm_names: Sequence[str],
    layouts: Translations,
    start: datetime,
    end: datetime,
    *,
    limit: int = 200_000,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> LiveLog:
    """The newest decisions of a span of time, each with the newest of what is known about it.

    Parameters
    ----------
    connection
        To the ledger's database.
    arms, arm_names
        Of the decision point, in the same order.
    layouts
        Reads decisions of every known layout in the one that is asked for.
    start, end
        With time zone; the end is not included.
    limit
        Most decisions to read, 1 or more.
    on_step
        Called with the number of decisions read and of all.
    """
    span = (decision_point, start, end)
    counted = connection.execute(_COUNT, span).fetchone()
    logged = int(counted[0]) if counted else 0
    index = {arm.id: position for position, arm in enumerate(arms)}
    rows: list[LoggedRow] = []
    skipped: Counter[str] = Counter()
    total, done = min(logged, limit), 0
    with connection.transaction(), connection.cursor(name="logged", binary=True) as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(_NEWEST, (*span, limit))
        for token, known in cursor:
            done += 1
            on_step(min(done, total), total)
            try:
                decision = parse(bytes(token))
            except InvalidToken:
                skipped["token"] += 1
                continue
            reason = reason_of_no_use(decision, index, layouts)
            if reason is not None:
                skipped[reason] += 1
                continue
            rows.append(
                LoggedRow(
                    layouts.read(decision.schema_id, unpack(decision.features)),
                    index[decision.arm_id],
                    decision.propensity,
                    decision.decided_at,
                    Outcome(*real_values(known or _UNKNOWN)),
                    ROLES[decision.role],
                )
            )
    rows.sort(key=lambda row: row.decided_at)
    decisions = LoggedDecisions.from_rows(rows, tuple(arm_names)) if rows else None
    return LiveLog(decisions, logged, skipped)


def learned_until(
    connection: psycopg.Connection[Any], decision_point: str, position: int
) -> datetime | None:
    """When the last of the first ``position`` rewards was stored; None if there is none.

    A decision made after it is none that a policy at that position has learned from.
    """
    row = connection.execute(
        "SELECT max(received_at) FROM rewards WHERE decision_point = %s AND position <= %s",
        (decision_point, position),
    ).fetchone()
    return row[0] if row else None


def reason_of_no_use(
    decision: Decision, index: dict[bytes, int], layouts: Translations
) -> str | None:
    """Why a decision is of no use, or None."""
    if decision.role == FALLBACK:
        return "fallback"
    if decision.arm_id not in index:
        return "arm"
    return None if decision.schema_id in layouts else "schema"
