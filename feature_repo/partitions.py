"""Tables of PostgreSQL that are partitioned by time: partitions listed, and made ahead.

PostgreSQL's own range partitions by one column of type timestamptz, and a DEFAULT partition that
takes what fits into no other. Old rows go by dropping a whole partition, which costs the same for
ten rows as for ten million, leaves nothing for VACUUM and no hole in an index; see
`feature_repo.archive`. Bounds are midnights of UTC.

Locks are taken from the parent to the child, as PostgreSQL does, and no function waits for one
longer than `LOCK_WAIT_S`: whoever waits for a strong lock makes all others wait behind it. Making a
partition holds up neither writers nor readers of the others, only those of the DEFAULT partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.errors import LockNotAvailable

from optimizer.errors import InvalidInput, Unavailable

__all__ = [
    "LOCK_WAIT_S",
    "NAME_LIMIT",
    "Connection",
    "Parent",
    "Partition",
    "changing",
    "check_times",
    "day_of",
    "default_of",
    "ensure",
    "make",
    "move_rows",
    "parent_of",
    "partitions",
    "run",
    "uncovered",
]

Connection = psycopg.Connection[Any]

LOCK_WAIT_S = 3

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAME_LIMIT = 63
"""Bytes of a name in PostgreSQL."""

_PARENT = """
SELECT c.oid, n.nspname, c.relname, a.attname
FROM pg_partitioned_table p
JOIN pg_class c ON c.oid = p.partrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
WHERE c.oid = to_regclass(%s) AND p.partstrat = 'r' AND p.partnatts = 1
  AND a.atttypid = 'timestamptz'::regtype
"""
# The server reads its own text of a bound: only it knows the session's time zone.
_PARTITIONS = r"""
SELECT n.nspname || '.' || c.relname, bound = 'DEFAULT',
       (regexp_match(bound, 'FROM \(''([^'']+)''\)'))[1]::timestamptz AS low,
       (regexp_match(bound, 'TO \(''([^'']+)''\)'))[1]::timestamptz,
       nullif(c.reltuples, -1)::bigint, coalesce(pg_total_relation_size(c.oid), 0)
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
WHERE i.inhparent = %s AND bound IS NOT NULL
ORDER BY 2, low NULLS FIRST
"""
_COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition.

    Attributes
    ----------
    name
        With its schema.
    default
        Whether it takes what fits into no other.
    low, high
        It holds ``low <= time < high``, in UTC; None where it has no such end.
    rows
        As estimated when PostgreSQL last analysed it; None before that.
    bytes
        On disk, with its indexes.
    """

    name: str
    default: bool
    low: datetime | None
    high: datetime | None
    rows: int | None
    bytes: int

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(*self.name.split("."))


@dataclass(frozen=True, slots=True)
class Parent:
    """A partitioned table: its number in the catalogue of PostgreSQL, its names and its key."""

    oid: int
    schema: str
    table: str
    column: str

    @property
    def name(self) -> str:
        """With the schema."""
        return f"{self.schema}.{self.table}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(self.schema, self.table)


def parent_of(connection: Connection, table: str) -> Parent:
    """Look a partitioned table up.

    Raises
    ------
    InvalidInput
        If there is none of that name, or its key is another one.
    """
    with connection.transaction():
        row = connection.execute(_PARENT, [table]).fetchone()
    if row is None:
        remedy = "a table that is partitioned by the range of one column of type timestamptz"
        raise InvalidInput("table", table, remedy)
    return Parent(*row)


def partitions(connection: Connection, table: str) -> list[Partition]:
    """All partitions of a table by time, the DEFAULT partition last.

    Raises
    ------
    InvalidInput
        If it is no table that is partitioned by time.
    """
    parent = parent_of(connection, table)
    with connection.transaction():
        rows = connection.execute(_PARTITIONS, [parent.oid]).fetchall()
    return [
        Partition(name, default, low and low.astimezone(UTC), high and high.astimezone(UTC), *size)
        for name, default, low, high, *size in rows
    ]


def ensure(
    connection: Connection, table: str, since: datetime, until: datetime, days: int = 1
) -> list[str]:
    """Make the partitions that are missing; safe to repeat, and from two processes.

    Rows of the DEFAULT partition move into the partition that is made for them. Partitions of
    another length, made before `days` was changed, stay: only what they leave open is filled.

    Parameters
    ----------
    connection
        Each partition is a transaction of its own, unless one is open already.
    table
        Partitioned by time, as "schema.table" or as the search path finds it.
    since, until
        With time zone. The partitions cover ``since <= time < until`` at least.
    days
        Length of a partition, from 1 to 366, counted from 1 January 1970.

    Returns
    -------
    Names of those that were made.

    Raises
    ------
    InvalidInput
        If a time has no zone, `until` is not after `since`, or `days` or `table` is wrong.
    Unavailable
        If somebody holds the table locked.
    """
    check_times(since=since, until=until)
    if since >= until:
        raise InvalidInput("until", until.isoformat(), f"after since={since.isoformat()}")
    if not 1 <= days <= 366:
        raise InvalidInput("days", days, "from 1 to 366")
    parent = parent_of(connection, table)
    made: list[str] = []
    low = _EPOCH + (day_of(since) - _EPOCH) // timedelta(days) * timedelta(days)
    while low < until:
        high = low + timedelta(days)
        if _lacks(partitions(connection, table), low, high):
            with changing(connection, parent.name):
                found = partitions(connection, table)  # another process may have been faster
                default = default_of(connection, parent, found)
                gaps = uncovered(low, high, found)
                made += [make(connection, parent, default, *gap) for gap in gaps]
        low = high
    return made


def uncovered(
    low: datetime, high: datetime, found: Sequence[Partition]
) -> list[tuple[datetime, datetime]]:
    """The parts of a range that no partition covers, in order; the DEFAULT partition covers none.

    Examples
    --------
    >>> day = [datetime(2026, 1, number, tzinfo=UTC) for number in range(1, 8)]
    >>> second = Partition("public.p", False, day[1], day[2], None, 0)
    >>> [(low.day, high.day) for low, high in uncovered(day[0], day[6], [second])]
    [(1, 2), (3, 7)]
    """
    gaps: list[tuple[datetime, datetime]] = []
    for one in found:
        if one.default:
            continue
        if one.low is not None and low < one.low:
            gaps.append((low, min(one.low, high)))
        low = high if one.high is None else max(low, one.high)
        if low >= high:
            break
    if low < high:
        gaps.append((low, high))
    return [(start, end) for start, end in gaps if start < end]


def make(
    connection: Connection, parent: Parent, default: Partition, low: datetime, high: datetime
) -> str:
    """Make one partition and move the rows of the DEFAULT partition that belong there.

    It is filled before it is attached: PostgreSQL refuses a partition for which the DEFAULT
    partition still has rows. Call it within `changing`, for a range that is `uncovered`.
    """
    clock = f"{low:_%H%M%S}" if low != day_of(low) else ""
    name = f"{parent.table}_p{low:%Y%m%d}{clock}"
    if len(name.encode()) > NAME_LIMIT:
        raise InvalidInput("table", parent.table, f"a name of {NAME_LIMIT - 17} bytes at most")
    new = sql.Identifier(parent.schema, name)
    # ATTACH takes these locks anyway. Taken first, nobody writes between the move and it.
    run(connection, "LOCK TABLE ONLY {} IN SHARE UPDATE EXCLUSIVE MODE", parent.identifier)
    run(connection, "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", default.identifier)
    run(
        connection,
        "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY)",
        *(new, parent.identifier),
    )
    where = sql.SQL("{0} >= {1} AND {0} < {2}").format(sql.Identifier(parent.column), low, high)
    move_rows(connection, parent.oid, default.identifier, new, where)
    run(
        connection,
        "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})",
        *(parent.identifier, new, sql.Literal(low), sql.Literal(high)),
    )
    return f"{parent.schema}.{name}"


@contextmanager
def changing(connection: Connection, name: str) -> Iterator[None]:
    """One transaction that alone changes the partitions of a table, and waits for no lock long.

    Raises
    ------
    Unavailable
        If somebody holds what is needed locked.
    """
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'")
            query = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
            connection.execute(query, [f"partitions of {name}"])
            yield
    except LockNotAvailable as error:
        raise Unavailable(f"{name}, locked for {LOCK_WAIT_S} s by others,", 60) from error


def day_of(at: datetime) -> datetime:
    """The midnight in UTC at or before a time.

    Examples
    --------
    >>> day_of(datetime(2026, 11, 24, 6, 52, tzinfo=UTC)).isoformat()
    '2026-11-24T00:00:00+00:00'
    """
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _lacks(found: Sequence[Partition], low: datetime, high: datetime) -> bool:
    return not any(one.default for one in found) or bool(uncovered(low, high, found))


def default_of(connection: Connection, parent: Parent, found: Sequence[Partition]) -> Partition:
    """The DEFAULT partition, made if it is missing."""
    for one in found:
        if one.default:
            return one
    made = Partition(f"{parent.name}_default", True, None, None, None, 0)
    run(
        connection,
        "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY)",
        *(made.identifier, parent.identifier),
    )
    statement = "ALTER TABLE {} ATTACH PARTITION {} DEFAULT"
    run(connection, statement, parent.identifier, made.identifier)
    return made


def move_rows(
    connection: Connection,
    oid: int,
    source: sql.Identifier,
    target: sql.Identifier,
    where: sql.Composed,
) -> None:
    """Move rows between tables with the columns of the table `oid`."""
    names = [sql.Identifier(name) for (name,) in connection.execute(_COLUMNS, [oid])]
    columns = sql.SQL(", ").join(names)
    run(
        connection,
        "WITH moved AS (DELETE FROM {} WHERE {} RETURNING {}) "
        "INSERT INTO {} ({}) SELECT {} FROM moved",
        *(source, where, columns, target, columns, columns),
    )


def run(connection: Connection, statement: str, *parts: sql.Composable) -> None:
    """Execute a statement with names and literals in its places."""
    connection.execute(sql.SQL(statement).format(*parts))


def check_times(**times: datetime) -> None:
    """Refuse a time without zone, naming its field."""
    for field, at in times.items():
        if at.tzinfo is None:
            raise InvalidInput(field, at.isoformat(), "a time with its time zone")
