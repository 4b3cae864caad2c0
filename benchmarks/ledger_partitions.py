"""What partitions cost the ledger: ``python -m benchmarks.ledger_partitions``.

A million rewards of a hundred days, in no partitions, in weeks and in days, on a PostgreSQL of its
own. Measured are the statements that run all the time: the learner's next rows, the writer's group
with its look-up (of today's decisions; of decisions of any day), and a report's look-ups.
"""

from __future__ import annotations

import random
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from feature_repo.partitions import ensure, partitions
from infra.servers import create_database, start_postgres, wait_postgres
from optimizer.records import Outcome
from serving import ledger
from serving.ledger import RewardEvent

ROWS = 1_000_000
SPAN_DAYS = 100
REPEATS = 30
RESULT = Path(__file__).parent / "results" / "ledger_partitions.md"
LENGTHS = {"none": 0, "weeks": 7, "days": 1}


def main() -> None:
    """Measure, and write the table."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    measured = {}
    with tempfile.TemporaryDirectory(prefix="llmopt-bench-") as name:
        server = start_postgres(Path(name) / "postgres", port, Path(name) / "log")
        try:
            url = f"postgresql://postgres@127.0.0.1:{port}"
            wait_postgres(f"{url}/postgres", 60, server)
            for length, days in LENGTHS.items():
                create_database(f"{url}/postgres", length)
                with psycopg.connect(f"{url}/{length}", autocommit=True) as connection:
                    measured[length] = measure(connection, days, rows)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    RESULT.write_text(table(measured, rows))
    print(RESULT.read_text())


def measure(connection: psycopg.Connection[Any], days: int, rows: int) -> dict[str, float]:
    """Median milliseconds of each statement."""
    now = datetime.now(UTC)
    ledger.create_tables(connection)
    since = now - timedelta(days=SPAN_DAYS)
    if days:
        for name in ("rewards", "decisions"):
            connection.execute(
                f"DROP TABLE {', '.join(p.name for p in partitions(connection, name))}"
            )
            ensure(connection, name, since, now + timedelta(days=1), days=days)
    else:
        for name in ("rewards", "decisions"):
            for one in partitions(connection, name):
                if not one.default:
                    connection.execute(f"DROP TABLE {one.name}")
    fill(connection, rows, since)
    connection.execute("VACUUM ANALYZE rewards")
    generator = random.Random(1)

    def today(decision: int) -> RewardEvent:
        return event(generator.randbytes(16), now - timedelta(seconds=decision))

    def any_day(decision: int) -> RewardEvent:
        return event(generator.randbytes(16), now - timedelta(days=SPAN_DAYS * generator.random()))

    def first() -> None:
        with connection.transaction():
            connection.execute("DISCARD PLANS")
        ledger.read(connection, "chat", generator.randrange(rows), 1)

    keys = connection.execute(
        "SELECT decision_id, decided_at FROM rewards TABLESAMPLE SYSTEM (1) LIMIT 5000"
    ).fetchall()
    connection.execute(
        "CREATE TEMP TABLE asked AS SELECT * FROM unnest(%s::uuid[], %s::timestamptz[]) "
        "AS asked (decision_id, decided_at)",
        ([key for key, _ in keys], [at for _, at in keys]),
    )
    report = (
        "SELECT count(r.known_after) FROM asked d LEFT JOIN LATERAL (SELECT known_after FROM "
        "rewards WHERE decision_id = d.decision_id AND decided_at = d.decided_at "
        "ORDER BY position DESC LIMIT 1) r ON true"
    )
    return {
        "next 1,000 rows, from anywhere": timed(
            lambda: ledger.read(connection, "chat", generator.randrange(rows), 1000)
        ),
        "nothing new at the end": timed(lambda: ledger.read(connection, "chat", rows * 2, 1000)),
        "next row, planned anew": timed(first),
        "write 1 reward of today": timed(lambda: ledger.write(connection, [today(0)])),
        "write 1,000 rewards of today": timed(
            lambda: ledger.write(connection, [today(n) for n in range(1000)])
        ),
        "write 1,000 rewards of any day": timed(
            lambda: ledger.write(connection, [any_day(n) for n in range(1000)])
        ),
        f"newest of {len(keys)} decisions": timed(lambda: connection.execute(report).fetchone()),
    }


def timed(work: Callable[[], object]) -> float:
    """Median milliseconds, the first three runs left out."""
    taken = []
    for _ in range(REPEATS + 3):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken[3:])


def event(decision_id: bytes, at: datetime) -> RewardEvent:
    """A reward with a token as long as those of today."""
    token = bytes(2) + decision_id + struct.pack(">d", at.timestamp()) + bytes(600)
    return RewardEvent("chat", decision_id, "", Outcome(quality=0.5), False, token)


def fill(connection: psycopg.Connection[Any], rows: int, since: datetime) -> None:
    """Rewards in the order of their decisions, up to two days late."""
    connection.execute(
        "INSERT INTO rewards (decision_point, position, decided_at, decision_id, event_id, "
        "quality, known_before, known_after, token) SELECT 'chat', n, "
        "%s + (n::float8 / %s * %s - random() * 2) * interval '1 day', gen_random_uuid(), '', 0.5, "
        "'{NULL,NULL,NULL,NULL}', '{0.5,NULL,NULL,NULL}', "
        "decode(repeat(md5(n::text), 10), 'hex') FROM generate_series(1, %s) n",
        (since, rows, SPAN_DAYS, rows),
    )
    connection.execute("INSERT INTO ledger_heads VALUES ('chat', %s)", (rows,))


def table(measured: dict[str, dict[str, float]], rows: int) -> str:
    """The result as Markdown."""
    lines = [
        "# The ledger in partitions",
        "",
        f"`python -m benchmarks.ledger_partitions`: {rows:,} rewards of {SPAN_DAYS} days, median "
        f"milliseconds of {REPEATS} runs, data in memory.",
        "",
        "| statement | " + " | ".join(measured) + " |",
        "|---|" + "---|" * len(measured),
    ]
    for name in measured["none"]:
        cells = " | ".join(f"{found[name]:.2f}" for found in measured.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
