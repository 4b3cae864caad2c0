"""The partitions of the decision log and the ledger, on a real PostgreSQL."""

import re
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.partitions import partitions
from optimizer.errors import TooLate
from optimizer.feature_schema import FeatureSchema
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger, ledger_partitions, plans
from serving.ledger import RewardEvent
from serving.retention import retire_ledger
from serving.reward_writer import connect

NOW = datetime.now(UTC)
SCHEMA = FeatureSchema(("constant",), (0,))
MONTHS_AGO = NOW - timedelta(days=80)

# As the version before partitions had them.
OLD_TABLES = """
CREATE TABLE ledger_heads (decision_point text PRIMARY KEY, position bigint NOT NULL);
CREATE TABLE rewards (
    decision_point text NOT NULL,
    position bigint NOT NULL,
    decision_id uuid NOT NULL,
    event_id text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    quality float8, cost_usd float8, latency_s float8, feedback float8,
    known_before float8[] NOT NULL,
    known_after float8[] NOT NULL,
    token bytea NOT NULL,
    PRIMARY KEY (decision_point, position)
);
CREATE INDEX rewards_decision ON rewards (decision_id, position);
CREATE TABLE decisions (
    decision_point text NOT NULL,
    decision_id uuid NOT NULL,
    decided_at timestamptz NOT NULL,
    model text NOT NULL,
    role text NOT NULL,
    propensity float8 NOT NULL,
    policy_version bigint NOT NULL,
    token bytea NOT NULL
);
CREATE INDEX decisions_time ON decisions (decision_point, decided_at);
CREATE TABLE decision_counts (decision_point text PRIMARY KEY, decisions bigint NOT NULL);
CREATE TABLE policy_checkpoints (
    decision_point text NOT NULL,
    variant text NOT NULL,
    lineage text NOT NULL,
    position bigint NOT NULL,
    state bytea NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (decision_point, variant)
);
"""


@pytest.fixture
def dsn(settings: Callable[..., Settings]) -> str:
    return settings().postgres_dsn()


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(dsn) as made:
        yield made


def token(decision: int, at: datetime) -> bytes:
    return bytes(2) + uuid.UUID(int=decision).bytes + struct.pack(">d", at.timestamp())


def event(decision: int, at: datetime, quality: float) -> RewardEvent:
    decision_id = uuid.UUID(int=decision).bytes
    return RewardEvent(
        "chat", decision_id, "", Outcome(quality=quality), False, token(decision, at)
    )


def table_of(connection: psycopg.Connection[Any], decision: int) -> str:
    row = connection.execute(
        "SELECT tableoid::regclass::text FROM rewards WHERE decision_id = %s",
        (uuid.UUID(int=decision),),
    ).fetchone()
    assert row is not None
    return str(row[0])


def old_tables(connection: psycopg.Connection[Any], rows: int) -> None:
    """Two decision points, decisions of the last hundred days and one of an unreadable token."""
    connection.execute(OLD_TABLES)
    with connection.cursor() as cursor:
        for number in range(rows):
            at = NOW - timedelta(hours=number * 2400 / rows, microseconds=number)
            raw = token(number, at) if number else b"short"
            key = uuid.UUID(int=number)
            name = ("chat", "search")[number % 2]
            cursor.execute(
                "INSERT INTO decisions VALUES (%s, %s, to_timestamp(%s), 'm', 'champion', 1, 0, "
                "%s)",
                (name, key, at.timestamp(), raw),
            )
            cursor.execute(
                "INSERT INTO rewards VALUES (%s, %s, %s, '', now(), 0.5, NULL, NULL, NULL, "
                "'{NULL,NULL,NULL,NULL}', '{0.5,NULL,NULL,NULL}', %s)",
                (name, number // 2 + 1, key, raw),
            )
    connection.execute("INSERT INTO ledger_heads VALUES ('chat', %s)", (rows // 2,))
    connection.execute("INSERT INTO ledger_heads VALUES ('search', %s)", (rows // 2,))


def everything(connection: psycopg.Connection[Any]) -> tuple[list[Any], list[Any]]:
    columns = "decision_point, position, decision_id, event_id, received_at, known_after, token"
    return (
        connection.execute(f"SELECT {columns} FROM rewards ORDER BY 1, 2").fetchall(),
        connection.execute("SELECT * FROM decisions ORDER BY 1, 2").fetchall(),
    )


@given(st.floats(1.0, 4e9))
def test_the_time_of_a_token_is_what_the_calendar_says(seconds: float) -> None:
    found = ledger_partitions.decided_at(bytes(18) + struct.pack(">d", seconds))
    assert abs(found.timestamp() - seconds) < 2e-6


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.7e9, 0.0, 1e300])
def test_a_time_that_no_calendar_has_is_1970(seconds: float) -> None:
    assert ledger_partitions.decided_at(bytes(18) + struct.pack(">d", seconds)).year == 1970


def test_tables_without_partitions_are_taken_over_without_loss(connection, dsn) -> None:
    old_tables(connection, 200)
    before = everything(connection)
    with ThreadPoolExecutor(4) as pool:  # four processes start at once

        def start(_: int) -> None:
            with connect(dsn) as mine:
                ledger.create_tables(mine)

        list(pool.map(start, range(4)))
    assert everything(connection) == before
    assert ledger_partitions.partitioned(connection)
    for table in ("decisions", "rewards"):
        (oldest, *_) = partitions(connection, table)
        assert oldest.low is None and oldest.high is not None and oldest.high > NOW
    # Every row has the time of its decision, to the microsecond, or 1970.
    row = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE r.decided_at = d.decided_at) FROM rewards r "
        "JOIN decisions d USING (decision_id)"
    ).fetchone()
    assert row == (200, 199)
    # Writing goes on where it was, and knows what was said before.
    chat = NOW - timedelta(hours=24, microseconds=2)
    assert ledger.write(connection, [event(2, chat, 0.5), event(2, chat, 0.7)]) == [True, False]
    assert ledger.head(connection, "chat") == 101
    positions = [row.position for row in ledger.read(connection, "chat", 0, 1000)]
    assert positions == list(range(1, 102))


def test_whoever_holds_the_old_table_does_not_stop_the_writer_for_good(
    connection, dsn, monkeypatch
) -> None:
    monkeypatch.setattr("feature_repo.partitions.LOCK_WAIT_S", 0.2)
    old_tables(connection, 4)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT FROM decisions")  # and the transaction stays open
        with pytest.raises(psycopg.OperationalError):
            ledger.create_tables(connection)
        assert not ledger_partitions.partitioned(connection)
    ledger.create_tables(connection)
    assert ledger_partitions.partitioned(connection)


def test_a_decision_and_all_that_is_said_about_it_lie_in_one_week(connection) -> None:
    ledger.create_tables(connection)
    ledger.write(connection, [event(1, NOW, 0.5), event(2, MONTHS_AGO, 0.5)])
    assert table_of(connection, 1).startswith("rewards_p")
    assert table_of(connection, 2) == "rewards_default"
    # Weeks that are made later take over what came for them.
    ledger_partitions.ensure_weeks(connection, MONTHS_AGO)
    assert table_of(connection, 2).startswith("rewards_p")
    again = [event(2, MONTHS_AGO, 0.5), event(1, NOW, 0.5), event(2, MONTHS_AGO, 0.1)]
    assert ledger.write(connection, again) == [True, True, False]
    assert [row.before.quality for row in ledger.read(connection, "chat", 0, 9)] == [
        None,
        None,
        0.5,
    ]


def test_the_look_up_of_a_batch_reads_only_its_weeks(connection) -> None:
    ledger.create_tables(connection)
    ledger_partitions.ensure_weeks(connection, MONTHS_AGO)
    weeks = list(ledger_partitions.by_week((bytes(16), at) for at in (NOW, MONTHS_AGO)))
    assert len(weeks) == 2
    for low, high, ids in weeks:
        plan = connection.execute(
            "EXPLAIN SELECT FROM rewards WHERE decision_id = ANY(%s::uuid[]) "
            "AND decided_at >= %s AND decided_at < %s",
            (list(ids), low, high),
        ).fetchall()
        scanned = set(re.findall(r"on (rewards_[^_ ]*)", str(plan)))
        assert scanned == {f"rewards_p{low:%Y%m%d}"}


def test_rows_are_read_in_order_across_weeks(connection) -> None:
    ledger.create_tables(connection)
    for week in range(-12, 0, 3):
        ledger_partitions.ensure_weeks(connection, NOW + timedelta(weeks=week))
    events = [event(n, NOW - timedelta(days=(n * 37) % 84), n / 100) for n in range(1, 100)]
    ledger.write(connection, events)
    seen: list[float | None] = []
    position = 0
    while rows := ledger.read(connection, "chat", position, 7):
        assert [row.position for row in rows] == list(range(position + 1, rows[-1].position + 1))
        seen += [row.after.quality for row in rows]
        position = rows[-1].position
    assert seen == [n / 100 for n in range(1, 100)]


def checkpoint(connection: psycopg.Connection[Any], position: int, variant: str = "1.0") -> None:
    connection.execute(
        "INSERT INTO policy_checkpoints VALUES ('chat', %s, 'l', %s, '') ON CONFLICT "
        "(decision_point, variant) DO UPDATE SET position = excluded.position",
        (variant, position),
    )


@pytest.fixture
def aged(settings: Callable[..., Settings], connection: psycopg.Connection[Any]) -> Settings:
    """A platform with a champion and 100 rewarded decisions of the last 200 days."""
    made = settings()
    ledger.create_tables(connection)
    plans.ensure(connection, made.decision_points[0], SCHEMA, time.time())
    for week in range(-30, 0, 3):
        ledger_partitions.ensure_weeks(connection, NOW + timedelta(weeks=week))
    log(connection, [NOW - timedelta(days=2 * number) for number in range(100, 0, -1)])
    return made


def log(connection: psycopg.Connection[Any], times: list[datetime]) -> None:
    for number, at in enumerate(times):
        ledger.write(connection, [event(number, at, 0.5)])
        connection.execute(
            "INSERT INTO decisions VALUES ('chat', %s, %s, 'm', 'champion', 1, 0, %s)",
            (uuid.UUID(int=number), at, token(number, at)),
        )


def counts(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM decisions), (SELECT count(*) FROM rewards)"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def rows_of(files: Iterable[Path]) -> int:
    return sum(pq.read_metadata(file).num_rows for file in files)


def test_what_is_over_goes_to_files_and_a_repeat_does_nothing(aged, connection, tmp_path) -> None:
    checkpoint(connection, 100)
    report = retire_ledger(aged, NOW.timestamp(), tmp_path)
    assert report.held == ()
    kept = counts(connection)
    # 90 days are 45 decisions, and a week goes as a whole.
    assert kept[0] == kept[1] and 45 <= kept[0] <= 49
    for retired in (report.decisions, report.rewards):
        assert rows_of(one.file for one in retired if one.file) == 100 - kept[0]
    again = retire_ledger(aged, NOW.timestamp(), tmp_path)
    assert (again.decisions, again.rewards, counts(connection)) == ((), (), kept)
    # The learner's next rows are there, whatever is gone before them.
    assert [row.position for row in ledger.read(connection, "chat", 90, 100)] == [*range(91, 101)]


def test_rewards_that_a_policy_has_not_learned_stay(aged, connection) -> None:
    checkpoint(connection, 30)
    report = retire_ledger(aged, NOW.timestamp(), None)
    assert {(one.variant, one.learned) for one in report.held} == {("1.0", 30)}
    assert all(one.holds > 30 for one in report.held)
    first = ledger.read(connection, "chat", 0, 1)[0].position
    assert 24 < first <= 31  # a week goes only if all of it is learned
    assert ledger.head(connection, "chat") == 100
    checkpoint(connection, 100)
    assert retire_ledger(aged, NOW.timestamp(), None).held == ()
    assert ledger.read(connection, "chat", 0, 1)[0].position > 50


def test_without_a_checkpoint_no_reward_goes(aged, connection) -> None:
    report = retire_ledger(aged, NOW.timestamp(), None)
    assert report.held and counts(connection)[1] == 100


def test_a_reward_that_comes_during_the_export_is_not_lost(
    aged, connection, dsn, tmp_path, monkeypatch
) -> None:
    """It is not learned yet, so its week must stay, though it was no reason before."""
    checkpoint(connection, 100)
    at = NOW - timedelta(days=200)
    seen: list[str] = []

    def learned_then_more(*given: Any) -> dict[str, int]:
        if not seen:
            with connect(dsn) as other:
                ledger.write(other, [event(0, at, 0.9)])
        seen.append(given[1])
        return {"1.0": 100}

    monkeypatch.setattr("serving.retention.learned", learned_then_more)
    report = retire_ledger(aged, NOW.timestamp(), tmp_path)
    assert [one.holds for one in report.held] == [101]
    assert ledger.read(connection, "chat", 100, 9)[0].after.quality == 0.9


def test_two_may_retire_the_ledger_at_once(aged, connection, tmp_path) -> None:
    checkpoint(connection, 100)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda _: retire_ledger(aged, NOW.timestamp(), tmp_path), range(2)))
    kept = counts(connection)[1]
    files = [one.file for report in reports for one in report.rewards]
    assert rows_of(files) == 100 - kept and len(files) == len(set(files))


def test_a_kill_half_way_repeats_to_the_same_result(aged, connection, dsn, tmp_path) -> None:
    checkpoint(connection, 100)
    code = (
        "import os, sys; from pathlib import Path; import feature_repo.archive as archive;"
        "from optimizer.settings import Settings; from serving.retention import retire_ledger;"
        "real = archive._drop; left = [int(sys.argv[4])]\n"
        "def drop(*given):\n"
        "    if not left[0]: os.kill(os.getpid(), 9)\n"
        "    left[0] -= 1\n"
        "    return real(*given)\n"
        "archive._drop = drop\n"
        "settings = Settings(postgres_url=sys.argv[1], decision_points=[{'name': 'chat', "
        "'arms': [{'model': 'small'}, {'model': 'large'}]}])\n"
        "retire_ledger(settings, float(sys.argv[2]), Path(sys.argv[3]))"
    )
    # The decisions are done then, and the rewards are not.
    command = [sys.executable, "-c", code, dsn, str(NOW.timestamp()), str(tmp_path), "20"]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert counts(connection)[0] < 50 < counts(connection)[1]
    # A decision whose rewards are gone would be given the default.
    assert ledger.close_windows(connection, "chat", 0.1, NOW, 100) == 0
    retire_ledger(aged, NOW.timestamp(), tmp_path)
    kept = counts(connection)
    assert kept[0] == kept[1] and 45 <= kept[0] <= 49
    assert rows_of(tmp_path.glob("public.rewards*.parquet")) == 100 - kept[1]
    assert rows_of(tmp_path.glob("public.decisions*.parquet")) == 100 - kept[0]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("decisions_days", "rewards_days"), [(30, 120), (120, 30)])
def test_rewards_outlive_the_decisions_they_belong_to(
    aged, connection, settings, decisions_days, rewards_days
) -> None:
    checkpoint(connection, 100)
    days = {"decisions_days": decisions_days, "rewards_days": rewards_days}
    retire_ledger(settings(retention=days), NOW.timestamp(), None)
    decisions, rewards = counts(connection)
    assert decisions_days / 2 <= decisions <= decisions_days / 2 + 4
    assert 60 <= rewards <= 64
    assert ledger.close_windows(connection, "chat", 0.1, NOW, 100) == 0


def test_strays_of_weeks_that_are_gone_go_too(aged, connection, tmp_path) -> None:
    checkpoint(connection, 1000)
    retire_ledger(aged, NOW.timestamp(), tmp_path)
    kept = counts(connection)
    late = NOW - timedelta(days=150)
    log(connection, [late])
    assert table_of(connection, 0) == "rewards_default"
    retire_ledger(aged, NOW.timestamp(), tmp_path)
    assert counts(connection) == kept


def test_a_reward_for_what_is_no_longer_kept_is_refused() -> None:
    now_s = NOW.timestamp()
    ledger_partitions.refuse_late(now_s - 89 * 86400, now_s, 90)
    with pytest.raises(TooLate, match=r"keeps 90 days.*rewards_days"):
        ledger_partitions.refuse_late(now_s - 91 * 86400, now_s, 90)
