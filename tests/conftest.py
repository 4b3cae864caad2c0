"""Real servers for tests: started when the first test asks for one, stopped at the end."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import subprocess
import tempfile
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
