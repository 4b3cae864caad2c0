"""The offline tables that Feast reads, as SQL made from the catalogue's columns."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.catalogue import of_view

__all__ = ["SCHEMA", "table_sql"]

SCHEMA = "feast"


def table_sql(schema: str, view: str) -> str:
    """Statements that create a view's table, safe to repeat.

    A column that the catalogue gained since is added, empty in the rows that are there.

    Examples
    --------
    >>> "ADD COLUMN IF NOT EXISTS tier double precision" in table_sql("feast", "model_facts")
    True
    """
    table = f"{schema}.{view}"
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
        f");\n{added}"
        f"CREATE INDEX IF NOT EXISTS {view}_arm_time ON {table} (arm_key, event_timestamp);\n"
    )
