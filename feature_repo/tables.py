"""The offline tables that Feast reads, as SQL made from the catalogue's columns.

Those that grow with time are partitioned by day, so that old rows can go by the day, see
`feature_repo.archive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from feature_repo.adoption import adopt
from feature_repo.catalogue import of_view
from feature_repo.partitions import Connection, day_of, ensure

__all__ = ["BY_DAY", "SCHEMA", "create_tables", "ensure_days", "table_sql"]

SCHEMA = "feast"

BY_DAY = ("arm_statistics", "arm_windows")
"""Tables that are partitioned by ``event_timestamp``."""

_AHEAD = timedelta(days=3)
"""As long the process that makes partitions may be away before rows go to the DEFAULT one."""


def create_tables(connection: Connection, schema: str, now: datetime) -> None:
    """Create what is missing, and partition a table of an earlier version; safe to repeat.

    Raises
    ------
    Unavailable
        If somebody holds a table locked that must be changed.
    """
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    for view in BY_DAY:
        adopt(connection, f"{schema}.{view}", "event_timestamp", day_of(now) + timedelta(days=1))
    for view in (*BY_DAY, "model_facts"):
        connection.execute(table_sql(schema, view))
    for view in BY_DAY:
        # What the values stand for in the ledger; no feature.
        connection.execute(f"ALTER TABLE {schema}.{view} ADD COLUMN IF NOT EXISTS position bigint")
    ensure_days(connection, schema, now)


def ensure_days(connection: Connection, schema: str, now: datetime) -> None:
    """Make the partitions of today and of some days ahead."""
    for view in BY_DAY:
        ensure(connection, f"{schema}.{view}", now, now + _AHEAD)


def table_sql(schema: str, view: str) -> str:
    """Statements that create a view's table, safe to repeat.

    A column that the catalogue gained since is added, empty in the rows that are there.

    Examples
    --------
    >>> "ADD COLUMN IF NOT EXISTS tier double precision" in table_sql("feast", "model_facts")
    True
    """
    table = f"{schema}.{view}"
    partitioned = " PARTITION BY RANGE (event_timestamp)" if view in BY_DAY else ""
    columns: Sequence[str] = [one.name for one in of_view(view)]
    added = "".join(
        f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} double precision;\n"
        for name in columns
    )
    return (
        f"CREATE TABLE IF NOT EXISTS {table} (\n"
        "    arm_key text NOT NULL,\n"
        "    event_timestamp timestamptz NOT NULL,\n"
        "    created_at timestamptz NOT NULL\n"
        f"){partitioned};\n{added}"
        f"CREATE INDEX IF NOT EXISTS {view}_arm_time ON {table} (arm_key, event_timestamp);\n"
    )
