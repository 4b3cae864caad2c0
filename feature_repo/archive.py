"""Partitions whose time is over: written to parquet files, checked, and dropped.

A partition is dropped only if its file holds as many rows as it does at that moment, under a lock
that lets nobody write. A file's name has a mark of the very table it came from, so that rows that
arrive after their day was dropped make a file beside the first and never replace it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from psycopg.pq import TransactionStatus

from feature_repo.partitions import (
    Connection,
    Parent,
    Partition,
    changing,
    day_of,
    make,
    parent_of,
    partitions,
    uncovered,
)
from optimizer.errors import InvalidInput, Unavailable

__all__ = ["Retired", "drop_before", "export", "retire", "write_rows"]

_ROWS_AT_ONCE = 20_000
"""Also the rows of a row group: some tens of megabytes for rows of a hundred numbers."""

_TRIES = 3

_ARROW = {
    "bool": pa.bool_(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "text": pa.string(),
    "timestamptz": pa.timestamp("us", "UTC"),
    "uuid": pa.uuid(),
    "varchar": pa.string(),
}

# The database cluster and its table: a table that is made anew under the same name has another.
_IDENTITY = """
SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),
       %s::regclass::oid FROM pg_control_system()
"""


class Retired(NamedTuple):
    """A partition that was dropped, and the file that holds its rows now, if any."""

    partition: Partition
    file: Path | None


def drop_before(connection: Connection, table: str, before: datetime) -> list[Partition]:
    """Drop the partitions that end at or before a time, and no other row.

    Parameters
    ----------
    connection
        Without an open transaction: each partition is one of its own.
    table
        Partitioned by time.
    before
        With time zone. A partition that goes on after it stays whole, and so does the DEFAULT one.

    Returns
    -------
    Those that were dropped.

    Raises
    ------
    InvalidInput
        If an argument is wrong.
    Unavailable
        If somebody holds the table locked; what was dropped until then stays so.
    """
    parent = parent_of(connection, table)
    with _alone(connection, parent.name):
        over = _over(connection, parent, before)
        for partition in over:
            _drop(connection, parent, partition)
    return over


def export(connection: Connection, partition: Partition, folder: Path) -> Path:
    """Write a partition to a parquet file; a repeat gives the same file.

    The rows stream through a cursor of the server, so memory is bounded. The file gets its name
    when it is complete, checked and on the disk: a process killed before leaves a ``.part`` file,
    which the next try overwrites.

    Parameters
    ----------
    connection
        The rows are what one statement sees.
    partition
        One of `partitions`.
    folder
        Made if it is missing.

    Returns
    -------
    The file. Times are in microseconds and UTC.

    Raises
    ------
    InvalidInput
        If a column has a type that is not kept in parquet here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with connection.transaction():
        _lock(connection, "xact_lock", f"export of {partition.name}")
        identity = connection.execute(_IDENTITY, [partition.name]).fetchone()
        mark = hashlib.blake2b(repr(identity).encode(), digest_size=4).hexdigest()
        file = folder / f"{partition.name}-{mark}.parquet"
        part = file.with_suffix(".part")
        # Or a scan may begin where another one is, and a repeat gives another order.
        connection.execute("SET LOCAL synchronize_seqscans = off")
        try:
            query = sql.SQL("SELECT * FROM {}").format(partition.identifier)
            rows = write_rows(connection, query, part, partition.name)
            if (kept := pq.read_metadata(part).num_rows) != rows:
                raise OSError(f"{part} has {kept} rows of {rows}")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    _sync_folder(folder)
    return file


def retire(
    connection: Connection,
    table: str,
    before: datetime,
    folder: Path | None,
    needed: Callable[[Partition], bool] = lambda partition: False,
) -> list[Retired]:
    """Export what is over, then drop it; idempotent, and when two run at once one waits.

    Rows of the DEFAULT partition from days that are over get a partition first, so that they go
    too: they came after their day was dropped, or while nobody made partitions.

    Parameters
    ----------
    connection
        Without an open transaction: each partition is one of its own.
    table
        Partitioned by time.
    before
        With time zone. Partitions that end at or before it are over.
    folder
        Where files go, see `export`; None drops without a copy.
    needed
        Whether a partition must stay; asked once more after its rows were counted, so that it has
        seen each of those that go. It may read with the same connection.

    Returns
    -------
    What was dropped.

    Raises
    ------
    InvalidInput
        If an argument is wrong, or a column has a type that `export` refuses.
    Unavailable
        If somebody holds the table locked or keeps writing to what is over; what was retired until
        then stays so, and the rest is there for the next try.
    """
    parent = parent_of(connection, table)
    retired = []
    with _alone(connection, parent.name):
        _give_strays_a_partition(connection, parent, before)
        for partition in _over(connection, parent, before):
            if needed(partition):
                continue
            for _ in range(_TRIES):
                file = None if folder is None else export(connection, partition, folder)
                rows = _count(connection, partition, file)
                if needed(partition):
                    break
                if _drop(connection, parent, partition, rows):
                    retired.append(Retired(partition, file))
                    break
            else:
                raise Unavailable(f"{partition.name}, to which others still write,", 60)
    return retired


def _over(connection: Connection, parent: Parent, before: datetime) -> list[Partition]:
    if before.tzinfo is None:
        raise InvalidInput("before", before.isoformat(), "a time with its time zone")
    return [
        one
        for one in partitions(connection, parent.name)
        if not one.default and one.high is not None and one.high <= before
    ]


def _drop(
    connection: Connection, parent: Parent, partition: Partition, rows: int | None = None
) -> bool:
    """Drop a partition, unless it has other than so many rows."""
    with changing(connection, parent.name):
        # DROP takes this lock anyway (a DEFAULT partition rules out DETACH CONCURRENTLY). Taken
        # first, nobody adds a row after the count.
        lock = sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE")
        connection.execute(lock.format(parent.identifier))
        if rows is not None and _count(connection, partition, None) != rows:
            return False
        connection.execute(sql.SQL("DROP TABLE {}").format(partition.identifier))
    return True


def _count(connection: Connection, partition: Partition, file: Path | None) -> int:
    """Rows of a partition, or those that its file has."""
    if file is not None:
        return int(pq.read_metadata(file).num_rows)
    with connection.transaction():
        count = sql.SQL("SELECT count(*) FROM {}").format(partition.identifier)
        row = connection.execute(count).fetchone()
    return int(row[0]) if row else 0


def _give_strays_a_partition(connection: Connection, parent: Parent, before: datetime) -> None:
    found = partitions(connection, parent.name)
    default = next((one for one in found if one.default), None)
    if default is None:
        return
    time, end = sql.Identifier(parent.column), day_of(before)
    with connection.transaction():
        query = sql.SQL("SELECT min({0}) FROM {1} WHERE {0} < {2} AND {0} > '-infinity'")
        first = connection.execute(query.format(time, default.identifier, end)).fetchone()
    if first is None or first[0] is None:
        return
    has = sql.SQL("SELECT EXISTS (SELECT FROM {1} WHERE {0} >= {2} AND {0} < {3})")
    with changing(connection, parent.name):
        found = partitions(connection, parent.name)
        for low, high in uncovered(day_of(first[0]), end, found):
            row = connection.execute(has.format(time, default.identifier, low, high)).fetchone()
            if row == (True,):
                make(connection, parent, default, low, high)


def write_rows(connection: Connection, query: sql.Composed, part: Path, table: str) -> int:
    """Write what a query gives to a parquet file, row group by row group, and to the disk.

    Parameters
    ----------
    connection
        In a transaction.
    part
        Overwritten.
    table
        How the rows are called where a column is refused.

    Returns
    -------
    How many rows it were.

    Raises
    ------
    InvalidInput
        If a column has a type that is not kept in parquet here.
    """
    rows = 0
    with part.open("wb") as stream, connection.cursor("export", binary=True) as cursor:
        cursor.execute(query)
        schema = pa.schema(
            [
                (column.name, _arrow_type(connection, table, column))
                for column in cursor.description or ()
            ]
        )
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            while batch := cursor.fetchmany(_ROWS_AT_ONCE):
                columns = [
                    pa.array(values, field.type)
                    for values, field in zip(zip(*batch, strict=True), schema, strict=True)
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
                rows += len(batch)
        stream.flush()
        os.fsync(stream.fileno())
    return rows


def _arrow_type(connection: Connection, table: str, column: Any) -> pa.DataType:
    known = connection.adapters.types.get(column.type_code)
    kept = None if known is None else _ARROW.get(known.name)
    if known is None or kept is None:
        name = column.type_code if known is None else known.name
        field = f"{table}.{column.name}"
        raise InvalidInput(field, name, f"a column of type {', '.join(_ARROW)}, or an array of it")
    return pa.list_(kept) if column.type_code == known.array_oid else kept


@contextmanager
def _alone(connection: Connection, name: str) -> Iterator[None]:
    """Hold the table's retention for as long as the block runs or the connection lives."""
    if connection.info.transaction_status != TransactionStatus.IDLE:
        raise InvalidInput("connection", "in a transaction", "one without an open transaction")
    with connection.transaction():
        _lock(connection, "lock", f"retention of {name}")
    try:
        yield
    finally:
        if not connection.closed:
            with connection.transaction():
                _lock(connection, "unlock", f"retention of {name}")


def _lock(connection: Connection, how: str, name: str) -> None:
    connection.execute(f"SELECT pg_advisory_{how}(hashtextextended(%s, 0))", [name])


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
