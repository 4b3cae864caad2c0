"""From an ordinary table to one that is partitioned by time, without a copy."""

from __future__ import annotations

from datetime import datetime

from psycopg import sql

from feature_repo.partitions import (
    NAME_LIMIT,
    Connection,
    changing,
    check_times,
    default_of,
    move_rows,
    parent_of,
    run,
)
from optimizer.errors import InvalidInput

__all__ = ["adopt"]

_OLD = "_old"

_ORDINARY = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relkind = 'r' AND NOT c.relispartition
"""
_INDEXES = """
SELECT c.oid, c.relname, i.indisunique AND NOT EXISTS (
    SELECT FROM pg_attribute a
    WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND a.attname = %s
) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s
"""
_PARENT_INDEX = """
SELECT relname FROM pg_class JOIN pg_inherits ON inhparent = pg_class.oid WHERE inhrelid = %s
"""


def adopt(connection: Connection, table: str, column: str, until: datetime) -> bool:
    """Put a partitioned table in the place of an ordinary one, which becomes its oldest partition.

    No row is copied, save those not before `until`, which the DEFAULT partition takes. The old
    table is read once, to check it. The new one has its columns, defaults, indexes and keys under
    the same names, but no triggers, grants or foreign keys.

    Parameters
    ----------
    connection
        All of it is one transaction.
    table
        Anything but an ordinary table is left as it is.
    column
        Of type timestamptz; the key of the new table, and so part of every unique key of the old.
    until
        Upper end of the old table's partition, with time zone: usually the coming midnight.

    Returns
    -------
    Whether there was anything to do.

    Raises
    ------
    InvalidInput
        If `until` has no zone, a unique key leaves `column` out, or `column` is of another type.
    Unavailable
        If somebody holds the table locked.
    """
    check_times(until=until)
    with connection.transaction():
        row = connection.execute(_ORDINARY, [table]).fetchone()
    if row is None:
        return False
    name = f"{row[1]}.{row[2]}"
    with changing(connection, name):
        row = connection.execute(_ORDINARY, [table]).fetchone()
        if row is None:  # another process was faster
            return False
        oid, schema, relation = row
        new, old = sql.Identifier(schema, relation), sql.Identifier(schema, relation + _OLD)
        run(connection, "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", new)
        indexes = connection.execute(_INDEXES, [column, oid]).fetchall()
        for _, index, lacks_column in indexes:
            if lacks_column:
                raise InvalidInput("table", name, f"its unique key {index} must contain {column}")
        run(connection, "ALTER TABLE {} RENAME TO {}", new, sql.Identifier(relation + _OLD))
        for _, index, _ in indexes:
            _rename_index(connection, schema, index, index[: NAME_LIMIT - len(_OLD)] + _OLD)
        run(
            connection,
            "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY) PARTITION BY RANGE ({})",
            *(new, old, sql.Identifier(column)),
        )
        default_of(connection, parent_of(connection, name), [])
        later = sql.SQL("({0} < {1}) IS NOT TRUE").format(sql.Identifier(column), until)
        move_rows(connection, oid, old, new, later)
        run(
            connection,
            "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM (MINVALUE) TO ({})",
            *(new, old, sql.Literal(until)),
        )
        made = []
        for index_oid, index, _ in indexes:
            row = connection.execute(_PARENT_INDEX, [index_oid]).fetchone()
            assert row is not None
            between = f"index_{index_oid}"  # the name PostgreSQL chose may be another one's
            _rename_index(connection, schema, row[0], between)
            made.append((between, index))
        for between, index in made:
            _rename_index(connection, schema, between, index)
    return True


def _rename_index(connection: Connection, schema: str, index: str, name: str) -> None:
    identifier = sql.Identifier(schema, index)
    run(connection, "ALTER INDEX {} RENAME TO {}", identifier, sql.Identifier(name))
