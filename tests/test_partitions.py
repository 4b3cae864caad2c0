import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.adoption import adopt
from feature_repo.archive import drop_before, export, retire
from feature_repo.partitions import ensure, partitions
from optimizer.errors import InvalidInput, Unavailable

DAY = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=number) for number in range(40)]
HOUR = timedelta(hours=1)


@pytest.fixture
def dsn(settings):
    return settings().postgres_dsn()


@pytest.fixture
def connection(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE events (at timestamptz NOT NULL, name text) PARTITION BY RANGE (at);"
            "CREATE INDEX events_name ON events (name, at)"
        )
        yield connection


def add(connection, *rows):
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO events VALUES (%s, %s)", rows)


def names(connection, table="events"):
    return sorted(name for (name,) in connection.execute(f"SELECT name FROM {table}"))


def ranges(connection):
    return [(one.low, one.high) for one in partitions(connection, "events")]


def test_partitions_cover_the_days_and_a_repeat_makes_none(connection):
    made = ensure(connection, "events", DAY[0] + HOUR, DAY[2] + HOUR)
    assert made == ["public.events_p20260301", "public.events_p20260302", "public.events_p20260303"]
    found = partitions(connection, "events")
    assert [(one.name, one.low, one.high) for one in found] == [
        ("public.events_p20260301", DAY[0], DAY[1]),
        ("public.events_p20260302", DAY[1], DAY[2]),
        ("public.events_p20260303", DAY[2], DAY[3]),
        ("public.events_default", None, None),
    ]
    assert [one.default for one in found] == [False, False, False, True]
    assert ensure(connection, "events", DAY[0], DAY[3]) == []


def test_rows_and_bytes_are_known_after_an_analysis(connection):
    ensure(connection, "events", DAY[0], DAY[1])
    assert partitions(connection, "events")[0].rows is None
    add(connection, (DAY[0], "a"), (DAY[0], "b"))
    connection.execute("ANALYZE events")
    first = partitions(connection, "events")[0]
    assert first.rows == 2 and first.bytes > 0


def test_rows_of_the_default_partition_move_into_the_one_made_for_them(connection):
    ensure(connection, "events", DAY[0], DAY[1])
    add(connection, (DAY[5], "first"), (DAY[6] - HOUR, "last"), (DAY[6], "next day"))
    assert len(names(connection, "events_default")) == 3
    ensure(connection, "events", DAY[5], DAY[6])
    assert names(connection, "events_p20260306") == ["first", "last"]
    assert names(connection, "events_default") == ["next day"]


def test_another_length_fills_only_what_is_open(connection):
    ensure(connection, "events", DAY[10], DAY[12])
    ensure(connection, "events", DAY[8], DAY[13], days=7)
    covered = ranges(connection)[:-1]
    assert all(high == low for (_, high), (low, _) in itertools.pairwise(covered))
    assert (DAY[10], DAY[11]) in covered and (DAY[11], DAY[12]) in covered
    assert covered[0][0] <= DAY[8] and covered[-1][1] >= DAY[13]


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/New_York"])
def test_bounds_are_read_right_whatever_the_session_says(connection, zone):
    connection.execute(f"SET timezone = '{zone}'")
    ensure(connection, "events", DAY[0], DAY[2])
    assert ranges(connection) == [(DAY[0], DAY[1]), (DAY[1], DAY[2]), (None, None)]
    assert ensure(connection, "events", DAY[0], DAY[2]) == []


def test_partitions_have_the_indexes_of_the_table(connection):
    ensure(connection, "events", DAY[0], DAY[1])
    query = "SELECT count(*) FROM pg_indexes WHERE tablename = %s"
    for table in ("events", "events_p20260301", "events_default"):
        assert connection.execute(query, [table]).fetchone() == (1,)


def test_two_may_make_partitions_at_once(dsn, connection):
    def run(_):
        with psycopg.connect(dsn) as other:
            return ensure(other, "events", DAY[0], DAY[12])

    with ThreadPoolExecutor(2) as pool:
        made = [name for names in pool.map(run, range(2)) for name in names]
    assert len(made) == len(set(made)) == 12


@pytest.mark.parametrize(
    ("table", "since", "until", "days", "field"),
    [
        ("nothing", DAY[0], DAY[1], 1, "table"),
        ("plain", DAY[0], DAY[1], 1, "table"),
        ("by_number", DAY[0], DAY[1], 1, "table"),
        ("events", DAY[0].replace(tzinfo=None), DAY[1], 1, "since"),
        ("events", DAY[0], DAY[0], 1, "until"),
        ("events", DAY[0], DAY[1], 0, "days"),
    ],
)
def test_what_cannot_be_partitioned_is_refused(connection, table, since, until, days, field):
    connection.execute(
        "CREATE TABLE plain (at timestamptz); "
        "CREATE TABLE by_number (number int) PARTITION BY RANGE (number)"
    )
    with pytest.raises(InvalidInput) as error:
        ensure(connection, table, since, until, days)
    assert error.value.field == field


def test_only_whole_partitions_are_dropped(connection):
    ensure(connection, "events", DAY[0], DAY[3])
    add(connection, (DAY[0], "a"), (DAY[1], "b"), (DAY[2], "c"), (DAY[30], "outside"))
    dropped = drop_before(connection, "events", DAY[1] + HOUR)
    assert [one.low for one in dropped] == [DAY[0]]
    assert names(connection) == ["b", "c", "outside"]
    assert drop_before(connection, "events", DAY[1] + HOUR) == []
    assert len(drop_before(connection, "events", DAY[39])) == 2
    assert names(connection) == ["outside"]


def test_whoever_locks_the_table_is_not_waited_for(dsn, connection):
    ensure(connection, "events", DAY[0], DAY[1])
    with psycopg.connect(dsn) as other:
        other.execute("SELECT * FROM events")
        with pytest.raises(Unavailable, match=r"public\.events, locked"):
            drop_before(connection, "events", DAY[1])
    assert [one.low for one in drop_before(connection, "events", DAY[1])] == [DAY[0]]


def test_an_open_transaction_is_refused(dsn, connection, tmp_path):
    with psycopg.connect(dsn) as other:
        other.execute("SELECT 1")
        with pytest.raises(InvalidInput, match="transaction"):
            retire(other, "events", DAY[1], tmp_path)


def test_every_type_survives_the_file(connection, tmp_path):
    connection.execute("SET timezone = 'Asia/Kathmandu'")
    connection.execute(
        "CREATE TABLE kinds (at timestamptz NOT NULL, id uuid, token bytea, parts float8[], "
        "words text[], note text, share float8, few float4, small int2, number int4, "
        "position bigint, yes bool, day date) PARTITION BY RANGE (at)"
    )
    ensure(connection, "kinds", DAY[0], DAY[1])
    rows = [
        (
            DAY[0] + timedelta(microseconds=1),
            uuid.UUID(int=7),
            b"\x00\xff\\x",
            [0.1, None, float("inf")],
            ["a", ""],
            'a "quoted",\nline \N{SNOWMAN}',
            1e-300,
            0.5,
            -3,
            2**31 - 1,
            -(2**63),
            True,
            DAY[0].date(),
        ),
        (DAY[0], None, b"", [], None, "", *[None] * 7),
    ]
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO kinds VALUES ({', '.join(['%s'] * 13)})", rows)
    file = export(connection, partitions(connection, "kinds")[0], tmp_path)
    table = pq.read_table(file)
    assert [tuple(row.values()) for row in table.to_pylist()] == rows
    assert table.schema.field("id").type == pa.uuid()
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")


def test_a_type_that_would_be_lost_is_refused_and_kept(connection, tmp_path):
    connection.execute("CREATE TABLE odd (at timestamptz, ip inet) PARTITION BY RANGE (at)")
    ensure(connection, "odd", DAY[0], DAY[1])
    with pytest.raises(InvalidInput, match=r"public\.odd_p20260301\.ip='inet'"):
        retire(connection, "odd", DAY[1], tmp_path)
    assert list(tmp_path.iterdir()) == [] and len(partitions(connection, "odd")) == 2


def test_a_repeated_export_gives_the_same_file(connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[1])
    add(connection, *((DAY[0] + timedelta(seconds=n), str(n)) for n in range(500)))
    first = export(connection, partitions(connection, "events")[0], tmp_path)
    content = first.read_bytes()
    assert export(connection, partitions(connection, "events")[0], tmp_path) == first
    assert first.read_bytes() == content and list(tmp_path.iterdir()) == [first]


def test_what_is_retired_is_in_files_and_gone(connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[3])
    add(connection, (DAY[0], "a"), (DAY[1], "b"), (DAY[1], "c"), (DAY[2], "d"))
    retired = retire(connection, "events", DAY[2], tmp_path / "new" / "folder")
    assert [pq.read_table(one.file).column("name").to_pylist() for one in retired] == [
        ["a"],
        ["b", "c"],
    ]
    assert [one.partition.low for one in retired] == [DAY[0], DAY[1]]
    assert names(connection) == ["d"]
    assert retire(connection, "events", DAY[2], tmp_path) == []


def test_without_a_folder_nothing_is_written(connection):
    ensure(connection, "events", DAY[0], DAY[1])
    ((_, file),) = retire(connection, "events", DAY[1], None)
    assert file is None and ranges(connection) == [(None, None)]


def test_late_rows_get_a_file_of_their_own(connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[2])
    add(connection, (DAY[0], "in time"))
    retire(connection, "events", DAY[2], tmp_path)
    add(connection, (DAY[0], "late"), (DAY[5], "stays"))
    (late,) = retire(connection, "events", DAY[3] + HOUR, tmp_path)
    assert late.partition.low == DAY[0]
    files = {path.name: names_in(path) for path in tmp_path.iterdir()}
    assert sorted(files.values()) == [[], ["in time"], ["late"]]
    assert names(connection) == ["stays"]


def names_in(file):
    return pq.read_table(file).column("name").to_pylist()


def test_two_may_retire_at_once(dsn, connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[6])
    rows = [(DAY[n % 6] + timedelta(seconds=n), f"{n:04}") for n in range(3000)]
    add(connection, *rows)

    def run(_):
        with psycopg.connect(dsn) as other:
            return retire(other, "events", DAY[6], tmp_path)

    with ThreadPoolExecutor(2) as pool:
        retired = [one for done in pool.map(run, range(2)) for one in done]
    assert sorted(one.partition.low for one in retired) == DAY[:6]
    kept = [name for one in retired for name in names_in(one.file)]
    assert sorted(kept) == [name for _, name in rows] and names(connection) == []


def test_a_row_that_comes_after_the_export_is_exported_too(dsn, connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[1])
    add(connection, (DAY[0], "early"))
    with psycopg.connect(dsn) as writer, psycopg.connect(dsn) as retiring:
        add(writer, (DAY[0], "uncommitted until it is exported"))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(retire, retiring, "events", DAY[1], tmp_path)
            deadline = time.monotonic() + 20
            while not list(tmp_path.glob("*.parquet")) and time.monotonic() < deadline:
                time.sleep(0.01)
            writer.commit()
            ((_, file),) = running.result()
    assert names_in(file) == ["early", "uncommitted until it is exported"]
    assert list(tmp_path.iterdir()) == [file]


def test_a_kill_half_way_loses_nothing_and_leaves_no_file(dsn, connection, tmp_path):
    ensure(connection, "events", DAY[0], DAY[1])
    connection.execute(
        "INSERT INTO events SELECT %s + n * interval '1 ms', md5(n::text) "
        "FROM generate_series(1, 1000000) n",
        [DAY[0]],
    )
    code = (
        "import sys, psycopg; from datetime import datetime; from pathlib import Path;"
        "from feature_repo.archive import retire;"
        "retire(psycopg.connect(sys.argv[1]), 'events', datetime.fromisoformat(sys.argv[2]),"
        " Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, dsn, DAY[1].isoformat(), str(tmp_path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 4 for path in tmp_path.glob("*.part")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    ((_, file),) = retire(connection, "events", DAY[1], tmp_path)
    assert pq.read_metadata(file).num_rows == 1_000_000
    assert list(tmp_path.iterdir()) == [file] and names(connection) == []


def old_table(connection):
    connection.execute(
        "CREATE TABLE old (at timestamptz NOT NULL, name text NOT NULL DEFAULT 'x', "
        "PRIMARY KEY (name, at)); CREATE INDEX old_time ON old (at)"
    )
    rows = [(DAY[0], "a"), (DAY[1], "b"), (DAY[9], "tomorrow")]
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO old VALUES (%s, %s)", rows)


def indexes(connection, table):
    query = "SELECT indexname FROM pg_indexes WHERE tablename = %s ORDER BY 1"
    return [name for (name,) in connection.execute(query, [table])]


def test_an_ordinary_table_becomes_the_oldest_partition(connection):
    old_table(connection)
    before = indexes(connection, "old")
    assert adopt(connection, "old", "at", DAY[9])
    ensure(connection, "old", DAY[9], DAY[10])
    assert names(connection, "old") == ["a", "b", "tomorrow"]
    assert names(connection, "old_old") == ["a", "b"]
    assert names(connection, "old_p20260310") == ["tomorrow"]
    assert indexes(connection, "old") == before == ["old_pkey", "old_time"]
    assert len(indexes(connection, "old_p20260310")) == 2
    first = partitions(connection, "old")[0]
    assert (first.name, first.low, first.high) == ("public.old_old", None, DAY[9])
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO old VALUES (%s, 'a')", [DAY[0]])
    assert not adopt(connection, "old", "at", DAY[9])
    drop_before(connection, "old", DAY[9])
    assert names(connection, "old") == ["tomorrow"] and indexes(connection, "old") == before


def test_two_may_adopt_at_once(dsn, connection):
    old_table(connection)
    barrier = threading.Barrier(2)

    def run(_):
        with psycopg.connect(dsn) as other:
            barrier.wait()
            return adopt(other, "old", "at", DAY[9])

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(run, range(2))) == [False, True]
    assert names(connection, "old") == ["a", "b", "tomorrow"]


def test_a_key_without_the_time_is_refused_and_nothing_changes(connection):
    connection.execute("CREATE TABLE keyed (at timestamptz NOT NULL, name text PRIMARY KEY)")
    with pytest.raises(InvalidInput, match="unique key keyed_pkey must contain at"):
        adopt(connection, "keyed", "at", DAY[1])
    assert indexes(connection, "keyed") == ["keyed_pkey"]


@pytest.mark.parametrize(
    ("name", "days", "window_s", "message"),
    [
        ("decisions_days", 8, 8 * 86400.0, "decisions_days=8 must be at least 9: .*'chat'"),
        ("rewards_days", 1, 86400.0, "rewards_days=1 must be at least 2"),
        ("features_days", 0, 60.0, "greater than or equal to 1"),
    ],
)
def test_days_kept_that_are_too_few_are_refused(settings, name, days, window_s, message):
    point = {
        "name": "chat",
        "arms": [{"model": "small"}],
        "attribution_window_s": window_s,
    }
    with pytest.raises(ValueError, match=message):
        settings(decision_points=[point], retention={name: days})
