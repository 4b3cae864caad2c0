"""The aggregator is killed again and again in a stream: ``python -m benchmarks.aggregator_kills``.

Nothing is simulated: outcomes are written to the ledger in a PostgreSQL of its own, most soon after
their decisions, some corrected or retracted, some later than the allowed lateness. A learner
process folds them and pushes what it has to Valkey through Feast. At moments drawn beforehand it
gets SIGKILL and is started again at once. When the stream has ended, what stands in the feature
store is compared with a plain fold of the ledger, as of the moment of the push. Then the policy's
checkpoint is dropped, and an undisturbed learner process goes over the same ledger once; the same
comparison holds for it, and the two are compared with each other.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import psycopg

from benchmarks.processor import processor
from benchmarks.serving.targets import free_ports
from benchmarks.windows import MODELS, made_delay_s, made_outcome
from feature_repo.aggregates import ArmFeatures, ArmStatistics
from feature_repo.arm_rows import Dated
from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import ArmWindows, WindowFeatures
from infra.servers import (
    create_database,
    start_postgres,
    start_valkey,
    wait_postgres,
    wait_valkey,
)
from optimizer.errors import Unavailable
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.live_point import make_encoder
from serving.snapshots import SnapshotStore
from serving.tokens import CHAMPION, Decision, TokenSigner, parse

__all__ = ["main"]

_RESULT = Path(__file__).parent / "results" / "aggregator_kills.md"
_POINT = "stream"
_KEY = "00" * 16
_AT_ONCE = 100
_CATCH_UP_S = 180.0
_CHECKED = 3
_AGAIN = 0.13
_TAKEN_BACK = 0.25
_COUNT_OFF = 1e-8

_LEARNER = """
import logging, sys, threading
from optimizer.settings import Settings
from serving.learning import Learning
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
learning = Learning(Settings.model_validate_json(sys.stdin.read()))
learning.start()
threading.Event().wait()
"""


@dataclass(frozen=True)
class _Kill:
    after: int
    """Outcomes that were in the ledger."""
    alive_s: float
    at_work: bool
    """It had published a snapshot; else it was still starting or folding the past again."""


class _Learner:
    """A process with the platform's learners, as the Ray actor hosts them."""

    def __init__(self, settings: Settings, log: IO[bytes]) -> None:
        content = settings.model_dump(mode="json")
        content["token_keys"] = [_KEY]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LEARNER],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(content))
        self._process.stdin.close()
        self.pid = self._process.pid
        self.started_at = time.monotonic()

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)


@dataclass(frozen=True)
class _Final:
    """What stands in the feature store at the end, and how far it was checked."""

    statistics: dict[str, Dated[ArmFeatures]]
    windows: dict[str, Dated[dict[int, WindowFeatures]]]
    same_windows: bool
    same_statistics: bool
    count_off: float
    """Largest relative difference of the decayed count, which depends on the push's nanoseconds."""
    state: bytes
    """The policy's checkpoint."""


class _Stream:
    """Makes the events, in order: a correction or retraction names an outcome before it."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._point = settings.decision_points[0]
        self._schema_id = make_encoder(self._point, Embedder()).schema_id
        size = make_encoder(self._point, Embedder()).size
        self._arms = [arm.id for arm in self._point.records()]
        self._draw = random.Random(seed)
        rng = np.random.default_rng(seed)
        # On the grid of `optimizer.features`, as the encoder's are: sums are exact there alone.
        grid = np.round(rng.uniform(-1.0, 1.0, size=(256, size)) * 4096) / 4096
        self._vectors = [pack(vector) for vector in grid]
        self._signer = TokenSigner([_KEY])
        self._told: list[tuple[bytes, bytes]] = []

    def events(self, outcomes: int) -> Iterator[ledger.RewardEvent]:
        """Until so many decisions have one; about 15 % more events than that."""
        while len(self._told) < outcomes:
            if self._told and self._draw.random() < _AGAIN:
                decision_id, token = self._told[self._draw.randrange(len(self._told))]
            else:
                decision_id, token = self._decide()
                self._told.append((decision_id, token))
                yield ledger.RewardEvent(
                    _POINT, decision_id, "", made_outcome(self._draw), False, token
                )
                continue
            retract = self._draw.random() < _TAKEN_BACK
            outcome = Outcome() if retract else made_outcome(self._draw)
            yield ledger.RewardEvent(_POINT, decision_id, "", outcome, retract, token)

    def _decide(self) -> tuple[bytes, bytes]:
        decision = Decision(
            CHAMPION,
            self._draw.randbytes(16),
            time.time() - made_delay_s(self._draw),
            self._draw.choice(self._arms),
            0.5,
            0,
            self._schema_id,
            _POINT,
            self._draw.choice(self._vectors),
        )
        raw, _ = self._signer.sign(decision)
        return decision.decision_id, raw


class _Reference:
    """A plain fold of the ledger, from its beginning to its end."""

    def __init__(self, settings: Settings) -> None:
        point = settings.decision_points[0]
        models = {arm.id: arm.model for arm in point.records()}
        self.windows, self.statistics = ArmWindows(), ArmStatistics()
        self.rows = 0
        with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
            while rows := ledger.read(connection, _POINT, self.rows, 5000):
                for row in rows:
                    decision = parse(row.token)
                    change = models[decision.arm_id], decision.decided_at, row.before, row.after
                    self.statistics.update(*change)
                    self.windows.update(*change, row.received_at.timestamp())
                self.rows = rows[-1].position


def _final(store: FeatureStoreClient, settings: Settings, reference: _Reference) -> _Final:
    """Wait until the feature store has all of the ledger, then compare some pushes in turn."""
    deadline = time.monotonic() + _CATCH_UP_S
    seen: set[float] = set()
    while True:
        try:
            statistics = store.read_dated(_POINT, MODELS)
            windows = store.read_windows(_POINT, MODELS)
        except Unavailable:
            statistics, windows = {}, {}
        if len(windows) == len(statistics) == len(MODELS):
            at = windows[MODELS[0]].at_s
            # A push is a statement for each model: one that is under way is looked at again.
            whole = {one.at_s for one in (*windows.values(), *statistics.values())} == {at}
            expected = reference.windows.values(MODELS, at)
            same = {model: one.features for model, one in windows.items()} == expected
            if whole and same:
                seen.add(at)
            elif whole and seen:
                raise RuntimeError("the windows were equal, and then no more")
            if len(seen) == _CHECKED or time.monotonic() > deadline:
                break
        time.sleep(0.2)
    means, count_off = True, 0.0
    for model, one in reference.statistics.values(at).items():
        found = statistics[model].features
        means = means and _means(found) == _means(one)
        count_off = max(count_off, abs(found.count / one.count - 1.0))
    return _Final(statistics, windows, len(seen) == _CHECKED, means, count_off, _state(settings))


def _means(features: ArmFeatures) -> tuple[float | None, ...]:
    """What does not depend on the moment of asking."""
    return features.quality, features.cost_usd, features.latency_s, features.error_rate


def _state(settings: Settings) -> bytes:
    """The checkpoint, once it stands at the ledger's end."""
    deadline = time.monotonic() + 30
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        end = ledger.head(connection, _POINT)
        while time.monotonic() < deadline:
            row = connection.execute("SELECT position, state FROM policy_checkpoints").fetchone()
            if row is not None and row[0] == end:
                return bytes(row[1])
            time.sleep(0.5)
    raise RuntimeError("the policy has no checkpoint at the ledger's end")


def _stream(
    settings: Settings, given: argparse.Namespace, log: IO[bytes]
) -> tuple[_Learner, list[_Kill], float]:
    """Write everything, killing on the way; gives the learner that lives at the end."""
    waiting = sorted(random.Random(given.seed).sample(range(1, given.outcomes), given.kills))
    kills: list[_Kill] = []
    snapshots = SnapshotStore(settings.valkey_address)
    learner = _Learner(settings, log)
    written, started = 0, time.monotonic()
    batch: list[ledger.RewardEvent] = []
    with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        for event in _Stream(settings, given.seed).events(given.outcomes):
            batch.append(event)
            if len(batch) == _AT_ONCE:
                ledger.write(connection, batch)
                written, batch = written + len(batch), []
                while waiting and waiting[0] <= written:
                    after = waiting.pop(0)
                    newest = snapshots.newest(_POINT)
                    at_work = newest is not None and newest.learner_pid == learner.pid
                    kills.append(_Kill(after, time.monotonic() - learner.started_at, at_work))
                    learner.kill()
                    learner = _Learner(settings, log)
                time.sleep(max(started + written / given.rate - time.monotonic(), 0.0))
        if batch:
            ledger.write(connection, batch)
    snapshots.close()
    return learner, kills, time.monotonic() - started


def _compare(settings: Settings, given: argparse.Namespace, log: IO[bytes]) -> tuple[str, bool]:
    learner, kills, took_s = _stream(settings, given, log)
    store = FeatureStoreClient(settings)
    try:
        reference = _Reference(settings)
        killed = _final(store, settings, reference)
        learner.kill()
        with psycopg.connect(settings.postgres_dsn(), autocommit=True) as connection:
            connection.execute("DELETE FROM policy_checkpoints")
        _empty(settings)
        learner = _Learner(settings, log)
        undisturbed = _final(store, settings, reference)
    finally:
        learner.kill()
        store.close()
    answers = {
        "windows in the feature store, killed = plain fold": killed.same_windows,
        "windows in the feature store, undisturbed = plain fold": undisturbed.same_windows,
        "means of the statistics, killed = plain fold": killed.same_statistics,
        "means of the statistics, killed = undisturbed": {
            model: _means(one.features) for model, one in killed.statistics.items()
        }
        == {model: _means(one.features) for model, one in undisturbed.statistics.items()},
        "policy's checkpoint, killed = undisturbed, byte for byte": killed.state
        == undisturbed.state,
    }
    at_work = sum(kill.at_work for kill in kills)
    lines = [
        "# The aggregator, killed in a stream",
        "",
        f"`python -m benchmarks.aggregator_kills --outcomes {given.outcomes} --kills "
        f"{given.kills} --seed {given.seed} --rate {given.rate:g}` on {processor()}, "
        f"{os.cpu_count()} cores; load average after {os.getloadavg()[1]:.2f} (5 min).",
        "",
        f"{given.outcomes:,} decisions got outcomes, {reference.rows:,} rows of the ledger with "
        f"corrections and retractions, {reference.windows.late:,} after the allowed lateness; "
        f"written to PostgreSQL in {took_s:.0f} s. {len(kills)} times SIGKILL to the learner's "
        f"process, a new one at once: {at_work} while it published, {len(kills) - at_work} while "
        "it started or folded the past again (lifetimes "
        f"{min(kill.alive_s for kill in kills):.1f} to "
        f"{max(kill.alive_s for kill in kills):.1f} s). {_CHECKED} pushes of each process were "
        "compared, every window of every model, each as of the moment of the push.",
        "",
        "| equal, exactly | |",
        "|---|---|",
        *(f"| {name} | {'yes' if same else 'NO'} |" for name, same in answers.items()),
        "",
        "The decayed count alone is compared to the microsecond that Feast keeps of a push's "
        f"time: largest relative difference {max(killed.count_off, undisturbed.count_off):.1e}.",
    ]
    precise = max(killed.count_off, undisturbed.count_off) < _COUNT_OFF
    return "\n".join(lines) + "\n", all(answers.values()) and precise


def _empty(settings: Settings) -> None:
    import redis

    with redis.Redis.from_url(settings.valkey_address) as client:
        client.flushall()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, compare, and write the result; fails if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=_RESULT)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmopt-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where we are root
        postgres_port, valkey_port = free_ports(2)
        postgres = start_postgres(folder / "postgres", postgres_port, folder / "postgres.log")
        valkey = start_valkey(folder / "valkey", valkey_port, folder / "valkey.log")
        server = f"postgresql://postgres@127.0.0.1:{postgres_port}"
        settings = Settings.model_validate(
            {
                "decision_points": [
                    {"name": _POINT, "arms": [{"model": model} for model in MODELS]}
                ],
                "token_keys": [_KEY],
                "postgres_url": f"{server}/llmopt",
                "valkey_url": f"redis://127.0.0.1:{valkey_port}/0",
                "mlflow_url": "http://127.0.0.1:1",
                "home": folder,
            }
        )
        try:
            wait_postgres(f"{server}/postgres", 60, postgres)
            wait_valkey(settings.valkey_address, 60, valkey)
            create_database(f"{server}/postgres", "llmopt")
            with (folder / "learner.log").open("ab") as log:
                text, same = _compare(settings, given, log)
        finally:
            for process, how in ((postgres, signal.SIGINT), (valkey, signal.SIGTERM)):
                process.send_signal(how)
                process.wait(30)
    print(text)
    given.out.write_text(text, encoding="utf-8")
    if not same:
        sys.exit("the runs differ")


if __name__ == "__main__":
    main()
