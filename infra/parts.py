"""The parts of the platform: what each is, how it starts, and how one sees that it works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import redis

from infra.addresses import http_url, with_driver, without_password
from infra.feature_check import announce_features
from infra.home import Home
from infra.ports import Port
from infra.processes import PART_MARK
from infra.servers import create_database, start_postgres, start_valkey
from optimizer.settings import Settings
from serving.run import READY_FILE

__all__ = ["Endpoint", "Part", "make_parts"]

_BEHIND_DECISIONS = 10
"""Niceness of what nobody waits for: MLflow, Prefect and the flows."""
_CHECK_S = 2
_DATABASES = ("llmopt", "mlflow", "prefect")

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Endpoint:
    """Something that people or programs connect to.

    Attributes
    ----------
    name, label
        For programs, and for people.
    address
        URL without secrets; empty where nothing listens.
    check
        Raises where it doesn't work, within seconds.
    """

    name: str
    label: str
    address: str
    check: Callable[[], None]


@dataclass(frozen=True)
class Part:
    """One part, most often one child process.

    Attributes
    ----------
    endpoint
        What tells whether the part is ready.
    start
        Starts the process; None where it is the user's own server, which is only checked.
    needs
        Parts that must be ready before, and that are stopped after.
    may_start
        False while starting it now would disturb another; asked for a minute at most.
    prepare
        Done once when the part first answers, before it counts as ready.
    more
        Further endpoints of the same process.
    ports
        What it listens on.
    essential
        Without it there is no platform: if it can't be started, nothing stays up.
    start_s, stop_s
        How long it may take to answer, and to end after it was asked to.
    stop_signal_is_interrupt
        It is asked by SIGINT, not by SIGTERM.
    """

    endpoint: Endpoint
    start: Callable[[], Process] | None
    needs: tuple[str, ...] = ()
    may_start: Callable[[], bool] = lambda: True
    prepare: Callable[[], None] = lambda: None
    more: tuple[Endpoint, ...] = ()
    ports: tuple[Port, ...] = ()
    essential: bool = False
    start_s: float = 180.0
    stop_s: float = 5.0
    stop_signal_is_interrupt: bool = False

    @property
    def name(self) -> str:
        """Name of the part."""
        return self.endpoint.name

    @property
    def label(self) -> str:
        """Name for people."""
        return self.endpoint.label


def make_parts(settings: Settings, home: Home) -> tuple[Part, ...]:
    """All parts, each after those that it needs."""
    return (
        _postgres(settings, home),
        _valkey(settings, home),
        _serving(settings, home),
        _prefect(settings, home),
        _mlflow(settings, home),
        _flows(settings, home),
    )


def _postgres(settings: Settings, home: Home) -> Part:
    port, url = settings.ports.postgres, settings.postgres_dsn("postgres")

    def prepare() -> None:
        for name in _DATABASES:
            create_database(url if settings.postgres_url is None else settings.postgres_url, name)
        announce_features(settings)

    own = settings.postgres_url is not None
    return Part(
        Endpoint(
            "postgres",
            "PostgreSQL",
            without_password(settings.postgres_dsn()),
            # Ours is asked at a database that is there before the first start is over.
            lambda: psycopg.connect(
                settings.postgres_dsn() if own else url, connect_timeout=_CHECK_S
            ).close(),
        ),
        None
        if own
        else lambda: start_postgres(home.postgres, port, _log(home, "postgres"), settings.host),
        prepare=prepare,
        ports=() if own else (Port(port, "PostgreSQL", "postgres"),),
        essential=True,
        start_s=60.0,
        stop_signal_is_interrupt=True,
    )


def _valkey(settings: Settings, home: Home) -> Part:
    port, url = settings.ports.valkey, settings.valkey_address

    def check() -> None:
        with redis.Redis.from_url(
            url, socket_timeout=_CHECK_S, socket_connect_timeout=_CHECK_S
        ) as client:
            client.ping()

    own = settings.valkey_url is not None
    return Part(
        Endpoint("valkey", "Valkey", without_password(url), check),
        None
        if own
        else lambda: start_valkey(home.valkey, port, _log(home, "valkey"), settings.host),
        ports=() if own else (Port(port, "Valkey", "valkey"),),
        essential=True,
        start_s=60.0,
        stop_s=3.0,
    )


def _serving(settings: Settings, home: Home) -> Part:
    ports = settings.ports
    fast_lane, ingress = (
        http_url(settings.host, port) for port in (ports.fast_lane, ports.ingress)
    )
    more = [Endpoint("ingress", "ingress (Ray Serve)", ingress, _answers(f"{ingress}/healthz"))]
    needed = [
        Port(ports.fast_lane, "the fast lane", "fast_lane"),
        Port(ports.ingress, "Ray Serve's ingress", "ingress"),
    ]
    if settings.ray_address is None:
        dashboard = http_url(settings.host, ports.ray_dashboard)
        more.append(Endpoint("ray_dashboard", "Ray dashboard", dashboard, _answers(dashboard)))
        needed += [
            Port(ports.ray_dashboard, "Ray's dashboard", "ray_dashboard"),
            Port(ports.haproxy_metrics, "HAProxy's metrics", "haproxy_metrics"),
            Port(ports.haproxy_stats, "HAProxy's statistics page", "haproxy_stats"),
        ]

    def start() -> Process:
        # One that a killed serving left would start MLflow and Prefect too early.
        (home.folder / READY_FILE).unlink(missing_ok=True)
        return _python(home, "serving", ["serving.run"])

    return Part(
        Endpoint("serving", "fast lane", fast_lane, _answers(f"{fast_lane}/readyz")),
        start,
        needs=("postgres", "valkey"),
        more=tuple(more),
        ports=tuple(needed),
        essential=True,
        stop_s=12.0,
    )


def _mlflow(settings: Settings, home: Home) -> Part:
    port, url = settings.ports.mlflow, settings.mlflow_address
    endpoint = Endpoint(
        "mlflow",
        "MLflow",
        without_password(url),
        _answers(f"{url.rstrip('/')}/health", ours=settings.mlflow_url is None),
    )
    if settings.mlflow_url is not None:
        return Part(endpoint, None)
    # By environment and not on the command line, where everybody could read a password.
    environment = {
        "MLFLOW_BACKEND_STORE_URI": with_driver(settings.postgres_dsn("mlflow"), "psycopg"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    artifacts = settings.mlflow_artifacts or home.artifacts.as_uri()
    command = [
        *("mlflow", "server", "--host", settings.host, "--port", str(port), "--workers", "1"),
        *("--serve-artifacts", "--artifacts-destination", artifacts),
    ]
    return Part(
        endpoint,
        lambda: _python(home, "mlflow", command, environment),
        needs=("postgres",),
        may_start=(home.folder / READY_FILE).exists,
        ports=(Port(port, "MLflow", "mlflow"),),
    )


def _prefect(settings: Settings, home: Home) -> Part:
    port, url = settings.ports.prefect, settings.prefect_address
    # The dashboard stands beside the API.
    address = without_password(url.removesuffix("/api"))
    endpoint = Endpoint(
        "prefect", "Prefect", address, _answers(f"{url}/health", ours=settings.prefect_url is None)
    )
    if settings.prefect_url is not None:
        return Part(endpoint, None)
    environment = {
        "PREFECT_API_DATABASE_CONNECTION_URL": with_driver(
            settings.postgres_dsn("prefect"), "asyncpg"
        ),
    }
    command = ["flows.server", settings.host, str(port)]
    return Part(
        endpoint,
        lambda: _python(home, "prefect", command, environment),
        needs=("postgres",),
        may_start=(home.folder / READY_FILE).exists,
        ports=(Port(port, "Prefect", "prefect"),),
    )


def _flows(settings: Settings, home: Home) -> Part:
    def check() -> None:
        found = httpx.post(
            f"{settings.prefect_address}/deployments/filter",
            json={},
            timeout=_CHECK_S,
            trust_env=settings.prefect_url is not None,
        ).raise_for_status()
        # An orderly stop pauses them all, so a server that remembers them doesn't mislead.
        if not any(one["status"] == "READY" and not one["paused"] for one in found.json()):
            raise httpx.HTTPError("no deployment is being served")

    return Part(
        Endpoint("flows", "flows", "", check),
        lambda: _python(home, "flows", ["flows.serve"]),
        needs=("postgres", "valkey", "prefect"),
        stop_s=10.0,
    )


def _python(
    home: Home, name: str, module: list[str], environment: Mapping[str, str] | None = None
) -> Process:
    """Start ``python -m module`` in a session of its own, its output appended to its log."""
    with _log(home, name).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *module],
            cwd=home.folder,
            env={**os.environ, **(environment or {}), PART_MARK: name},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    if name != "serving":
        psutil.Process(process.pid).nice(_BEHIND_DECISIONS)
    return process


def _log(home: Home, name: str) -> Path:
    return home.logs / f"{name}.log"


def _answers(url: str, *, ours: bool = True) -> Callable[[], None]:
    def check() -> None:
        # No proxy stands between us and our own children, whatever the environment says.
        httpx.get(
            url, timeout=_CHECK_S, follow_redirects=True, trust_env=not ours
        ).raise_for_status()

    return check
