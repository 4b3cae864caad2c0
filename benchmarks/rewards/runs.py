"""The four runs: what each does, and the figures it gives."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.rewards.freshness import Probes, delays_s
from benchmarks.rewards.stack import Stack
from benchmarks.rewards.stream import Stream, send
from benchmarks.rewards.verify import verify
from benchmarks.serving.payloads import POINT, TASKS
from feature_repo.embedding import Embedder
from serving.live_point import make_encoder

__all__ = ["RUNS", "batches", "kills", "outage", "throughput"]

Say = Callable[[str], None]

_CONNECTIONS = 32
_REWARD_CONNECTIONS = 128
"""Of single rewards: each waits for a commit, as that of another caller would."""
_BATCH_CONNECTIONS = 4
_BATCH = 1000
_PATIENCE_S = 240.0
_WARM_S = 3.0


def throughput(stack: Stack, seconds: float, rate: float, say: Say) -> dict[str, Any]:
    """Single rewards and single decisions, each at a constant rate, side by side."""
    decisions, before = _decisions_file(stack), _head(stack)
    with Probes(stack, POINT) as probes, _Watch(stack) as watch:
        deciding = _open_loop(stack, decisions, rate, seconds)
        rewarding = _rewards(stack, {"batch": 1, "rate": rate, "seconds": seconds}, seed=1)
        rewards, decided = _told(rewarding), _told(deciding)
        cpu = watch.cores()
        say("waiting for the learner")
        verdict = verify(stack.settings.postgres_dsn(), _point(stack), _PATIENCE_S)
        time.sleep(1.0)
    late = delays_s(stack.settings.postgres_dsn(), POINT, probes, before, verdict.head)
    return {
        "asked": {"rewards_per_s": rate, "decisions_per_s": rate, "seconds": seconds},
        "rewards": _load(rewards),
        "decisions": _load(decided),
        "reward_to_replica_s": [_percentiles(each) for each in late],
        "cores": cpu,
        "verdict": _verdict(verdict, before + rewards["succeeded"]),
    }


def batches(stack: Stack, requests: int, rate: float, say: Say) -> dict[str, Any]:
    """Batches of 1,000 as fast as they are taken, alone and then beside decisions."""
    told: dict[str, Any] = {"batch": _BATCH, "decisions_per_s": rate}
    acknowledged = _head(stack)
    decisions = _decisions_file(stack)
    alone = _told(_open_loop(stack, decisions, rate, 10.0))
    told["decisions_alone"] = _load(alone)
    for seed, name in ((2, "rewards_alone"), (3, "rewards_beside_decisions")):
        job = {"batch": _BATCH, "requests": requests}
        beside = name.endswith("decisions")
        deciding = _open_loop(stack, decisions, rate, 25.0) if beside else None
        with _Watch(stack) as watch:
            loaded = _told(_rewards(stack, job, seed))
            told[f"{name}_cores"] = watch.cores()
        acknowledged += loaded["succeeded"] * _BATCH
        took_s = loaded["elapsed_s"]
        told[name] = {
            "rewards_per_s": loaded["succeeded"] * _BATCH / took_s,
            "seconds": took_s,
            "latency_ms": loaded["latency_ms"],
            "errors": loaded["kinds"],
            "generator_cores": loaded["cpu_s"] / took_s,
        }
        say(f"{name}: {told[name]['rewards_per_s']:,.0f}/s")
        if deciding is not None:
            told["decisions_beside"] = _load(_told(deciding))
    say("waiting for the learner")
    verdict = verify(stack.settings.postgres_dsn(), _point(stack), _PATIENCE_S)
    told["verdict"] = _verdict(verdict, acknowledged)
    return told


def kills(stack: Stack, total: int, wanted: int, every_s: float, say: Say) -> dict[str, Any]:
    """``kill -9`` of the learner or of a replica, at random, while rewards are sent."""
    rng = random.Random(7)
    stream, before = Stream(), _head(stack)
    sending = _stream(stack, total, stream, batch=100, rate=total / (1.1 * wanted * every_s))
    killed: Counter[str] = Counter()
    began = time.monotonic()
    while killed.total() < wanted and sending.is_alive():
        time.sleep(every_s * rng.uniform(0.5, 1.5))
        alive = {"learner": stack.learners(), "replica": stack.replicas()}
        kinds = [kind for kind, processes in alive.items() if processes]
        if not kinds:  # Ray has not started a new one yet
            continue
        kind = rng.choice(kinds)
        with suppress(psutil.NoSuchProcess):
            rng.choice(alive[kind]).kill()
            killed[kind] += 1
            if killed.total() % 10 == 0:
                say(f"{killed.total()} killed, {stream.acknowledged:,} rewards acknowledged")
    sending.join()
    took_s = time.monotonic() - began
    say("waiting for the learner")
    verdict = verify(stack.settings.postgres_dsn(), _point(stack), _PATIENCE_S)
    return {
        "rewards": total,
        "seconds": took_s,
        "killed": dict(killed),
        "stream": _stream_told(stream),
        "verdict": _verdict(verdict, before + stream.acknowledged),
    }


def outage(stack: Stack, away_s: float, rate: float, say: Say) -> dict[str, Any]:
    """PostgreSQL stopped for a while, with decisions and rewards under way."""
    stream, before = Stream(), _head(stack)
    seconds = away_s + 20.0
    sending = _stream(stack, int(rate * seconds), stream, batch=50, rate=rate)
    deciding = _open_loop(stack, _decisions_file(stack), rate, seconds)
    time.sleep(5.0)
    decision = httpx.post(
        f"{stack.url}/v1/decisions", json={"decision_point": POINT, "context": {}}, trust_env=False
    ).json()
    say("PostgreSQL stops")
    stack.stop_postgres()
    stopped_at, at_stop = time.monotonic(), stream.acknowledged
    answers: Counter[str] = Counter()
    while time.monotonic() - stopped_at < away_s:
        reward = {"decision_id": decision["decision_id"], "quality": 1.0}
        answer = httpx.post(f"{stack.url}/v1/rewards", json=reward, timeout=20, trust_env=False)
        answers[f"{answer.status_code}, Retry-After {answer.headers.get('retry-after')}"] += 1
        time.sleep(0.5)
    during = stream.acknowledged - at_stop
    stack.start_postgres()
    say("PostgreSQL is back")
    back_at, at_back = time.monotonic(), stream.acknowledged
    while stream.acknowledged == at_back and sending.is_alive():
        time.sleep(0.01)
    first_s = time.monotonic() - back_at
    decided = _told(deciding)
    sending.join()
    verdict = verify(stack.settings.postgres_dsn(), _point(stack), _PATIENCE_S)
    return {
        "away_s": away_s,
        "rate": rate,
        "answers_meanwhile": dict(answers),
        "acknowledged_meanwhile": during,
        "first_acknowledged_after_s": first_s,
        "decisions": _load(decided),
        "stream": _stream_told(stream),
        "verdict": _verdict(verdict, before + stream.acknowledged),
    }


RUNS = ("throughput", "batches", "kills", "outage")


class _Watch:
    """CPU seconds a second, by what took them; PostgreSQL's short-lived backends are missed."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def __enter__(self) -> _Watch:
        self._before, self._at = self._stack.cpu_s(), time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def cores(self) -> dict[str, float]:
        passed = time.monotonic() - self._at
        after = self._stack.cpu_s()
        return {name: (after[name] - self._before[name]) / passed for name in after}


def _rewards(stack: Stack, job: dict[str, Any], seed: int) -> subprocess.Popen[str]:
    point = _point(stack)
    schema = make_encoder(point, Embedder()).schema
    content = {
        "host": "127.0.0.1",
        "port": stack.ports["fast_lane"],
        "key": stack.settings.token_keys[0].get_secret_value(),
        "seed": seed,
        "arms": [arm.id.hex() for arm in point.records()],
        "features": len(schema.names),
        "schema_id": schema.schema_id,
        "point": point.name,
        "connections": _REWARD_CONNECTIONS if job["batch"] == 1 else _BATCH_CONNECTIONS,
        **job,
    }
    return _start("benchmarks.rewards.load", content)


def _open_loop(stack: Stack, bodies: Path, rate: float, seconds: float) -> subprocess.Popen[str]:
    job = {
        "host": "127.0.0.1",
        "port": stack.ports["fast_lane"],
        "path": "/v1/decisions",
        "bodies": str(bodies),
        "rate": rate,
        "seconds": seconds,
        "connections": _CONNECTIONS,
    }
    return _start("benchmarks.serving.open_loop", job)


def _start(module: str, job: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the generator failed with status {process.returncode}")
    return dict(json.loads(output))


def _decisions_file(stack: Stack) -> Path:
    rng = random.Random(5)
    bodies = [
        {
            "decision_point": POINT,
            "context": {"task": rng.choice(TASKS), "input_tokens": rng.randint(20, 2000)},
        }
        for _ in range(256)
    ]
    file = stack.folder / "decisions.jsonl"
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    return file


def _stream(
    stack: Stack, total: int, stream: Stream, batch: int, rate: float | None = None
) -> threading.Thread:
    work = lambda: asyncio.run(send(stack.url, POINT, TASKS, total, stream, batch, rate))  # noqa: E731
    thread = threading.Thread(target=work, name="stream")
    thread.start()
    return thread


def _head(stack: Stack) -> int:
    return int(stack.point(POINT)["rewards"])


def _point(stack: Stack) -> Any:
    return stack.settings.decision_points[0]


def _load(told: dict[str, Any]) -> dict[str, Any]:
    names = ("requests", "succeeded", "rate", "latency_ms", "lag_ms", "kinds", "elapsed_s")
    kept = {name: told[name] for name in names if name in told}
    return kept | {"generator_cores": told["cpu_s"] / told["elapsed_s"]}


def _percentiles(values: np.ndarray) -> dict[str, float]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = np.quantile(values, list(shares.values()), method="inverted_cdf")
    return dict(zip(shares, map(float, found), strict=True))


def _verdict(verdict: Any, acknowledged: int) -> dict[str, Any]:
    names = ("rows", "head", "twice", "learned", "identical")
    told = {name: getattr(verdict, name) for name in names}
    return told | {"acknowledged": acknowledged, "holds": verdict.holds(acknowledged)}


def _stream_told(stream: Stream) -> dict[str, Any]:
    told = vars(stream) | {"refused": len(stream.refused)}
    return dict(told)
