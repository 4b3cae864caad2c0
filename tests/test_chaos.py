"""Parts are killed while an application sends rewards: nothing is lost, counted twice or unlearned.

The tests share PostgreSQL, Valkey and the application on Ray, and kill one after the other. The
long version, with 100 kills and 200,000 rewards, is ``python -m benchmarks.rewards``.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.rewards.stack import Stack
from benchmarks.rewards.stream import Stream, send
from benchmarks.rewards.verify import verify

pytestmark = [pytest.mark.platform, pytest.mark.timeout(400)]

TASKS = ("chat", "code")
SETTINGS: dict[str, Any] = {
    "decision_points": [
        {"name": "chat", "arms": [{"model": "small"}, {"model": "large"}], "tasks": list(TASKS)}
    ],
    "replicas": 2,
    "learner": {"batch_s": 0.05, "batch_rewards": 200, "checkpoint_s": 0.2},
}
_BATCH = 20
_RATE = 500.0
_BACK_S = 120.0


@pytest.fixture(scope="module")
def stack(find_free_port: Callable[[], int]) -> Iterator[Stack]:
    with Stack([find_free_port() for _ in range(7)], SETTINGS) as made:
        yield made


@contextmanager
def rewards(stack: Stack, total: int) -> Iterator[Stream]:
    """Rewards sent while the block runs, which then must be what the ledger has more than before.

    Each run of the block begins when a tenth of them is acknowledged.
    """
    before = stack.point("chat")["rewards"]
    stream = Stream()
    sending = threading.Thread(
        target=lambda: asyncio.run(
            send(stack.url, "chat", TASKS, total, stream, _BATCH, _RATE, seed=before)
        )
    )
    sending.start()
    try:
        wait_until(lambda: stream.acknowledged >= total // 10)
        assert sending.is_alive()  # what is killed is killed under load
        yield stream
    finally:
        sending.join(_BACK_S)
    assert not sending.is_alive()
    assert not stream.refused
    assert stream.acknowledged == total
    verdict = verify(stack.settings.postgres_dsn(), stack.settings.decision_points[0], _BACK_S)
    assert verdict.holds(before + total), verdict


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + _BACK_S
    while not true():
        assert time.monotonic() < end, f"not within {_BACK_S} s"
        time.sleep(0.05)


def kill(process: psutil.Process, alive: Callable[[], list[psutil.Process]], wanted: int) -> None:
    """``kill -9``; return when another one has taken its place."""
    process.kill()
    wait_until(lambda: len({each.pid for each in alive()} - {process.pid}) == wanted)


def test_learner_is_killed(stack: Stack) -> None:
    with rewards(stack, 2000):
        for _ in range(2):
            kill(stack.learners()[0], stack.learners, 1)


def test_replica_is_killed(stack: Stack) -> None:
    with rewards(stack, 2000):
        kill(stack.replicas()[0], stack.replicas, 2)


def test_postgresql_is_stopped_and_started(stack: Stack) -> None:
    """Rewards are refused and kept by the client meanwhile; decisions go on."""
    with rewards(stack, 3000) as stream, httpx.Client(base_url=stack.url, timeout=20) as client:
        asked = {"decision_point": "chat", "context": {"task": "chat"}}
        first = client.post("/v1/decisions", json=asked).json()
        stack.stop_postgres()
        stopped = time.monotonic()
        time.sleep(0.5)  # answers that are on their way
        acknowledged = stream.acknowledged
        while time.monotonic() - stopped < 5:
            assert client.post("/v1/decisions", json=asked).json()["fallback"] is False
            reward = {"decision_id": first["decision_id"], "quality": 1.0}
            refused = client.post("/v1/rewards", json=reward)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            time.sleep(0.1)
        assert stream.acknowledged == acknowledged
        stack.start_postgres()
        wait_until(lambda: stream.acknowledged > acknowledged)


def test_valkey_is_killed_and_started_empty(stack: Stack) -> None:
    """Replicas keep their policy; when Valkey is back they get what was learned meanwhile."""
    with rewards(stack, 2000), httpx.Client(base_url=stack.url, timeout=20) as client:
        stack.kill_valkey()
        asked = {"decision_point": "chat", "context": {"task": "code"}}
        for _ in range(20):
            assert client.post("/v1/decisions", json=asked).json()["fallback"] is False
            time.sleep(0.05)
        stack.start_valkey()
    wait_until(lambda: (told := stack.point("chat"))["learned"] == told["rewards"])
