"""The decision log, the ledger and facts about responses, by the week of the decision.

A decision's line and all that is told about it have one time, which every token carries, so they
lie in the same week: what is known of a decision is looked up in one partition, and a decision goes
with all that was ever said about it. Weeks rather than days, since the learner's ordered read
merges all partitions and pays for each of them.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.errors import LockNotAvailable

from feature_repo.adoption import adopt
from feature_repo.partitions import ensure
from optimizer.errors import TooLate, Unavailable
from serving.tokens import TIME_AT

__all__ = [
    "DAYS",
    "TABLES",
    "adopt_tables",
    "by_week",
    "decided_at",
    "ensure_weeks",
    "partitioned",
    "refuse_late",
]

TABLES = ("decisions", "rewards", "response_facts")
"""All by their column ``decided_at``."""

DAYS = 7

_WEEK = timedelta(days=DAYS)
_AHEAD = 2 * _WEEK
"""So long nobody needs to make partitions; after that rows go to the DEFAULT one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# PostgreSQL counts from here, in microseconds: with its arithmetic the times are the same.
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
_ORIGIN_S = _ORIGIN.timestamp()
_FIRST_S, _LAST_S = 1.0, datetime(9999, 1, 1, tzinfo=UTC).timestamp()

_ORDINARY = "SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass(%s)"


def decided_at(token: bytes) -> datetime:
    """When the decision of a stored token was made, as the decision log has it.

    A token without a time that a calendar has is of the year 1970.

    Examples
    --------
    >>> decided_at(bytes(18) + struct.pack(">d", 1.7e9)).isoformat()
    '2023-11-14T22:13:20+00:00'
    >>> decided_at(b"none").year
    1970
    """
    if len(token) < TIME_AT.stop:
        return _EPOCH
    (seconds,) = struct.unpack_from(">d", token, TIME_AT.start)
    if not _FIRST_S <= seconds <= _LAST_S:
        return _EPOCH
    return _ORIGIN + timedelta(microseconds=round((seconds - _ORIGIN_S) * 1e6))


def refuse_late(at: float, now_s: float, days: int) -> None:
    """Refuse a reward for a decision that is older than what the ledger keeps.

    What was said about it before may be gone, so a repeat could not be told from news.

    Parameters
    ----------
    at
        Unix time of the decision in seconds.
    now_s
        Unix time in seconds.
    days
        `RetentionSettings.ledger_days`.

    Raises
    ------
    TooLate
    """
    if now_s - at > days * 86400.0:
        when = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        remedy = (
            f"the decision was made at {when}, and the ledger keeps {days} days; raise "
            "retention.rewards_days to take later rewards"
        )
        raise TooLate("decision_id", when, remedy)


def by_week(
    decisions: Iterable[tuple[bytes, datetime]],
) -> Iterator[tuple[datetime, datetime, set[str]]]:
    """Decisions by the week they were made in.

    Parameters
    ----------
    decisions
        Pairs of decision id and what `decided_at` says.

    Yields
    ------
    Start and end of a week and the decision ids, in hexadecimal.
    """
    weeks: dict[int, set[str]] = defaultdict(set)
    for decision_id, time in decisions:
        weeks[(time - _EPOCH) // _WEEK].add(decision_id.hex())
    for week, ids in weeks.items():
        yield _EPOCH + week * _WEEK, _EPOCH + (week + 1) * _WEEK, ids


def partitioned(connection: psycopg.Connection[Any]) -> bool:
    """Whether all tables are there and partitioned."""
    row = connection.execute(
        "SELECT count(*) FROM pg_partitioned_table "
        "WHERE partrelid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)",
        (list(TABLES),),
    ).fetchone()
    return row == (len(TABLES),)


def adopt_tables(connection: psycopg.Connection[Any], now: datetime) -> None:
    """Make tables of a version without partitions the oldest partition; nothing if there are none.

    The rewards get the time of their decision from their tokens, for which the table is written
    once more. Call it in the transaction that creates the tables.

    Raises
    ------
    LockNotAvailable
        If somebody holds a table locked.
    """
    connection.execute("SET LOCAL statement_timeout = 0")
    week = (now - _EPOCH) // _WEEK
    until = _EPOCH + (week + 1) * _WEEK
    for table in TABLES:
        if connection.execute(_ORDINARY, (table,)).fetchone() != (True,):
            continue
        if table == "rewards":
            connection.execute(_GIVE_TIMES)
        try:
            adopt(connection, table, "decided_at", until)
        except Unavailable as error:
            raise LockNotAvailable(str(error)) from error


def ensure_weeks(connection: psycopg.Connection[Any], now: datetime) -> list[str]:
    """Make the partitions of this week and of two more; gives those that were made.

    Rows of the DEFAULT partition move into the partition that is made for them.

    Raises
    ------
    Unavailable
        If somebody holds a table locked.
    """
    made = []
    for table in TABLES:
        made += ensure(connection, table, now, now + _AHEAD, days=DAYS)
    return made


def _bits(seconds: float) -> int:
    return int.from_bytes(struct.pack(">d", seconds), "big")


# PostgreSQL has no cast from bytes to float8: 1 + mantissa, times 2 to the exponent, is exact. The
# bits of positive numbers are in the order of the numbers.
_GIVE_TIMES = f"""
ALTER TABLE rewards DROP CONSTRAINT IF EXISTS rewards_pkey;
ALTER TABLE rewards ADD COLUMN IF NOT EXISTS decided_at timestamptz;
CREATE FUNCTION pg_temp.token_time(token bytea) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN length(token) >= {TIME_AT.stop}
            AND bits BETWEEN {_bits(_FIRST_S)} AND {_bits(_LAST_S)}
        THEN to_timestamp((1 + (bits & {2**52 - 1}) / {2**52}::float8)
             * power(2::float8, (bits >> 52)::float8 - 1023))
        ELSE to_timestamp(0) END
    FROM (SELECT ('x' || encode(substring(token FROM {TIME_AT.start + 1} FOR 8), 'hex'))
        ::bit(64)::bigint AS bits) AS found
$$;
ALTER TABLE rewards ALTER COLUMN decided_at TYPE timestamptz USING pg_temp.token_time(token),
    ALTER COLUMN decided_at SET NOT NULL;
DROP FUNCTION pg_temp.token_time(bytea);
"""  # noqa: S608  (numbers of ours)
