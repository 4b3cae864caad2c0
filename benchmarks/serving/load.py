"""Runs a load generator in a process of its own and reads what it tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.targets import Door

__all__ = ["Load", "closed_loop", "missing_tools", "open_loop", "read_open_loop", "read_wrk"]

_SCRIPT = Path(__file__).with_name("closed_loop.lua")
_PATIENCE_S = 30.0
_WRK_ERRORS = ("connect", "read", "write", "status", "timeout")

Watch = Callable[[int], None]
"""Told the process id of the generator."""


@dataclass(frozen=True)
class Load:
    """What one run of a generator saw.

    Attributes
    ----------
    requests
        Answered, or due in an open loop.
    rate
        Good answers a second.
    latency_ms
        ``p50``, ``p90``, ``p99``, ``p99.9`` and ``max``.
    errors
        By kind.
    lag_ms
        Open loop: from when a request was due until it was sent though a connection was free, the
        generator's own delay; it is part of the latency.
    details
        Open loop: all that the generator told.
    """

    requests: int
    rate: float
    latency_ms: dict[str, float]
    errors: dict[str, int]
    lag_ms: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def missing_tools() -> list[str]:
    """Debian packages to install before."""
    return [name for name in ("wrk",) if shutil.which(name) is None]


def closed_loop(
    door: Door, kind: str, bodies: Path, connections: int, seconds: float, watch: Watch
) -> Load:
    """Each connection sends its next request when the last is answered: the most there is."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--timeout", "10s"]
    command += ["-s", str(_SCRIPT), f"http://127.0.0.1:{door.port}{door.paths[kind]}"]
    output = _run([*command, "--", str(bodies)], seconds, watch)
    return read_wrk(output)


def open_loop(
    door: Door,
    kind: str,
    bodies: Path,
    connections: int,
    rate: float,
    seconds: float,
    watch: Watch,
) -> Load:
    """Requests are due at a constant rate, whatever the server does."""
    job = {
        "host": "127.0.0.1",
        "port": door.port,
        "path": door.paths[kind],
        "bodies": str(bodies),
        "rate": rate,
        "seconds": seconds,
        "connections": connections,
    }
    command = [sys.executable, "-m", "benchmarks.serving.open_loop", json.dumps(job)]
    return read_open_loop(_run(command, seconds, watch))


def read_wrk(output: str) -> Load:
    """The line of JSON that ``closed_loop.lua`` writes, among what wrk itself writes."""
    line = next((line for line in output.splitlines() if line.startswith("{")), None)
    if line is None:
        raise ValueError(f"wrk told nothing: {output[-300:]!r}")
    told = json.loads(line)
    errors = {kind: told[kind] for kind in _WRK_ERRORS if told[kind]}
    good = told["requests"] - told["status"]
    latency = {name: told[name] for name in ("p50", "p90", "p99", "p99.9", "max")}
    return Load(told["requests"], good / told["seconds"], latency, errors)


def read_open_loop(output: str) -> Load:
    """The JSON that `benchmarks.serving.open_loop` prints."""
    told = json.loads(output)
    return Load(
        told["requests"],
        told["rate"],
        told["latency_ms"],
        told["kinds"],
        told["lag_ms"],
        told,
    )


def _run(command: Sequence[str], seconds: float, watch: Watch) -> str:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        watch(process.pid)
        output, said = process.communicate(timeout=seconds + _PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {(said or output)[-500:]}")
    return output
