"""Constant-rate HTTP/1.1 load: ``python -m benchmarks.serving.open_loop JOB``.

Request k is due at ``start + k / rate`` whatever became of those before it. A timer of the kernel
wakes the loop when requests are due; each is sent on a connection that is free, or waits for one,
and its latency counts from the moment it was due, so that no queue goes unseen, not even this
program's own. ``JOB`` and the answer on standard output are JSON. One thread, plain sockets.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.serving.percentiles import percentiles_ms

__all__ = ["Answer", "OpenLoop", "main", "requests_of"]

BIN_S = 0.1
_CONNECT_S = 1.0
_RETRY_S = 0.05
_LAST_S = 5.0
_TOLD = 1000
_NANO = 1_000_000_000
_HEAD_END = b"\r\n\r\n"


class Answer:
    """Collects the bytes of one answer until it is whole."""

    __slots__ = ("_data", "_whole", "status")

    def __init__(self) -> None:
        self._data = b""
        self._whole = 0
        self.status = 0

    def feed(self, data: bytes) -> bool:
        """Whether the answer is whole now; ``status`` is its code then."""
        if self._data:
            data = self._data + data
        if not self._whole:
            end = data.find(_HEAD_END)
            if end < 0:
                self._data = data
                return False
            self.status = int(data[9:12])
            length = _content_length(data, end)
            if length is None:
                self._data = data
                return self._done() if data.endswith(b"0\r\n\r\n") else False
            self._whole = end + 4 + length
        if len(data) < self._whole:
            self._data = data
            return False
        return self._done()

    def _done(self) -> bool:
        self._data, self._whole = b"", 0
        return True


def _content_length(data: bytes, end: int) -> int | None:
    """None for an answer in chunks."""
    at = data.find(b"ontent-length: ", 0, end)
    if at < 0:
        at = data.find(b"ontent-Length: ", 0, end)
        if at < 0:
            return None
    at += 15
    return int(data[at : data.find(b"\r", at)])


class _Connection:
    """A place for one request at a time; its socket is replaced when the server closes it."""

    __slots__ = ("answer", "due_at", "first_port", "lives", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.answer = Answer()
        self.due_at: float | None = None
        self.first_port = 0
        self.lives = 0
        """How often it was opened; a place in the queue of free ones is good for one life."""


class OpenLoop:
    """One run.

    Parameters
    ----------
    address
        Host and port.
    requests
        Whole HTTP requests, sent in turn.
    rate
        Requests a second.
    seconds
        How long requests are due.
    connections
        Kept alive; also the most requests under way.
    """

    def __init__(
        self,
        address: tuple[str, int],
        requests: Sequence[bytes],
        rate: float,
        seconds: float,
        connections: int,
    ) -> None:
        self._address = address
        self._requests = requests
        self._interval = 1.0 / rate
        self._total = max(int(rate * seconds), 1)
        self._poll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._free: deque[tuple[_Connection, int]] = deque()
        self._closed: list[_Connection] = []
        self._retry_at = 0.0
        self._due: deque[float] = deque()
        self._counted = 0
        self._sent = 0
        self._start = 0.0
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []
        self.errors: list[tuple[float, int, str]] = []
        self.bins: Counter[int] = Counter()
        self.reopened = 0
        self._connections = [_Connection() for _ in range(connections)]
        for connection in self._connections:
            self._open(connection)
            if connection.socket is None:
                self._close()
                raise ConnectionRefusedError(f"nothing listens at {address[0]}:{address[1]}")

    def run(self) -> dict[str, Any]:
        """Send everything, wait for the last answers, and tell."""
        timer = _Timer(self._interval)
        self._start = time.monotonic()
        wall = time.time()
        timer_fd = timer.start()
        self._poll.register(timer_fd, select.EPOLLIN)
        last = self._start + self._total * self._interval + _LAST_S
        clock = time.monotonic
        before = time.process_time()
        while len(self.latencies_s) + len(self.errors) < self._total:
            events = self._poll.poll(_RETRY_S)
            now = clock()
            for fd, _ in events:
                if fd == timer_fd:
                    self._count(int.from_bytes(os.read(fd, 8), "little"))
                else:
                    connection = self._by_fd.get(fd)
                    if connection is not None:
                        self._receive(connection, now)
            if self._closed and now >= self._retry_at:
                self._reopen(now)
            if self._due and self._free:
                self._send(clock)
            if now > last:
                break
        elapsed = clock() - self._start
        cpu_s = time.process_time() - before
        os.close(timer_fd)
        self._close()
        missing = self._total - len(self.latencies_s) - len(self.errors)
        self.errors += [(elapsed, 0, "no answer")] * missing
        return self._told(wall, elapsed, cpu_s)

    def _close(self) -> None:
        self._poll.close()
        for connection in self._connections:
            if connection.socket is not None:
                connection.socket.close()

    def _told(self, wall: float, elapsed: float, cpu_s: float) -> dict[str, Any]:
        in_time = sum(
            self.bins[at] for at in self.bins if at * BIN_S < self._total * self._interval
        )
        return {
            "requests": self._total,
            "succeeded": len(self.latencies_s),
            "rate": in_time / (self._total * self._interval),
            "latency_ms": percentiles_ms(self.latencies_s),
            "lag_ms": percentiles_ms(self.lags_s),
            "errors": len(self.errors),
            "kinds": Counter(kind for _, _, kind in self.errors),
            "error_list": self.errors[:_TOLD],
            "bin_s": BIN_S,
            "bins": [self.bins[at] for at in range(max(self.bins, default=-1) + 1)],
            "reopened": self.reopened,
            "started_at": wall,
            "elapsed_s": elapsed,
            "cpu_s": cpu_s,
        }

    def _count(self, ticks: int) -> None:
        for _ in range(min(ticks, self._total - self._counted)):
            self._due.append(self._start + self._counted * self._interval)
            self._counted += 1

    def _send(self, clock: Any) -> None:
        waited = len(self._due) > len(self._free)
        while self._due and self._free:
            connection, life = self._free.popleft()
            if connection.lives != life or connection.socket is None:
                continue
            due_at = self._due.popleft()
            connection.due_at = due_at
            request = self._requests[self._sent % len(self._requests)]
            self._sent += 1
            now = clock()
            if not waited:
                self.lags_s.append(now - due_at)
            try:
                sent = connection.socket.send(request)
                if sent < len(request):
                    connection.socket.setblocking(True)
                    connection.socket.sendall(request[sent:])
                    connection.socket.setblocking(False)
            except OSError as error:
                self._lose(connection, now, type(error).__name__)

    def _receive(self, connection: _Connection, now: float) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(262144)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, now, type(error).__name__)
            return
        if not data:
            self._lose(connection, now, "closed")
            return
        if connection.due_at is None or not connection.answer.feed(data):
            return
        status = connection.answer.status
        if 200 <= status < 300:
            self.latencies_s.append(now - connection.due_at)
            self.bins[int((now - self._start) / BIN_S)] += 1
        else:
            self.errors.append((now - self._start, connection.first_port, f"status {status}"))
        connection.due_at = None
        self._free.append((connection, connection.lives))

    def _lose(self, connection: _Connection, now: float, kind: str) -> None:
        if connection.due_at is not None:
            self.errors.append((now - self._start, connection.first_port, kind))
            connection.due_at = None
        if connection.socket is not None:
            self._by_fd.pop(connection.socket.fileno(), None)
            connection.socket.close()
            connection.socket = None
        self._closed.append(connection)

    def _reopen(self, now: float) -> None:
        closed, self._closed = self._closed, []
        for connection in closed:
            self._open(connection)
            self.reopened += 1
        self._retry_at = now + _RETRY_S if self._closed else 0.0

    def _open(self, connection: _Connection) -> None:
        connection.answer = Answer()
        try:
            new = socket.create_connection(self._address, timeout=_CONNECT_S)
        except OSError:
            self._closed.append(connection)
            return
        with suppress(OSError):
            new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        new.setblocking(False)
        connection.socket = new
        connection.lives += 1
        connection.first_port = connection.first_port or new.getsockname()[1]
        self._by_fd[new.fileno()] = connection
        self._poll.register(new.fileno(), select.EPOLLIN)
        self._free.append((connection, connection.lives))


class _Timer:
    """The kernel's periodic timer; Python has it from 3.13 on."""

    def __init__(self, interval: float) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._interval = max(round(interval * _NANO), 1)

    def start(self) -> int:
        """File descriptor that tells how often it fired; it fires at once, then periodically."""
        fd: int = self._library.timerfd_create(1, os.O_NONBLOCK)
        period = divmod(self._interval, _NANO)
        if fd < 0 or self._library.timerfd_settime(fd, 0, struct.pack("qqqq", *period, 0, 1), None):
            raise OSError(ctypes.get_errno(), "timerfd")
        return fd


def requests_of(host: str, path: str, bodies: list[bytes]) -> list[bytes]:
    """Whole POST requests of JSON bodies."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def main() -> None:
    """Read the job from the command line, print what happened."""
    job = json.loads(sys.argv[1])
    bodies = Path(job["bodies"]).read_bytes().splitlines()
    requests = requests_of(job["host"], job["path"], bodies)
    address = (job["host"], job["port"])
    loop = OpenLoop(address, requests, job["rate"], job["seconds"], job["connections"])
    gc.collect()
    gc.disable()
    print(json.dumps(loop.run()))


if __name__ == "__main__":
    main()
