"""Policy versions and flows on a real MLflow server and a real Prefect server."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from optimizer.errors import IncompatibleState, Unavailable
from optimizer.features import FeatureEncoder
from optimizer.records import Observation, Outcome
from optimizer.settings import DecisionPoint, Settings
from registry.description import PolicyDescription
from registry.reports import log_report
from registry.versions import PolicyRegistry
from serving.ledger import RewardEvent, create_tables, write

# MLflow warns about its own type hints, in colours, where its pyfunc flavour is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
ENCODER = FeatureEncoder(("math",), 2)


@contextmanager
def started(
    command: list[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **QUIET, **environment},
            cwd=log.parent,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what: Callable[[], Any], log: Path, timeout_s: float = 240) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    pytest.fail(f"not within {timeout_s} s; {log}:\n{log.read_text()[-3000:]}")


def description(name: str = "chat", **changes: Any) -> PolicyDescription:
    arms = [{"model": "small"}, {"model": "large"}, {"model": "large", "prompt_variant": "brief"}]
    point = DecisionPoint(name=name, arms=arms, tasks=("math",), cost_cap_usd=0.01, **changes)
    return PolicyDescription(
        decision_point=point, feature_names=ENCODER.names, schema_id=ENCODER.schema_id
    )


def learned(described: PolicyDescription, rows: int) -> bytes:
    policy = described.policy()
    features = [[1.0, index % 3, *[0.1] * (ENCODER.size - 2)] for index in range(rows)]
    policy.learn(
        Observation(index % 3, np.array(row), Outcome(), Outcome(quality=index % 2, cost_usd=1e-3))
        for index, row in enumerate(features)
    )
    return policy.to_bytes()


def test_a_published_policy_comes_back_and_only_the_newest_stay(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    described = description()
    assert registry.champion("chat") is None
    for number in range(1, 5):
        state = learned(described, number)
        metrics = {"reward": 0.5}
        published = registry.publish(described, state, position=number, metrics=metrics, kept=2)
        assert published == number
    found = registry.champion("chat")
    assert found is not None and (found.version, found.position) == (4, 4)
    assert found.state == learned(described, 4) and found.lineage == described.policy().lineage
    stored = httpx.get(
        f"{mlflow_url}/api/2.0/mlflow/model-versions/search", params={"filter": "name = 'chat'"}
    ).json()["model_versions"]
    assert sorted(int(one["version"]) for one in stored) == [3, 4]


def test_a_version_with_an_alias_is_never_dropped(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    described = description("kept")
    state = learned(described, 3)
    registry.publish(described, state, position=1, metrics={})
    httpx.post(
        f"{mlflow_url}/api/2.0/mlflow/registered-models/alias",
        json={"name": "kept", "alias": "before-the-change", "version": "1"},
    ).raise_for_status()
    for position in (2, 3):
        registry.publish(described, state, position=position, metrics={}, kept=1)
    stored = httpx.get(
        f"{mlflow_url}/api/2.0/mlflow/model-versions/search", params={"filter": "name = 'kept'"}
    ).json()["model_versions"]
    assert sorted(int(one["version"]) for one in stored) == [1, 3]


def test_anybody_can_load_the_champion_and_ask_it(mlflow_url: str) -> None:
    registry = PolicyRegistry(mlflow_url)
    described = description("loadable")
    state = learned(described, 20)
    registry.publish(described, state, position=20, metrics={"reward": 0.7})
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(mlflow_url)
    model = mlflow.pyfunc.load_model("models:/loadable@champion")
    rows = pd.DataFrame([[1.0] * ENCODER.size, [0.5] * ENCODER.size], columns=ENCODER.names)
    predicted = model.predict(rows)
    assert list(predicted.columns) == list(described.arm_names)
    assert predicted.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])
    policy = described.policy()
    policy.from_bytes(state)
    assert predicted.iloc[1].tolist() == policy.probabilities(rows.iloc[1].to_numpy()).tolist()


def test_state_of_another_policy_is_refused(mlflow_url: str) -> None:
    other = learned(description("other", policy={"horizon": 500.0}), 1)
    with pytest.raises(IncompatibleState, match="lineage"):
        PolicyRegistry(mlflow_url).publish(description("other"), other, position=1, metrics={})


@pytest.mark.parametrize("hangs", [False, True])
def test_a_server_that_is_away_is_soon_said(hangs: bool, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if hangs:
            silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        registry = PolicyRegistry(url)
        start = time.monotonic()
        with pytest.raises(Unavailable, match="MLflow"):
            registry.champion("chat")
        assert time.monotonic() - start < 8
        if not hangs:
            with pytest.raises(Unavailable, match="MLflow"):
                log_report(url, "reports", [], {}, {}, "none")


def fill(dsn: str, rows: int) -> None:
    """Decisions of the last minutes, a fifth of them control, with their outcomes."""
    events = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        create_tables(connection)
        for row in range(rows):
            raw = row.to_bytes(16, "big")
            token = b"\x02" + bytes(60) + row.to_bytes(8, "big")  # each a unit of its own
            at = datetime.now(UTC) - timedelta(seconds=rows - row)
            role, model = ("control", "large") if row % 5 == 0 else ("champion", "small")
            connection.execute(
                "INSERT INTO decisions (decision_point, decision_id, decided_at, model, role, "
                "propensity, policy_version, token) VALUES ('chat', %s, %s, %s, %s, 0.5, 1, %s)",
                (raw.hex(), at, model, role, token),
            )
            cost = 0.008 if model == "large" else 0.002
            outcome = Outcome(quality=float(row % 7 != 0), cost_usd=cost)
            events.append(RewardEvent("chat", raw, "", outcome, False, token))
        write(connection, events)


@pytest.mark.timeout(600)
def test_the_report_runs_on_its_schedule(
    settings: Callable[..., Settings],
    mlflow_url: str,
    prefect_url: str,
    tmp_path: Path,
) -> None:
    dsn = settings().postgres_dsn()
    fill(dsn, 300)
    file = tmp_path / "llmopt.yaml"
    point = {"arms": [{"model": "small"}, {"model": "large"}], "cost_cap_usd": 0.01}
    given = {
        "postgres_url": dsn,
        "mlflow_url": mlflow_url,
        "prefect_url": prefect_url,
        "decision_points": [
            {"name": "chat", "control_share": 0.2, **point},
            {"name": "q", **point},
        ],
    }
    file.write_text(json.dumps(given))
    environment = {
        "LLMOPT_SETTINGS": str(file),
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    }
    command = ["-c", "from flows.serve import main; main(every_s={'report': 5})"]

    def ask(what: str, **body: Any) -> Any:
        return httpx.post(f"{prefect_url}/{what}/filter", json=body).raise_for_status().json()

    with started(command, environment, log := tmp_path / "log") as process:
        done = {"state": {"type": {"any_": ["COMPLETED"]}}}
        name = {"name": {"any_": ["report"]}}
        run = wait_for(lambda: ask("flow_runs", flow_runs=done, flows=name), log)[0]
        assert run["auto_scheduled"]
        start = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - start < 10
    assert "Traceback" not in log.read_text()
    deployments = {one["name"]: one for one in ask("deployments")}
    assert {"report", "materialise"} <= deployments.keys()
    deployment = deployments["report"]
    assert deployment["tags"] == ["report"] and deployment["global_concurrency_limit"]["limit"] == 1
    assert "description" in deployment["parameter_openapi_schema"]["properties"]["hours"]
    shown = {one["key"]: one["data"] for one in ask("artifacts")}
    assert {"report-chat", "report-chat-figures", "report-chat-mlflow"} <= shown.keys()
    assert "300 decisions: 240 champion, 60 control." in shown["report-chat"]
    assert "No decisions were logged" in shown["report-q"]
    check_stored(mlflow_url, shown["report-chat-mlflow"])


def check_stored(mlflow_url: str, link: str) -> None:
    """Plot, page and figures are in the run that the link names."""
    assert mlflow_url in link
    run_id = link.rpartition("/runs/")[2].partition(")")[0]
    api = f"{mlflow_url}/api/2.0/mlflow"
    files = httpx.get(f"{api}/artifacts/list", params={"run_id": run_id}).json()["files"]
    assert {file["path"] for file in files} == {"report.md", "quality_and_cost.png"}
    run = httpx.get(f"{api}/runs/get", params={"run_id": run_id}).json()["run"]
    figures = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert figures["cost_usd_saving"] == pytest.approx(0.75, abs=0.01)
    assert figures["cost_usd_saving_low"] < 0.75 < figures["cost_usd_saving_high"]
