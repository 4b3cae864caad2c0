"""What must not disturb those who ask: snapshots that are swapped in, and a replica that dies."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.serving.load import Load
from benchmarks.serving.ours import Platform
from benchmarks.serving.payloads import POINT
from benchmarks.serving.steps import Step, run
from serving.snapshots import SnapshotStore

__all__ = ["Killed", "Swaps", "kill_one_replica", "recovery_s", "swap_snapshots"]

_SWAP_EVERY_S = 0.2
_BEFORE_KILL_S = 5.0
_AFTER_KILL_S = 25.0
_WHOLE = 0.95
_WINDOW_S = 1.0


@dataclass(frozen=True)
class Swaps:
    """Throughput with and without swaps, round by round.

    Attributes
    ----------
    published
        How many snapshots, every 200 ms, straight into Valkey as the learner does it.
    taken
        By how much the version that the replica decides with rose; each raises it by one. The last
        ones may be overtaken before a replica looks.
    cost
        Share of the throughput that is lost, the median over rounds.
    """

    without: list[float]
    with_swaps: list[float]
    published: int
    taken: int
    errors: dict[str, int]
    cost: float


class _Publisher:
    """Publishes the newest snapshot again and again, each time with a higher position."""

    def __init__(self, address: str) -> None:
        self._store = SnapshotStore(address)
        newest = self._store.newest(POINT)
        if newest is None:
            raise RuntimeError("there is no snapshot to publish again")
        self._snapshot = newest
        self.position = newest.position
        self.published = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Publisher:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def close(self) -> None:
        self._store.close()

    def _run(self) -> None:
        while not self._stop.wait(_SWAP_EVERY_S):
            self.position += 1
            self.published += 1
            again = msgspec.structs.replace(
                self._snapshot, position=self.position, published_at=time.time()
            )
            self._store.publish(again)


def swap_snapshots(
    platform: Platform,
    step: Step,
    bodies: Path,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> Swaps:
    """The same closed loop without and with swaps, in turn."""
    door = platform.fast_lane()
    publisher = _Publisher(platform.valkey_address)
    before = platform.details()["policy_version"]
    plain: list[Load] = []
    swapped: list[Load] = []
    try:
        for number in range(rounds):
            plain.append(run(step, door, bodies, seconds, lambda pid: None))
            with publisher:
                swapped.append(run(step, door, bodies, seconds, lambda pid: None))
            say(f"round {number + 1}: swaps: {plain[-1].rate:,.0f}/s, {swapped[-1].rate:,.0f}/s")
        time.sleep(1.0)
        after = platform.details()["policy_version"]
    finally:
        publisher.close()
    errors: dict[str, int] = {}
    for load in (*plain, *swapped):
        for kind, count in load.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    ratios = [one.rate / of.rate for one, of in zip(swapped, plain, strict=True) if of.rate]
    return Swaps(
        [load.rate for load in plain],
        [load.rate for load in swapped],
        publisher.published,
        after - before,
        errors,
        1 - statistics.median(ratios),
    )


@dataclass(frozen=True)
class Killed:
    """What those who asked saw of a replica's death.

    Attributes
    ----------
    connections_of_the_dead
        How many it had.
    errors_of_the_dead, errors_elsewhere
        On its connections, and on others.
    recovered_s
        From the kill until every second has its full rate again; None if it never had.
    replaced_s
        Until there were two replicas again; None if there never were.
    per_second
        Good answers in each second, and errors in each.
    """

    rate: float
    killed_at_s: float
    connections: int
    connections_of_the_dead: int
    errors_of_the_dead: int
    errors_elsewhere: int
    kinds: dict[str, int]
    recovered_s: float | None
    replaced_s: float | None
    p99_ms: float
    per_second: list[tuple[int, int]]


def kill_one_replica(
    platform: Platform, step: Step, bodies: Path, say: Callable[[str], None]
) -> Killed:
    """``kill -9`` of one of the replicas under an open loop.

    Parameters
    ----------
    platform
        With two replicas.
    step
        Its rate is held throughout.
    """
    killer = _Killer(platform)
    load = run(step, platform.fast_lane(), bodies, _BEFORE_KILL_S + _AFTER_KILL_S, killer.start)
    killer.join()
    told = load.details
    killed_at = killer.killed_at - told["started_at"]
    errors = told["error_list"]
    of_the_dead = sum(port in killer.ports for _, port, _ in errors)
    seconds = [[0, 0] for _ in range(int(_BEFORE_KILL_S + _AFTER_KILL_S))]
    per_second = round(1 / told["bin_s"])
    for at, count in enumerate(told["bins"]):
        seconds[min(at // per_second, len(seconds) - 1)][0] += count
    for at, _, _ in errors:
        seconds[min(int(at), len(seconds) - 1)][1] += 1
    assert step.rate is not None
    result = Killed(
        step.rate,
        killed_at,
        step.connections,
        len(killer.ports),
        of_the_dead,
        told["errors"] - of_the_dead,
        dict(load.errors),
        recovery_s(
            told["bins"], told["bin_s"], step.rate, killed_at, _BEFORE_KILL_S + _AFTER_KILL_S
        ),
        killer.replaced_s,
        load.latency_ms.get("p99", float("nan")),
        [(good, bad) for good, bad in seconds],
    )
    say(
        f"kill: {result.errors_of_the_dead}+{result.errors_elsewhere} errors, "
        f"full rate after {_seconds(result.recovered_s)}, "
        f"replaced after {_seconds(result.replaced_s)}"
    )
    return result


def recovery_s(
    bins: Sequence[int], bin_s: float, rate: float, killed_at_s: float, end_s: float
) -> float | None:
    """Seconds from the kill until no window of a second is below 95 % of the rate any more.

    Parameters
    ----------
    bins
        Good answers in each ``bin_s`` seconds.
    rate
        Due a second.
    end_s
        When the last request was due.
    """
    width = round(_WINDOW_S / bin_s)
    first, last = int(killed_at_s / bin_s), int(end_s / bin_s)
    counts = list(bins[:last]) + [0] * (last - len(bins))
    low = [
        start
        for start in range(first, last - width + 1)
        if sum(counts[start : start + width]) < _WHOLE * rate * _WINDOW_S
    ]
    if not low:
        return 0.0
    recovered = (low[-1] + width) * bin_s
    return None if low[-1] == last - width else max(recovered - killed_at_s, 0.0)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


class _Killer:
    """Kills a replica some seconds after the generator began, then waits for a new one."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self.ports: set[int] = set()
        self.killed_at = float("nan")
        self.replaced_s: float | None = None

    def start(self, generator: int) -> None:
        """Begin to count."""
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        before = self._platform.replicas()
        if len(before) < 2:
            return
        time.sleep(_BEFORE_KILL_S)
        victim = max(before, key=lambda each: len(self._clients(each)))
        self.ports = self._clients(victim)
        self.killed_at = time.time()
        os.kill(victim.pid, signal.SIGKILL)
        while time.time() - self.killed_at < _AFTER_KILL_S - 1:
            time.sleep(0.5)
            alive = set(self._platform.replicas()) - set(before)
            if any(self._listens(each) for each in alive):
                self.replaced_s = time.time() - self.killed_at
                return

    def _clients(self, process: psutil.Process) -> set[int]:
        """Ports of the clients that the process is connected to, by the fast lane."""
        port = self._platform.ports["fast_lane"]
        return {
            each.raddr.port
            for each in _connections(process)
            if each.laddr.port == port and each.raddr
        }

    def _listens(self, process: psutil.Process) -> bool:
        port = self._platform.ports["fast_lane"]
        return any(
            each.laddr.port == port and each.status == psutil.CONN_LISTEN
            for each in _connections(process)
        )


def _connections(process: psutil.Process) -> list[Any]:
    with suppress(psutil.Error):
        return list(process.net_connections("tcp"))
    return []
