"""How old features are: ``python -m benchmarks.feature_freshness``.

The platform is started with its own command. Decisions are made beforehand; then their outcomes are
sent over HTTP at a constant rate, while each replica is asked again and again over a connection of
its own for the features of one arm, the one with the most outcomes. A replica takes all arms of a
decision point in at once, so that one stands for all. Outcome k is fresh in a replica when the
count of the 60-minute window that the replica answers has risen by k; its time counts from when it
was due to be sent. So it contains the request, the commit, the learner, Feast twice and the answer.
All times are of one clock of one machine.

Then Feast is asked for 10 features of one arm, again and again, and the read that decisions
themselves do is timed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from benchmarks.processor import processor
from benchmarks.serving.load import Load
from benchmarks.serving.ours import Platform
from benchmarks.serving.payloads import POINT, TASKS
from benchmarks.serving.percentiles import percentiles_ms
from benchmarks.serving.steps import Step, run
from benchmarks.serving.world import ARMS, outcome
from optimizer.settings import Settings

__all__ = ["Watched", "Watcher", "freshness_s", "main"]

_RESULT = Path(__file__).parent / "results" / "feature_freshness.md"
_MODELS = [f"model-{arm}" for arm in range(ARMS)]
_AT_ONCE = 500
_CONNECTIONS = 32
_ASK_EVERY_S = 0.02
_LAST_S = 5.0
_TRIES = 100
_READS = 6000
_ROUNDS = 60
_PING = "for comparison: PING to Valkey"
_FEATURES = [
    *(f"arm_statistics:{name}" for name in ("quality", "cost_usd", "latency_s", "error_rate")),
    *(f"arm_windows:{name}_5m" for name in ("count", "quality_mean", "cost_usd_mean")),
    *(f"arm_windows:{name}_60m" for name in ("count", "latency_p95_s", "error_rate")),
]
_ONE_VIEW = [
    f"arm_windows:{name}_{minutes}m"
    for minutes in (5, 60)
    for name in ("count", "quality_mean", "cost_usd_mean", "latency_p95_s", "error_rate")
]


@dataclass(frozen=True)
class Watched:
    """What one replica answered.

    Attributes
    ----------
    pid
        The replica's process.
    asked
        When an answer had come (Unix time, seconds), and the count that it gave.
    """

    pid: int
    asked: list[tuple[float, float]]


def freshness_s(watched: Watched, due_s: Sequence[float]) -> list[float]:
    """Seconds from when each outcome was due until the replica's count contained it.

    Parameters
    ----------
    watched
        Counts; its first answer is from before the first outcome.
    due_s
        Of each outcome of the arm, rising.

    Returns
    -------
    As many as were seen; fewer than ``due_s`` if the watch ended too early.

    Examples
    --------
    >>> freshness_s(Watched(1, [(0.0, 7.0), (1.5, 7.0), (2.0, 9.0)]), [1.0, 1.25, 1.5])
    [1.0, 0.75]
    """
    first = watched.asked[0][1]
    highest, rising = 0.0, []
    for _, count in watched.asked:
        highest = max(highest, count - first)
        rising.append(highest)
    found = []
    for number, due in enumerate(due_s, 1):
        at = bisect_left(rising, number)
        if at == len(rising):
            break
        found.append(watched.asked[at][0] - due)
    return found


class Watcher:
    """Asks one replica for the features of an arm until it is closed."""

    def __init__(self, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._path = f"/v1/features/{POINT}/{model}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self.asked: list[tuple[float, float]] = []

    def count(self) -> float:
        """Ask once."""
        self._connection.request("GET", self._path)
        content = json.loads(self._connection.getresponse().read())
        return float(content["windows"]["60m"]["count"])

    def pid_among(self, replicas: Sequence[psutil.Process], port: int) -> int | None:
        """The replica that this connection has reached."""
        own = self._connection.sock.getsockname()[1]
        for each in replicas:
            for one in each.net_connections("tcp"):
                if one.laddr.port == port and one.raddr and one.raddr.port == own:
                    return int(each.pid)
        return None

    def start(self) -> None:
        """Begin; the first answer is there when this returns."""
        self.asked.append((time.time(), self.count()))
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._connection.close()

    def _run(self) -> None:
        while not self._stop.wait(_ASK_EVERY_S):
            count = self.count()
            self.asked.append((time.time(), count))


def _watchers(platform: Platform, model: str) -> dict[int, Watcher]:
    """One for each replica; the kernel chooses the replica of a connection, so some are tried."""
    port, replicas = platform.ports["fast_lane"], platform.replicas()
    found: dict[int, Watcher] = {}
    for _ in range(_TRIES):
        watcher = Watcher(port, model)
        watcher.count()
        pid = watcher.pid_among(replicas, port)
        if pid is None or pid in found:
            watcher.close()
        else:
            found[pid] = watcher
        if len(found) == len(replicas):
            return found
    raise RuntimeError(f"{len(found)} of {len(replicas)} replicas were reached")


def _rewards(platform: Platform, number: int) -> tuple[list[bytes], list[str]]:
    """Bodies of rewards for new decisions, and the decisions' models."""
    rng = random.Random(2)
    bodies, models = [], []
    base = f"http://127.0.0.1:{platform.ports['fast_lane']}"
    with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
        while len(bodies) < number:
            tasks = [rng.choice(TASKS) for _ in range(min(_AT_ONCE, number - len(bodies)))]
            items = [
                {"decision_point": POINT, "context": {"task": t, "input_tokens": 100}}
                for t in tasks
            ]
            answer = client.post("/v1/decisions/batch", json={"items": items}).raise_for_status()
            for task, decision in zip(tasks, answer.json()["items"], strict=True):
                arm = int(decision["model"].rpartition("-")[2])
                quality, cost_usd, latency_s = outcome(rng, arm, task)
                values = {"quality": quality, "cost_usd": cost_usd, "latency_s": latency_s}
                body = {"decision_id": decision["decision_id"], **values}
                bodies.append(json.dumps(body).encode())
                models.append(decision["model"])
    rng.shuffle(order := list(range(number)))
    return [bodies[at] for at in order], [models[at] for at in order]


def _flow(
    platform: Platform, rate: float, seconds: float, folder: Path
) -> tuple[Load, str, list[Watched], list[float]]:
    """Send outcomes and watch; gives the load, the arm, its counts and when each was due."""
    bodies, models = _rewards(platform, round(rate * seconds))
    model = Counter(models).most_common(1)[0][0]
    file = folder / "rewards"
    file.write_bytes(b"\n".join(bodies))
    door = replace(platform.fast_lane(), paths={"reward": "/v1/rewards"})
    step = Step("fast lane", "reward", _CONNECTIONS, rate)
    watchers = _watchers(platform, model)
    with ExitStack() as stack:
        for watcher in watchers.values():
            stack.callback(watcher.close)
            watcher.start()
        load = run(step, door, file, seconds, lambda pid: None)
        time.sleep(_LAST_S)
    start = load.details["started_at"]
    due = [start + at / rate for at, one in enumerate(models) if one == model]
    return load, model, [Watched(pid, one.asked) for pid, one in watchers.items()], due


def _timed_s(work: Callable[[], Any], calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def _settings(platform: Platform) -> Settings:
    return Settings.model_validate(
        {
            "decision_points": [{"name": POINT, "arms": [{"model": model} for model in _MODELS]}],
            "postgres_url": f"postgresql://postgres@127.0.0.1:{platform.ports['postgres']}/llmopt",
            "valkey_url": platform.valkey_address,
        }
    )


def _feast_reads(settings: Settings, model: str) -> dict[str, dict[str, float]]:
    """Milliseconds of Feast's online read of 10 features of one arm."""
    from feast import FeatureStore

    from feature_repo import quick_feast  # noqa: F401
    from feature_repo.connections import repo_config

    store = FeatureStore(config=repo_config(settings.postgres_dsn(), settings.valkey_address))
    rows = [{"arm_key": f"{POINT}/{model}"}]

    def reader(features: list[str]) -> Callable[[], object]:
        if None in [one[0] for one in store.get_online_features(features, rows).to_dict().values()]:
            raise RuntimeError(f"not all features of {model} are there")
        return lambda: store.get_online_features(features=features, entity_rows=rows)

    with redis.Redis.from_url(settings.valkey_address) as client:
        reads: dict[str, Callable[[], object]] = {
            "10 features of one view": reader(_ONE_VIEW),
            "10 features of two views": reader(_FEATURES),
            _PING: client.ping,
        }
        found: dict[str, list[float]] = {name: [] for name in reads}
        for read in reads.values():
            _timed_s(read, _READS // 10)
        for _ in range(_ROUNDS):  # in turn, so that what else the machine does falls on all alike
            for name, read in reads.items():
                found[name] += _timed_s(read, _READS // _ROUNDS)
    return {name: percentiles_ms(values) for name, values in found.items()}


def _decision_reads(settings: Settings) -> dict[str, dict[str, float]]:
    """Milliseconds of what the replica's memory is asked on the way to a decision, and more."""
    from serving.arm_features import ArmFeatureReader

    reader = ArmFeatureReader(settings, {POINT: _MODELS}, lambda name, read: None, lambda: None)
    reader.start()
    try:
        deadline = time.monotonic() + 60
        while reader.age_s() > 60:
            if time.monotonic() > deadline:
                raise RuntimeError("the feature store could not be read")
            time.sleep(0.1)
        one = _timed_s(lambda: reader.recent(POINT, _MODELS[0]), 100_000)
        every = _timed_s(
            lambda: [(reader.recent(POINT, m), reader.windows[POINT].get(m)) for m in _MODELS],
            100_000,
        )
    finally:
        reader.close(5.0)
    return {
        "statistics of one arm": percentiles_ms(one),
        f"statistics and windows of all {ARMS} arms": percentiles_ms(every),
    }


def _report(
    given: argparse.Namespace,
    flow: tuple[Load, str, list[Watched], list[float]],
    feast: dict[str, dict[str, float]],
    memory: dict[str, dict[str, float]],
    before: tuple[float, float, float],
) -> tuple[str, list[str]]:
    """The page, and what was not kept."""
    load, model, replicas, due = flow
    missed = []
    lines = [
        "# How old features are",
        "",
        f"`python -m benchmarks.feature_freshness --rate {given.rate:g} --seconds "
        f"{given.seconds:g} --replicas {given.replicas}` on {processor()}, {os.cpu_count()} cores "
        "that platform, load generator and watchers share; load average before "
        f"{before[0]:.2f} (1 min), {before[1]:.2f} (5 min).",
        "",
        f"{given.replicas} replicas, {ARMS} arms. {load.requests:,} outcomes, one a request, "
        f"{load.rate:,.0f} acknowledged a second, {sum(load.errors.values())} errors; "
        f"acknowledged after p50 {load.latency_ms['p50']:.0f} ms, p99 "
        f"{load.latency_ms['p99']:.0f} ms.",
        "",
        f"From when an outcome was due until the replica answers `/v1/features/{POINT}/{model}` "
        f"with it; each replica is asked every {1000 * _ASK_EVERY_S:.0f} ms.",
        "",
        "| replica | outcomes | p50 | p90 | p99 | max |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for number, watched in enumerate(replicas, 1):
        seen = freshness_s(watched, due)
        figures = percentiles_ms(seen)
        lines.append(
            f"| {number} | {len(seen):,} of {len(due):,} | "
            + " | ".join(f"{figures[name]:.0f} ms" for name in ("p50", "p90", "p99", "max"))
            + " |"
        )
        if len(seen) < len(due) or figures["p99"] >= 1000:
            missed.append(f"replica {number}: p99 {figures['p99']:.0f} ms")
    lines += [
        "",
        f"Then, without load, {_READS:,} reads each through Feast from Valkey, one arm, 10 "
        "features, in a process that does nothing else (the platform idles beside it):",
        "",
        "| read | p50 | p99 | max |",
        "|---|---:|---:|---:|",
    ]
    for name, figures in feast.items():
        lines.append(
            f"| {name} | {figures['p50']:.2f} ms | {figures['p99']:.2f} ms | "
            f"{figures['max']:.2f} ms |"
        )
        if figures["p99"] >= 1 and name != _PING:
            missed.append(f"Feast, {name}: p99 {figures['p99']:.2f} ms")
    lines += [
        "",
        "A decision itself never waits for Feast: it reads what the replica has in memory "
        "(100,000 reads, one timed at a time, the thread that refreshes them running beside):",
        "",
        "| read | p50 | p99 |",
        "|---|---:|---:|",
    ]
    for name, figures in memory.items():
        us = {share: 1000 * value for share, value in figures.items()}
        lines.append(f"| {name} | {us['p50']:.2f} µs | {us['p99']:.2f} µs |")
        if us["p99"] >= 20:
            missed.append(f"{name}: p99 {us['p99']:.1f} µs")
    return "\n".join(lines) + "\n", missed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result; fails if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="outcomes a second")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--out", type=Path, default=_RESULT)
    given = parser.parse_args(arguments)
    before = os.getloadavg()
    with Platform(given.replicas) as platform, tempfile.TemporaryDirectory() as folder:
        flow = _flow(platform, given.rate, given.seconds, Path(folder))
        settings = _settings(platform)
        feast = _feast_reads(settings, flow[1])
        memory = _decision_reads(settings)
    text, missed = _report(given, flow, feast, memory, before)
    print(text)
    given.out.write_text(text, encoding="utf-8")
    if missed:
        sys.exit("not kept: " + "; ".join(missed))


if __name__ == "__main__":
    main()
