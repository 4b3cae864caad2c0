"""Real servers for tests: started when the first test asks for one, stopped at the end."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from optimizer.settings import Settings

# A busy machine is no failure; tests of speed are benchmarks, see `make bench`.
hypothesis_settings.register_profile("project", deadline=None)
hypothesis_settings.load_profile("project")

_STOP_S = 20
_database_numbers = itertools.count()


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Folder of the servers' data; pytest's own is closed to the user PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="llmopt-tests-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """URL of the database ``llmopt`` on a PostgreSQL of this test session."""
    import psycopg

    from infra.servers import create_database, start_postgres, wait_postgres

    port = free_port()
    process = start_postgres(server_folder / "postgres", port, server_folder / "postgres.log")
    try:
        server = f"postgresql://postgres@127.0.0.1:{port}"
        wait_postgres(f"{server}/postgres", 60, process)
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            # Nobody needs this data after a power failure.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        create_database(f"{server}/postgres", "llmopt")
        yield f"{server}/llmopt"
    finally:
        stop(process, signal.SIGQUIT)


@pytest.fixture(scope="session")
def valkey_url(server_folder: Path) -> Iterator[str]:
    """URL of a Valkey of this test session."""
    from infra.servers import start_valkey, wait_valkey

    port = free_port()
    process = start_valkey(server_folder / "valkey", port, server_folder / "valkey.log")
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_valkey(url, 60, process)
        yield url
    finally:
        stop(process, signal.SIGTERM)


class Server:
    """A real server that can be killed and started again, on the same port and the same data."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Arguments of Python."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What differs from ours."""
        raise NotImplementedError

    def start(self) -> None:
        import httpx

        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self.command()],
                env={**os.environ, **self.environment()},
                cwd=self._folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.3)
        pytest.fail(f"{self.name} did not start: {log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End it at once, with the process that does its work."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_STOP_S)
            self._process = None


class MlflowServer(Server):
    """MLflow."""

    name = "MLflow"

    def command(self) -> list[str]:
        return [
            *("-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"),
            *("--artifacts-destination", str(self._folder / "artifacts")),
        ]

    def environment(self) -> dict[str, str]:
        return {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The MLflow of this test session."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_url(mlflow_server: MlflowServer) -> str:
    """Its URL."""
    return mlflow_server.url


class PrefectServer(Server):
    """Prefect with our deployments; its URL is that of its API."""

    name = "Prefect"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url += "/api"

    def command(self) -> list[str]:
        return ["-m", "flows.server", "127.0.0.1", str(self._port)]

    def environment(self) -> dict[str, str]:
        return {
            "DO_NOT_TRACK": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_HOME": str(self._folder),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._folder}/prefect.db",
            # A run that waits for another of its deployment looks again after so long, not 30 s.
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        }


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The Prefect of this test session."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def prefect_url(prefect_server: PrefectServer) -> str:
    """API address of the Prefect of this test session."""
    return prefect_server.url


class Flows:
    """Runs flows against the Prefect of this session, each in a process of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder

    def environment(self, platform: Settings) -> dict[str, str]:
        """Of a process whose settings are those."""
        file = self._folder / "llmopt.yaml"
        file.write_text(platform.model_dump_json(exclude={"token_keys"}))
        return {
            **os.environ,
            "DO_NOT_TRACK": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": self._url,
            "PREFECT_HOME": str(self._folder),
            "LLMOPT_SETTINGS": str(file),
        }

    def python(self, platform: Settings, *arguments: str) -> str:
        """Standard output of Python with these arguments."""
        made = subprocess.run(
            [sys.executable, *arguments],
            env=self.environment(platform),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        return made.stdout

    def run(self, platform: Settings, call: str) -> str:
        """What a flow returns, as text: ``call`` is for instance ``train(days=2)``."""
        name = call.partition("(")[0]
        return self.python(platform, "-c", f"from flows.{name} import {name}; print({call})")

    def artifacts(self, key: str) -> list[Any]:
        """What was shown under a key, the newest first."""
        import httpx

        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
        found = httpx.post(f"{self._url}/artifacts/filter", json=body).raise_for_status().json()
        return [one["data"] for one in found]


@pytest.fixture
def flows(prefect_url: str, tmp_path: Path) -> Flows:
    """Runs flows as Prefect's runner does."""
    return Flows(prefect_url, tmp_path)


@pytest.fixture
def settings(postgres_url: str, valkey_url: str, tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings with an empty database and an empty Valkey, the same for a whole test."""
    import redis

    from infra.servers import create_database

    name = f"test_{next(_database_numbers)}"
    create_database(postgres_url, name)
    with redis.Redis.from_url(valkey_url) as client:
        client.flushall()

    def make(**given: Any) -> Settings:
        defaults: dict[str, Any] = {
            "decision_points": [{"name": "chat", "arms": [{"model": "small"}, {"model": "large"}]}],
            "postgres_url": f"{postgres_url.rpartition('/')[0]}/{name}",
            "valkey_url": valkey_url,
            "home": tmp_path,
        }
        return Settings(**(defaults | given))

    return make


@pytest.fixture(scope="session")
def find_free_port() -> Callable[[], int]:
    """Finds a port that nobody uses."""
    return free_port


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now.

    It is below those that systems give to outgoing connections, of which Ray opens dozens while a
    platform starts.
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randrange(12_000, 28_000)))
            except OSError:
                continue
            return port


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Ask a server to end, and wait for it."""
    process.send_signal(how)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_S)
