"""Flows whose process, runner or server dies, on real servers: they are done all the same."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pyarrow.parquet as pq
import pytest

from feature_repo.partitions import ensure
from feature_repo.tables import create_tables as create_feature_tables
from optimizer.settings import Settings
from registry.reports import log_report
from serving import audit, ledger
from serving.expiry import drop_expired

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=800)


def fill(dsn: str) -> None:
    """An old day of features, an old week of decisions, and an old and a new entry of the audit."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        ledger.create_tables(connection)
        create_feature_tables(connection, "feast", NOW)
        ensure(connection, "feast.arm_statistics", OLD, OLD + timedelta(hours=1))
        connection.execute(
            "INSERT INTO feast.arm_statistics (arm_key, event_timestamp, created_at) "
            "VALUES ('chat/small', %s, now())",
            (OLD,),
        )
        for _ in range(3):
            audit.record(connection, "chat", "command", "policy.rollback", "a test", {"of": 1})
        connection.execute("UPDATE audit SET at = %s WHERE id < 3", (OLD,))


def entries(dsn: str) -> list[int]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [one for (one,) in connection.execute("SELECT id FROM audit ORDER BY id")]


def test_what_is_over_goes_to_files_and_a_dry_run_changes_nothing(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    platform = settings(retention={"export_folder": "exported"})
    fill(platform.postgres_dsn())
    steps = ("features", "ledger", "audit")
    would = [one for step in steps for one in drop_expired(platform, step, NOW, dry_run=True)]
    assert [(one.kind, one.count) for one in would if one.kind == "audit"] == [("audit", 2)]
    assert not (tmp_path / "exported").exists() and entries(platform.postgres_dsn()) == [1, 2, 3]
    went = [one for step in steps for one in drop_expired(platform, step, NOW)]
    assert [(one.kind, one.name) for one in went] == [(one.kind, one.name) for one in would]
    assert {one.kind for one in went} >= {"features", "audit"}
    assert entries(platform.postgres_dsn()) == [3]
    for one in went:
        assert one.file is not None and pq.read_metadata(one.file).num_rows > 0
    assert [one for step in steps for one in drop_expired(platform, step, NOW)] == []


def test_a_report_that_is_stored_again_is_one_run(mlflow_url: str) -> None:
    from registry.old_runs import drop_runs

    given: dict[str, str | float] = {"decision_point": "chat", "end": "noon"}
    urls = [log_report(mlflow_url, "again", [], {"x": x}, given, "chat") for x in (1.0, 2.0)]
    assert urls[0] != urls[1]
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert drop_runs(mlflow_url, ("again", "none"), later, dry_run=True) == {"again": 1}
    assert drop_runs(mlflow_url, ("again",), later) == {"again": 1}
    assert drop_runs(mlflow_url, ("again",), later) == {}


class Flows:
    """The real process that serves flows, and what Prefect knows of their runs."""

    def __init__(self, url: str, environment: dict[str, str], folder: Path) -> None:
        self._url, self.environment, self._folder = url, environment, folder
        self.log = folder / "flows.log"
        self._process: psutil.Popen | None = None

    def serve(self) -> None:
        with self.log.open("ab") as output:
            self._process = psutil.Popen(
                [sys.executable, "-m", "flows.serve"],
                env=self.environment,
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )

    def runs(self) -> list[psutil.Process]:
        assert self._process is not None
        return self._process.children(recursive=True)

    def kill_runs(self) -> None:
        for one in self.runs():
            one.kill()

    def kill(self) -> None:
        if self._process is not None:
            everyone = [self._process, *self.runs()]
            for one in everyone:
                one.kill()
            psutil.wait_procs(everyone, 10)
            self._process = None

    def ask(self, what: str, **body: Any) -> Any:
        response = httpx.post(f"{self._url}/{what}", json=body, timeout=20)
        return response.raise_for_status().json()

    def start_run(self, name: str) -> str:
        wanted = {"deployments": {"name": {"any_": [name]}}}
        found = self.wait(lambda: self.ask("deployments/filter", **wanted))
        path = f"deployments/{found[0]['id']}/create_flow_run"
        once = {"state": {"type": "SCHEDULED"}, "idempotency_key": str(time.monotonic_ns())}
        # Prefect on SQLite answers 503 while somebody else writes.
        made = self.wait(lambda: self.ask(path, **once))
        return str(made["id"])

    def run(self, run_id: str) -> Any:
        return httpx.get(f"{self._url}/flow_runs/{run_id}", timeout=20).raise_for_status().json()

    def wait(self, what: Callable[[], Any], timeout_s: float = 100) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if found := what():
                    return found
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        pytest.fail(f"not within {timeout_s} s: {self.log.read_text()[-4000:]}")

    def wait_state(self, run_id: str, kind: str) -> Any:
        def reached() -> Any:
            found = self.run(run_id)
            assert found["state_type"] in (kind, "SCHEDULED", "PENDING", "RUNNING", "CRASHED")
            return found if found["state_type"] == kind else None

        return self.wait(reached)


@contextmanager
def audit_locked(dsn: str) -> Iterator[Callable[[], int]]:
    """Nobody gets at the audit; gives how many wait for it, also those whose process is gone."""
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as watcher:
        holder.execute("LOCK TABLE audit IN ACCESS EXCLUSIVE MODE")

        def waiting() -> int:
            row = watcher.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'audit'::regclass"
            ).fetchone()
            return 0 if row is None else int(row[0])

        yield waiting


@pytest.fixture
def flows(
    settings: Callable[..., Settings], prefect_url: str, mlflow_url: str, tmp_path: Path
) -> Iterator[Flows]:
    platform = settings(retention={"export_folder": "exported"})
    fill(platform.postgres_dsn())
    file = tmp_path / "llmopt.yaml"
    content = platform.model_dump(mode="json", exclude_defaults=True, exclude={"token_keys"})
    file.write_text(json.dumps({**content, "mlflow_url": mlflow_url, "prefect_url": prefect_url}))
    environment = {
        **os.environ,
        "LLMOPT_SETTINGS": str(file),
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    }
    served = Flows(prefect_url, environment, tmp_path)
    try:
        served.serve()
        wanted = {"deployments": {"name": {"any_": ["retention"]}}}
        served.wait(lambda: served.ask("deployments/filter", **wanted))
        yield served
    finally:
        served.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_survive_the_death_of_process_runner_and_server(
    settings: Callable[..., Settings], prefect_server: Any, flows: Flows, tmp_path: Path
) -> None:
    dsn = settings().postgres_dsn()
    with audit_locked(dsn) as waiting:
        run = flows.start_run("retention")
        flows.wait(waiting)
        second = flows.start_run("retention")
        flows.wait(lambda: flows.run(second)["state_name"] == "AwaitingConcurrencySlot")
        flows.kill_runs()
        flows.wait(lambda: flows.run(run)["state_type"] != "RUNNING")
        # It starts again, or the one that waited does; never both at once.
        flows.wait(lambda: waiting() == 2)
        states = [flows.run(one)["state_type"] for one in (run, second)]
        assert states.count("RUNNING") == 1
    assert flows.wait_state(run, "COMPLETED")["run_count"] == 2
    flows.wait_state(second, "COMPLETED")
    assert entries(dsn) == [3]
    files = sorted((tmp_path / "exported").glob("*"))
    assert {file.suffix for file in files} == {".parquet"}
    assert pq.read_metadata(tmp_path / "exported" / "audit-1.parquet").num_rows == 2

    detect = (
        "import asyncio; from prefect import get_client; from flows.recovery import *\n"
        "async def main():\n"
        "    async with get_client() as client:\n"
        "        await detect_dead_runs(client, ['retention'], 10)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", detect], env=flows.environment, check=True, timeout=60)
    with audit_locked(dsn) as waiting:
        orphan = flows.start_run("retention")
        flows.wait(waiting)
        flows.kill()
    assert flows.run(orphan)["state_type"] == "RUNNING"
    flows.wait(lambda: flows.run(orphan)["state_type"] == "CRASHED")
    flows.serve()
    assert flows.wait_state(orphan, "COMPLETED")["run_count"] == 2

    prefect_server.kill()
    time.sleep(4)
    prefect_server.start()
    flows.wait_state(flows.start_run("retention"), "COMPLETED")
