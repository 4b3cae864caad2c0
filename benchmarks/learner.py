"""The learner on real servers: ten decision points at once, and catching up from nothing.

``python -m benchmarks.learner`` starts a PostgreSQL and a Valkey of its own, feeds ten ledgers at a
steady rate, follows the snapshots as a replica does, and writes ``benchmarks/results/learner.md``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.embedding import Embedder
from infra.servers import create_database, start_postgres, start_valkey, wait_postgres, wait_valkey
from optimizer.feature_schema import Translations
from optimizer.features import pack
from optimizer.policies import PolicySettings
from optimizer.records import Outcome
from optimizer.settings import DecisionPoint, Settings
from serving import ledger
from serving.learner import Learner
from serving.live_point import make_encoder
from serving.policy_line import fold, make_watch
from serving.reward_writer import connect
from serving.routes import Shelf, make_point_policy
from serving.snapshots import SnapshotStore
from serving.tokens import CHAMPION, CONTROL, Decision, TokenSigner

_RESULT = Path(__file__).parent / "results" / "learner.md"
_KEY = "00" * 16
_TICK_S = 0.1
_POINTS = 10


class Traffic:
    """Rewards of one decision point."""

    def __init__(self, point: DecisionPoint, embedder: Embedder, seed: int) -> None:
        self.point = point
        self.encoder = make_encoder(point, embedder)
        self._arms = [arm.id for arm in point.records()]
        self._signer, self._random = TokenSigner([_KEY]), np.random.default_rng(seed)
        self._constant = self.encoder.schema.names.index("constant")

    def events(self, count: int) -> list[ledger.RewardEvent]:
        """The next rewards: whole outcomes, one in twenty of control."""
        random, made = self._random, []
        features = np.round(random.normal(size=(count, self.encoder.size)) * 16) / 256
        features[:, self._constant] = 1.0
        for row in features:
            decision = Decision(
                CONTROL if random.random() < 0.05 else CHAMPION,
                random.bytes(16),
                time.time(),
                self._arms[int(random.integers(len(self._arms)))],
                1.0 / len(self._arms),
                0,
                self.encoder.schema_id,
                self.point.name,
                pack(row),
            )
            outcome = Outcome(float(random.random() < 0.8), float(random.random() / 100))
            raw, _ = self._signer.sign(decision)
            made.append(
                ledger.RewardEvent(self.point.name, decision.decision_id, "", outcome, False, raw)
            )
        return made


def ten_points(
    settings: Settings, embedder: Embedder, per_s: int, seconds: float
) -> dict[str, Any]:
    """Feed all ledgers at a rate, and time each reward until a replica decides by it."""
    points = settings.decision_points
    with connect(settings.postgres_dsn()) as connection:
        ledger.create_tables(connection)
    learners = {point.name: Learner(settings, point, embedder) for point in points}
    shelves = {point.name: Shelf(point, make_encoder(point, embedder)) for point in points}
    stored: dict[str, list[float]] = {point.name: [] for point in points}
    done = dict.fromkeys(stored, 0)
    waits: list[float] = []
    backlogs: list[int] = []
    stop = threading.Event()

    def follow() -> None:
        store = SnapshotStore(settings.valkey_address)
        for name in store.changes(0.5):
            if stop.is_set():
                break
            for one in [name] if name else list(shelves):
                plan, shelf = store.plan(one), shelves[one]
                if plan is None:
                    continue
                shelf.follow(plan)
                snapshot = store.newest(one, plan.champion)
                if snapshot is not None and shelf.take(snapshot):
                    now, times = time.time(), stored[one]
                    upto = min(snapshot.position, len(times))
                    waits.extend(now - at for at in times[done[one] : upto])
                    done[one] = upto
        store.close()

    def feed(names: list[str], traffic: dict[str, Traffic]) -> None:
        each = max(int(per_s * _TICK_S / len(points)), 1)
        ready = {
            name: [traffic[name].events(each) for _ in range(int(seconds / _TICK_S))]
            for name in names
        }
        prepared.wait()
        with connect(settings.postgres_dsn()) as connection:
            begun = time.monotonic()
            for tick in range(int(seconds / _TICK_S)):
                time.sleep(max(begun + tick * _TICK_S - time.monotonic(), 0.0))
                for name in names:
                    at = time.time()
                    ledger.write(connection, ready[name][tick])
                    stored[name].extend([at] * each)

    for learner in learners.values():
        learner.start()
    traffic = {point.name: Traffic(point, embedder, seed) for seed, point in enumerate(points)}
    names = list(traffic)
    groups = [names[start::2] for start in range(2)]
    prepared = threading.Barrier(len(groups) + 1)
    feeders = [threading.Thread(target=feed, args=(group, traffic)) for group in groups]
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    for feeder in feeders:
        feeder.start()
    prepared.wait()
    begun = time.monotonic()
    while any(feeder.is_alive() for feeder in feeders):
        time.sleep(0.25)
        backlogs.append(sum(len(stored[name]) - learners[name].position for name in names))
    fed_s = time.monotonic() - begun
    total = sum(map(len, stored.values()))
    while sum(one.position for one in learners.values()) < total:
        time.sleep(0.01)
    drained_s = time.monotonic() - begun - fed_s
    time.sleep(1.0)
    stop.set()
    follower.join(2)
    for learner in learners.values():
        learner.close()
    tail = np.percentile(waits, [50, 99, 100]).tolist()
    return {
        "rewards": total,
        "per_s": total / fed_s,
        "measured": len(waits),
        "wait_s": tail,
        "backlog": (int(np.median(backlogs)), max(backlogs)),
        "drained_s": drained_s,
    }


def one_thousand(settings: Settings, embedder: Embedder, name: str, passes: int = 9) -> list[float]:
    """Seconds to learn each of some thousands of rewards, with the watch."""
    point = settings.decision_points[0]
    point = point.model_copy(update={"policy": PolicySettings(name=name)})
    traffic = Traffic(point, embedder, 1)
    policy, watch = make_point_policy(point, traffic.encoder.schema), make_watch(point)
    layouts, taken, at = Translations(traffic.encoder.schema), [], 0
    for _ in range(passes):
        rows = [
            ledger.LedgerRow(
                at + number,
                Outcome(),
                event.outcome,
                event.token,
                datetime.now(UTC),
                Outcome(),
                event.outcome,
            )
            for number, event in enumerate(traffic.events(1000), 1)
        ]
        at += len(rows)
        begun = time.perf_counter()
        fold(policy, layouts, rows, Counter(), watch)
        taken.append(time.perf_counter() - begun)
    return taken


def cold(settings: Settings, embedder: Embedder, count: int) -> float:
    """Rewards a second that a learner without a checkpoint catches up with."""
    point = settings.decision_points[0]
    traffic = Traffic(point, embedder, 2)
    with connect(settings.postgres_dsn()) as connection:
        ledger.create_tables(connection)
        for table in ("policy_checkpoints", "rewards", "ledger_heads", "learner_watch"):
            connection.execute(f"DELETE FROM {table}")
        for _ in range(count // 1000):
            ledger.write(connection, traffic.events(1000))
    learner = Learner(settings, point, embedder)
    begun = time.monotonic()
    learner.start()
    while learner.position < count:
        time.sleep(0.02)
    taken = time.monotonic() - begun
    learner.close()
    return count / taken


def main() -> None:
    """Run all three and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=2000, help="rewards a second, all points")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--cold", type=int, default=200_000, help="rewards to catch up with")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="llmopt-bench-"))
    folder.chmod(0o755)
    ports = _free_port(), _free_port()
    postgres = start_postgres(folder / "postgres", ports[0], folder / "postgres.log")
    valkey = start_valkey(folder / "valkey", ports[1], folder / "valkey.log")
    try:
        server = f"postgresql://postgres@127.0.0.1:{ports[0]}"
        wait_postgres(f"{server}/postgres", 60, postgres)
        create_database(f"{server}/postgres", "llmopt")
        address = f"redis://127.0.0.1:{ports[1]}/0"
        wait_valkey(address, 60, valkey)
        arms = [{"model": model} for model in ("small", "middle", "large")]
        settings = Settings(
            decision_points=[
                {"name": f"point-{number}", "arms": arms, "cost_cap_usd": 0.01}
                for number in range(_POINTS)
            ],
            token_keys=[_KEY],
            postgres_url=f"{server}/llmopt",
            valkey_url=address,
            home=folder,
        )
        embedder = Embedder()
        size = make_encoder(settings.decision_points[0], embedder).size
        learned = {name: one_thousand(settings, embedder, name) for name in ("randucb", "linucb")}
        points = ten_points(settings, embedder, given.rate, given.seconds)
        caught_up = cold(settings, embedder, given.cold)
    finally:
        postgres.send_signal(signal.SIGQUIT)
        valkey.send_signal(signal.SIGTERM)
        postgres.wait(20)
        valkey.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
    page = _page(learned, points, caught_up, given.cold, size)
    _RESULT.write_text(page)
    print(page)


def _page(
    learned: dict[str, list[float]], points: dict[str, Any], caught_up: float, count: int, size: int
) -> str:
    load, cores = os.getloadavg()[0], os.cpu_count()
    lines = [
        "# The learner",
        "",
        f"`python -m benchmarks.learner`, {datetime.now(UTC):%Y-%m-%d}, {cores} cores, "
        f"load average {load:.1f} at the end. 3 arms, {size} features, PostgreSQL with fsync; "
        "feed, servers, ten learners and the stand-in of a replica share the machine.",
        "",
        "| what | figure |",
        "|---|---|",
    ]
    for name, taken in learned.items():
        rest = sorted(taken[1:])
        lines.append(
            f"| 1,000 rewards learned and watched, `{name}`: median, slowest, the first 1,000 | "
            f"{rest[len(rest) // 2] * 1e3:.0f} ms, {rest[-1] * 1e3:.0f} ms, "
            f"{taken[0] * 1e3:.0f} ms |"
        )
    p50, p99, most = points["wait_s"]
    lines += [
        f"| ten decision points: rewards | {points['rewards']} at {points['per_s']:.0f}/s |",
        f"| reward to replica, all {points['measured']} rewards: p50, p99, longest | "
        f"{p50:.2f} s, {p99:.2f} s, {most:.2f} s |",
        f"| backlog of all ten: median, largest | {points['backlog'][0]}, {points['backlog'][1]} |",
        f"| time to learn what was left when the feed ended | {points['drained_s']:.2f} s |",
        f"| catching up from nothing over {count} rewards | {caught_up:.0f} rewards/s |",
        "",
    ]
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
