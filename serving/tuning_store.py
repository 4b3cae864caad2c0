"""Where searches keep their trials: a schema of PostgreSQL that is Optuna's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg

__all__ = ["searching", "study_storage"]

_SCHEMA = "optuna"
_LOCK = 0x6F7475


def study_storage(dsn: str) -> str:
    """URL for Optuna's storage; makes the schema where it is missing.

    A search that is cut off goes on from its trials, whoever goes on with it.
    """
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (0x6C6C6D6F7475,))
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
    joint = "&" if "?" in dsn else "?"
    option = quote(f"-csearch_path={_SCHEMA}", safe="")
    return f"postgresql+psycopg://{dsn.partition('://')[2]}{joint}options={option}"


@contextmanager
def searching(dsn: str, study_name: str) -> Iterator[str]:
    """`study_storage` for one search at a time of that name; a second one waits for the first.

    It then finds all trials done. Without this, two would share their trials and each make others
    than it makes alone. PostgreSQL lets the next one in when a process dies.
    """
    storage = study_storage(dsn)
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (_LOCK, study_name))
        yield storage
