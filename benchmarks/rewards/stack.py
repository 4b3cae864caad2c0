"""PostgreSQL, Valkey and the serving application, whose parts can be killed one by one.

No supervisor watches: what is killed comes back because Ray, or whoever killed it, starts it again.
MLflow and Prefect are not started, so the registry is away all the time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from benchmarks.serving.targets import free_ports
from infra.environment import UNWANTED
from infra.processes import STACK_MARK, find_marked, sweep
from infra.servers import (
    create_database,
    start_postgres,
    start_valkey,
    wait_postgres,
    wait_valkey,
)
from optimizer.settings import Settings

__all__ = ["Stack"]

_START_S = 180.0
_STOP_S = 30.0
_SERVERS_S = 60.0
_REPLICA = "ray::ServeReplica:decisions"
_LEARNER = "ray::ServeReplica:learner"
_PORTS = ("ingress", "fast_lane", "mlflow", "prefect", "ray_dashboard", "postgres", "valkey")


class Stack:
    """Runs from entering until leaving; its folder is removed then.

    Parameters
    ----------
    ports
        One for each of ingress, fast lane, MLflow, Prefect, Ray's dashboard, PostgreSQL and Valkey.
    settings
        What differs from the defaults, as in a settings file.
    """

    def __init__(self, ports: list[int], settings: dict[str, Any]) -> None:
        # Short, since HAProxy's sockets have long names below it and a path has 97 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="lr-"))
        self.folder.chmod(0o755)  # embedded PostgreSQL runs as another user where we are root
        self.ports = dict(zip(_PORTS, ports, strict=True))
        content = {
            "ports": self.ports,
            "home": str(self.folder / "home"),
            "token_keys": [secrets.token_hex(32)],
            **settings,
        }
        self.settings = Settings(**content)
        self._mark = secrets.token_hex(8)
        self._file = self.folder / "llmopt.yaml"
        self._file.write_text(json.dumps(content))
        self.url = f"http://127.0.0.1:{self.ports['fast_lane']}"
        self._postgres: subprocess.Popen[bytes] | None = None
        self._valkey: subprocess.Popen[bytes] | None = None
        self._serving: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start_postgres()
            server = f"postgresql://postgres@127.0.0.1:{self.ports['postgres']}/postgres"
            create_database(server, "llmopt")
            self.start_valkey()
            self._start_serving()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def start_postgres(self) -> None:
        """Return when it answers."""
        port = self.ports["postgres"]
        self._postgres = start_postgres(
            self.folder / "postgres", port, self.folder / "postgres.log"
        )
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        wait_postgres(url, _SERVERS_S, self._postgres)

    def stop_postgres(self) -> None:
        """As an administrator stops it ("fast shutdown"); return when it has ended."""
        self._postgres = _end(self._postgres, signal.SIGINT)

    def start_valkey(self) -> None:
        """Return when it answers."""
        port = self.ports["valkey"]
        self._valkey = start_valkey(self.folder / "valkey", port, self.folder / "valkey.log")
        wait_valkey(f"redis://127.0.0.1:{port}/0", _SERVERS_S, self._valkey)

    def kill_valkey(self) -> None:
        """``kill -9``: what it held since its last snapshot is gone."""
        self._valkey = _end(self._valkey, signal.SIGKILL)

    def replicas(self) -> list[psutil.Process]:
        """Actor processes that decide."""
        return self._titled(_REPLICA)

    def replica_of(self, port: int) -> int | None:
        """Process id of the replica that a client with this port is connected to."""
        lane = self.ports["fast_lane"]
        for process in self.replicas():
            for one in process.net_connections("tcp"):
                if one.laddr.port == lane and one.raddr and one.raddr.port == port:
                    return process.pid
        return None

    def learners(self) -> list[psutil.Process]:
        """The actor process that learns; none while Ray starts a new one."""
        return self._titled(_LEARNER)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that the parts have taken so far."""
        assert self._postgres is not None
        root = psutil.Process(self._postgres.pid)
        groups = {
            "replicas": self.replicas(),
            "learner": self.learners(),
            "postgres": [root, *root.children(recursive=True)],
        }
        return {name: sum(map(_cpu_s, processes)) for name, processes in groups.items()}

    def point(self, name: str) -> dict[str, Any]:
        """What the decision point tells of itself."""
        answer = httpx.get(f"{self.url}/v1/decision-points/{name}", timeout=20, trust_env=False)
        return dict(answer.raise_for_status().json())

    def _titled(self, title: str) -> list[psutil.Process]:
        return [each for each in find_marked(self._mark) if _title(each).startswith(title)]

    def _start_serving(self) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in UNWANTED and not name.startswith("LLMOPT_")
        }
        environment = {
            **kept,
            "LLMOPT_SETTINGS": str(self._file),
            STACK_MARK: self._mark,
            "TMPDIR": str(self.folder),
            "OPENBLAS_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "FEAST_USAGE": "False",
            # HAProxy listens there at the same ports in every platform of a machine.
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_ports(1)[0]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_ports(1)[0]),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        with (self.folder / "serving.log").open("ab") as log:
            self._serving = subprocess.Popen(
                [sys.executable, "-m", "serving.run"],
                cwd=Path(__file__).parents[2],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._ready():
            if self._serving.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"serving did not start: {self._last_words()}")
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            ready = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
        return ready and len(self.replicas()) == self.settings.replicas and bool(self.learners())

    def _last_words(self) -> str:
        return (self.folder / "serving.log").read_text(errors="replace")[-3000:]

    def _stop(self) -> None:
        try:
            _end(self._serving, signal.SIGTERM)
            sweep(self._mark)
        finally:
            _end(self._valkey, signal.SIGTERM)
            _end(self._postgres, signal.SIGINT)
            shutil.rmtree(self.folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    if process is None:
        return
    process.send_signal(how)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_S)


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
