"""Rewards for decisions that were never asked for: ``python -m benchmarks.rewards.load JOB``.

A token is all that a reward needs, and whoever has the key can make one, so the generator signs
tokens itself and no decision has to be fetched first. ``JOB`` and the answer on standard output are
JSON, as those of `benchmarks.serving.open_loop`, which sends what is due at a
constant rate; batches go in a closed loop.
"""

from __future__ import annotations

import gc
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, overload

from benchmarks.serving.open_loop import Answer, OpenLoop, requests_of
from benchmarks.serving.percentiles import percentiles_ms
from serving.tokens import CHAMPION, Decision, TokenSigner

__all__ = ["Singles", "batches", "closed_loop", "main", "reward_items"]

_RECEIVED = 1 << 20


def reward_items(job: dict[str, Any]) -> Iterator[bytes]:
    """Bodies of rewards, each for a decision of its own; the seed is in the job."""
    signer = TokenSigner([job["key"]])
    rng = random.Random(job["seed"])
    arms = [bytes.fromhex(arm) for arm in job["arms"]]
    now, pack = time.time(), struct.Struct(f"<{job['features']}e").pack
    # On the encoder's grid, as in every real token: what is learned is exact on it alone.
    features = [
        pack(*(round(rng.random() * 4096) / 4096 for _ in range(job["features"])))
        for _ in range(64)
    ]
    while True:
        decision = Decision(
            CHAMPION,
            rng.randbytes(16),
            now,
            arms[rng.randrange(len(arms))],
            0.5,
            0,
            job["schema_id"],
            job["point"],
            features[rng.randrange(64)],
        )
        token = signer.sign(decision)[1].encode()
        yield b'{"decision_id":"%s","quality":%.4f,"cost_usd":%.5f,"latency_s":%.3f}' % (
            token,
            rng.random(),
            0.01 * rng.random(),
            2.0 * rng.random(),
        )


class Singles(Sequence[bytes]):
    """Requests of one reward, made when they are sent: each can be taken once, in order."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._items = reward_items(job)
        self._host = job["host"]

    def __len__(self) -> int:
        return sys.maxsize

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(at, slice):
            raise TypeError("requests are made one at a time")
        return requests_of(self._host, "/v1/rewards", [next(self._items)])[0]


def batches(job: dict[str, Any]) -> list[bytes]:
    """Whole requests of ``batch`` rewards, made beforehand, so that making them takes no time."""
    items = reward_items(job)
    bodies = [
        b'{"items":[%s]}' % b",".join(next(items) for _ in range(job["batch"]))
        for _ in range(job["requests"])
    ]
    return requests_of(job["host"], "/v1/rewards/batch", bodies)


def closed_loop(
    address: tuple[str, int], requests: Sequence[bytes], connections: int
) -> dict[str, Any]:
    """Send everything; each connection sends its next request when its last is answered."""
    left = iter(requests)
    taking = threading.Lock()
    latencies_s: list[float] = []
    errors: Counter[str] = Counter()

    def work() -> None:
        answer = Answer()
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                with taking:
                    request = next(left, None)
                if request is None:
                    return
                sent_at = time.monotonic()
                connection.sendall(request)
                while not answer.feed(data := connection.recv(_RECEIVED)):
                    if not data:
                        errors["closed"] += 1
                        return
                if answer.status == 202:
                    latencies_s.append(time.monotonic() - sent_at)
                else:
                    errors[f"status {answer.status}"] += 1

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began, cpu_s = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "requests": len(requests),
        "succeeded": len(latencies_s),
        "latency_ms": percentiles_ms(latencies_s),
        "errors": sum(errors.values()),
        "kinds": errors,
        "elapsed_s": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu_s,
    }


def main() -> None:
    """Read the job from the command line, print what happened."""
    job = json.loads(sys.argv[1])
    address = (job["host"], job["port"])
    if job["batch"] > 1:
        requests = batches(job)
        gc.collect()
        gc.disable()
        print(json.dumps(closed_loop(address, requests, job["connections"])))
        return
    loop = OpenLoop(address, Singles(job), job["rate"], job["seconds"], job["connections"])
    gc.collect()
    gc.disable()
    print(json.dumps(loop.run()))


if __name__ == "__main__":
    main()
