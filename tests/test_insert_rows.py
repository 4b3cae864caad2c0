"""Rows in PostgreSQL's binary format, against what a real PostgreSQL makes of them."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.settings import Settings
from serving.insert_rows import Rows

TYPES = {
    "a": "text",
    "b": "bytea",
    "c": "uuid",
    "d": "int8",
    "e": "float8",
    "f": "float8[]",
}
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
NUMBER = st.floats(allow_nan=False)
ROWS = st.lists(
    st.tuples(
        st.none() | TEXT,
        st.none() | st.binary(max_size=300),
        st.none() | st.binary(min_size=16, max_size=16),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | NUMBER,
        st.lists(st.none() | NUMBER, max_size=5),
    ),
    min_size=1,
    max_size=20,
)


@pytest.fixture
def connection(settings: Callable[..., Settings]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(settings().postgres_dsn(), autocommit=True) as made:
        columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
        made.execute(f"CREATE TABLE things (number serial, {columns})")
        yield made


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_postgresql_reads_back_what_was_inserted(connection, rows) -> None:
    connection.execute("TRUNCATE things")
    with connection.cursor(binary=True) as cursor:
        first, *types = TYPES.items()
        made = Rows(dict(types), [row[1:] for row in rows])
        made.add(*first, [row[0] for row in rows])
        made.insert(connection, "things")
        cursor.execute("SELECT a, b, c, d, e, f FROM things ORDER BY number")
        read = cursor.fetchall()
    assert read == [(a, b, c and uuid.UUID(bytes=c), d, e, f) for a, b, c, d, e, f in rows]


def test_a_refused_row_leaves_none_of_its_batch(connection) -> None:
    good, short = (bytes(16),), (b"too short",)
    with pytest.raises(psycopg.Error):
        Rows({"c": "uuid"}, [good, short]).insert(connection, "things")
    assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
