"""Online and offline features of live traffic: ``python -m benchmarks.feature_parity``.

Real PostgreSQL and Valkey, a real learner and publisher. Outcomes come in at once, late, up to two
hours after their decision, corrected and retracted. A reader asks Valkey again and again and keeps
what it was given. Afterwards, at random (arm, moment) pairs, four routes must give the same values:
what the reader got, the logged push, Feast's point-in-time join, and the ledger folded again.
Then a training set of many decisions is built.
"""

from __future__ import annotations

import argparse
import bisect
import random
import secrets
import socket
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg

from benchmarks.processor import processor
from feature_repo.arm_rows import Row, arm_key, statistics_rows, windows_rows
from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from infra.servers import create_database, start_postgres, start_valkey, wait_postgres, wait_valkey
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.feature_parity import TOLERANCE, FeatureParity, check_span
from serving.learning import Learning
from serving.live_point import make_encoder
from serving.tokens import CHAMPION, Decision, TokenSigner
from serving.training_set import training_set

_RESULT = Path(__file__).parent / "results" / "feature_parity.md"
_MODELS = [f"model-{number}" for number in range(6)]
_POINTS = ("chat", "summarise")
_VIEWS = ("arm_statistics", "arm_windows")


class Traffic:
    """Decisions and outcomes of all points, written as they would be."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self._random = random.Random(seed)
        self._signer = TokenSigner([settings.token_keys[0].get_secret_value()])
        encoder = make_encoder(settings.decision_points[0], Embedder())
        self._size, self._schema = encoder.size, encoder.schema_id
        self._told: list[ledger.RewardEvent] = []
        self.counts = dict.fromkeys(("at once", "late", "corrections", "retractions"), 0)

    def decide(self, decided_at: float) -> tuple[Decision, bytes, str]:
        point = self._random.choice(self.settings.decision_points)
        arm = self._random.choice(point.records())
        packed = pack(np.round(np.random.default_rng().random(self._size) * 16) / 16)
        decision = Decision(
            CHAMPION, secrets.token_bytes(16), decided_at, arm.id, 0.5, 0,
            self._schema, point.name, packed,
        )  # fmt: skip
        return decision, self._signer.sign(decision)[0], arm.model

    def outcome(self) -> Outcome:
        draw = self._random
        return Outcome(
            draw.choice([0.0, draw.random(), draw.random()]),
            draw.expovariate(100.0),
            draw.lognormvariate(0.0, 1.0),
        )

    def event(self) -> ledger.RewardEvent:
        draw = self._random
        if self._told and draw.random() < 0.25:
            old = draw.choice(self._told)
            retract = draw.random() < 0.3
            self.counts["retractions" if retract else "corrections"] += 1
            outcome = Outcome() if retract else self.outcome()
            return ledger.RewardEvent(
                old.decision_point, old.decision_id, "", outcome, retract, old.token
            )
        late = draw.random() < 0.3
        self.counts["late" if late else "at once"] += 1
        age_s = draw.uniform(60.0, 7200.0) if late else draw.uniform(0.0, 3.0)
        decision, raw, _ = self.decide(time.time() - age_s)
        made = ledger.RewardEvent(
            decision.decision_point, decision.decision_id, "", self.outcome(), False, raw
        )
        self._told.append(made)
        return made


class Reader(threading.Thread):
    """What Valkey says of every arm, by view and arm, in the order of time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._store = FeatureStoreClient(settings)
        self.reads = 0
        self.stopped = threading.Event()
        self.seen: dict[tuple[str, str], list[tuple[float, Row]]] = {}

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            for name in _POINTS:
                for model, dated in self._store.read_dated(name, _MODELS).items():
                    row = statistics_rows({model: dated.features})[model]
                    self._keep("arm_statistics", arm_key(name, model), dated.at_s, row)
                for model, found in self._store.read_windows(name, _MODELS).items():
                    row = windows_rows({model: found.features})[model]
                    self._keep("arm_windows", arm_key(name, model), found.at_s, row)
            self.reads += 1
        self._store.close()

    def _keep(self, view: str, key: str, at_s: float, row: Row) -> None:
        kept = self.seen.setdefault((view, key), [])
        if not kept or kept[-1][0] < at_s:
            kept.append((at_s, row))

    def at(self, view: str, key: str, moment_s: float) -> tuple[float, Row] | None:
        kept = self.seen[view, key]
        place = bisect.bisect_right(kept, moment_s, key=lambda one: one[0])
        return kept[place - 1] if place else None


def read_and_history(
    reader: Reader, store: FeatureStoreClient, start: float, end: float, pairs: int
) -> FeatureParity:
    """What the reader got, against Feast's join at the times of these values."""
    draw, found = random.Random(2), FeatureParity()
    for view in _VIEWS:
        drawn = [
            (arm_key(draw.choice(_POINTS), draw.choice(_MODELS)), draw.uniform(start, end))
            for _ in range(pairs)
        ]
        asked = [(key, got) for key, at in drawn if (got := reader.at(view, key, at))]
        frame = store.arm_history(
            pd.DataFrame(
                {
                    "arm_key": [key for key, _ in asked],
                    "event_timestamp": [datetime.fromtimestamp(at, UTC) for _, (at, _) in asked],
                }
            )
        )
        columns = [name for name in frame.columns if name.startswith(f"{view}__")]
        rows = frame[columns].itertuples(index=False, name=None)
        for (key, (at, got)), row in zip(asked, rows, strict=True):
            moment = datetime.fromtimestamp(at, UTC)
            routes = {"online": got, "history": row}
            found.pairs += 1
            found.disagreeing += not found.compare(key, moment, columns, routes, TOLERANCE)
    return found


def many_decisions(traffic: Traffic, rows: int, start: float, end: float) -> None:
    """Decisions over a span, each with an outcome."""
    step = (end - start) / rows
    with psycopg.connect(traffic.settings.postgres_dsn(), autocommit=True) as connection:
        for first in range(0, rows, 1000):
            events = []
            with connection.cursor().copy(
                "COPY decisions (decision_point, decision_id, decided_at, model, role, propensity, "
                "policy_version, token) FROM STDIN"
            ) as copy:
                for number in range(first, min(first + 1000, rows)):
                    decision, raw, model = traffic.decide(start + number * step)
                    point, raw_id = decision.decision_point, decision.decision_id
                    at = datetime.fromtimestamp(decision.decided_at, UTC)
                    copy.write_row((point, raw_id.hex(), at, model, "champion", 0.5, 0, raw))
                    outcome = traffic.outcome()
                    events.append(ledger.RewardEvent(point, raw_id, "", outcome, False, raw))
            ledger.write(connection, events)


def measure(settings: Settings, seconds: float, rate: float, pairs: int, rows: int) -> str:
    """Run everything; the page."""
    store, reader = FeatureStoreClient(settings), Reader(settings)
    store.apply()
    learning, traffic = Learning(settings), Traffic(settings, seed=1)
    learning.start()
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        while not store.read_windows("summarise", _MODELS):
            time.sleep(0.1)
        reader.start()
        start = time.time()
        while (now := time.time()) < start + seconds:
            ledger.write(connection, [traffic.event() for _ in range(max(int(rate / 10), 1))])
            time.sleep(max(now + 0.1 - time.time(), 0.0))
        time.sleep(3.0)
        end = time.time()
    reader.stopped.set()
    reader.join()
    span = datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)
    begun = time.perf_counter()
    found = check_span(settings, store, *span, pairs, seed=3)
    check_s = time.perf_counter() - begun
    read = read_and_history(reader, store, start, end, pairs // 2)
    publisher = learning._publisher
    learning.close()
    dropped, waiting = publisher.log.dropped, publisher.log.waiting
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        sizes = [
            connection.execute(
                f"SELECT count(*), pg_total_relation_size('feast.{view}') FROM feast.{view}"
            ).fetchone()
            for view in _VIEWS
        ]
    many_decisions(traffic, rows, start, end)
    built = []
    for point in settings.decision_points:
        begun = time.perf_counter()
        made = training_set(
            settings, store, point, span[0] - timedelta(hours=3), span[1], limit=rows
        )
        built.append((len(made.rows), len(made.rows.columns), time.perf_counter() - begun))
    store.close()
    written = sum(size[0] for size in sizes if size)
    volume = sum(size[1] for size in sizes if size)
    lines = [
        "# Online and offline features",
        "",
        "Made by `python -m benchmarks.feature_parity`. "
        f"{processor()}, {datetime.now(UTC):%Y-%m-%d}, other work on the same cores.",
        "",
        f"{seconds:.0f} s of live traffic, about {rate:.0f} events a second, "
        f"{len(_POINTS)} decision points with {len(_MODELS)} arms each. Events: "
        + ", ".join(f"{count} {what}" for what, count in traffic.counts.items())
        + f". Valkey was read {reader.reads} times.",
        "",
        "| compared | pairs | known | differ by more than 1e-6 | largest difference |",
        "|---|---|---|---|---|",
        f"| logged push, Feast's join, ledger folded again | {found.pairs} | {found.known} "
        f"| {found.disagreeing} | {max(found.largest.values()):.2g} |",
        f"| read from Valkey, Feast's join | {read.pairs} | {read.pairs} "
        f"| {read.disagreeing} | {max(read.largest.values()):.2g} |",
        "",
        f"{found.rebuilt} rows were found again in the ledger. The check of {found.pairs} pairs "
        f"took {check_s:.1f} s. {dropped} rows were dropped, {waiting} waited at the end.",
        "",
        f"The log took {written} rows and {volume / 1e6:.1f} MB with its indexes: "
        f"{volume / 1e3 / (end - start):.0f} KB a second for {len(_POINTS)} busy points.",
        "",
        "| training set, rows | columns | s |",
        "|---|---|---|",
        *(f"| {count} | {columns} | {took:.1f} |" for count, columns, took in built),
    ]
    lines += [f"\n{one}" for one in [*found.disagreements[:5], *read.disagreements[:5]]]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Start servers, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=200_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmopt-parity-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ports = [_free_port(), _free_port()]
        postgres = start_postgres(folder / "postgres", ports[0], folder / "postgres.log")
        valkey = start_valkey(folder / "valkey", ports[1], folder / "valkey.log")
        server = f"postgresql://postgres@127.0.0.1:{ports[0]}"
        try:
            wait_postgres(f"{server}/postgres", 60, postgres)
            create_database(f"{server}/postgres", "llmopt")
            wait_valkey(f"redis://127.0.0.1:{ports[1]}/0", 60, valkey)
            arms = [{"model": model} for model in _MODELS]
            settings = Settings(
                decision_points=[{"name": name, "arms": arms} for name in _POINTS],
                postgres_url=f"{server}/llmopt",
                valkey_url=f"redis://127.0.0.1:{ports[1]}/0",
                mlflow_url="http://127.0.0.1:1",
                token_keys=["00" * 16],
                home=folder,
            )
            page = measure(settings, given.seconds, given.rate, given.pairs, given.rows)
        finally:
            for process in (postgres, valkey):
                process.terminate()
                process.wait(30)
    _RESULT.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
