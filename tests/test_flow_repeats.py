"""Flows that are killed half-way and run again, or run twice at once, leave what one run leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from infra.servers import create_database
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from registry.old_runs import drop_runs
from registry.quality_models import QualityRegistry
from registry.reports import log_report
from registry.tracking import connect as connect_mlflow
from serving import audit, ledger, plans
from serving.ledger_partitions import decided_at
from serving.live_point import make_encoder
from serving.tokens import CHAMPION, CONTROL, Decision, TokenSigner

KEY = "00" * 16
MODELS = ("small", "middle", "large")
QUALITY, COST_USD = (0.4, 0.5, 0.95), (0.001, 0.002, 0.01)
END = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

RUN = """
import importlib, os, signal, sys
from datetime import datetime
from prefect.runtime import flow_run

flow, call, at, where = sys.argv[1:]
flow_run.FIELDS["scheduled_start_time"] = lambda: datetime.fromisoformat(at)
module = importlib.import_module(f"flows.{flow}")
if where:
    owner, name, number = where.split()
    path = owner.split(":")
    owner = importlib.import_module(path[0])
    for part in path[1:]:
        owner = getattr(owner, part)
    original, left = getattr(owner, name), [int(number)]

    def killed(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, killed)
print(eval(call, vars(module)))
"""
"""Runs a flow as of a time; it dies instead of calling that function for the n-th time."""

HALF_REPORTED = "mlflow:MlflowClient set_terminated 1"

CASES = {
    "forecast": ("forecast(days=5)", "flows.forecast create_markdown_artifact 1"),
    "report": ("report(hours=48)", HALF_REPORTED),
    "budget": ("budget()", HALF_REPORTED),
    "drift": ("drift(minutes=60)", HALF_REPORTED),
    "design": ("design(days=5)", HALF_REPORTED),
    "train": ("train(days=5)", "mlflow:MlflowClient set_registered_model_alias 1"),
    "tune": ("tune(days=5, trials=4)", "optuna.storages:RDBStorage set_trial_state_values 3"),
    "retention": ("retention()", "pathlib:Path replace 1"),
}
"""By flow: how it is called, and where it is killed."""

TABLES = {
    "forecasts": "SELECT made_at, forecast FROM forecasts",
    "budget_plans": "SELECT period_start, hour, plan FROM budget_plans",
    "drift_results": "SELECT window_end, result FROM drift_results",
    "drift_actions": "SELECT window_end, what, action, reason, told_at IS NULL FROM drift_actions",
    "experiments": "SELECT content->>'state', content->'design' FROM experiments",
    "policy_variants": "SELECT variant, policy FROM policy_variants",
    "audit": "SELECT actor, action, reason FROM audit",
    "optuna.trial_values": "SELECT value FROM optuna.trial_values",
    "decisions": "SELECT count(*) FROM decisions",
    "rewards": "SELECT count(*) FROM rewards",
}


class World:
    """A database with the traffic that every other world has, and the same servers as they."""

    def __init__(self, name: str, postgres_url: str, given: dict[str, Any], folder: Path) -> None:
        self.name, self.folder = name, folder
        self.drafts: list[str] = []  # their ids are drawn
        database = f"repeats_{name}_{uuid.uuid4().hex[:8]}"
        create_database(postgres_url, database)
        folder.mkdir()
        point = {"name": name, "arms": [{"model": model} for model in MODELS]}
        point |= {"cost_cap_usd": 0.05, "policy": {"name": "random"}}
        self.settings = Settings(
            decision_points=[point],
            postgres_url=f"{postgres_url.rpartition('/')[0]}/{database}",
            home=folder,
            token_keys=[KEY],
            budget={"usd": 100.0},
            retention={"export_folder": "exported"},
            **given,
        )
        (folder / "llmopt.yaml").write_text(
            self.settings.model_dump_json(exclude={"token_keys"}, exclude_defaults=True)
        )
        self.dsn = self.settings.postgres_dsn()
        self._fill()

    def _fill(self) -> None:
        """Half of the decisions in four days, half in the last hour, which are worse."""
        random, signer, rows = np.random.default_rng(1), TokenSigner([KEY]), 3000
        point = self.settings.decision_points[0]
        encoder, arms = make_encoder(point, Embedder()), point.records()
        ages_s = np.sort(
            np.r_[random.uniform(3600, 4 * 86400, 1800), random.uniform(1, 3599, 1200)]
        )
        events = []
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            ledger.create_tables(connection)
            plans.ensure(connection, point, encoder.schema, 0.0)
            for _ in range(2):
                audit.record(connection, self.name, "command", "policy.rollback", "old", {})
            connection.execute("UPDATE audit SET at = %s", (END - timedelta(days=800),))
            made = []
            for age_s in ages_s[::-1]:
                arm = int(random.integers(3))
                vector = random.integers(-2048, 2048, encoder.size) / 4096
                role = CONTROL if random.random() < 0.1 else CHAMPION
                decision = Decision(
                    role, random.bytes(16), END.timestamp() - age_s, arms[arm].id, 1 / 3, 0,
                    encoder.schema_id, self.name, pack(vector),
                )  # fmt: skip
                raw, _ = signer.sign(decision)
                told = ("control" if role == CONTROL else "champion", 1 / 3, 0, raw)
                identity = uuid.UUID(bytes=decision.decision_id)
                made.append((self.name, identity, decided_at(raw), MODELS[arm], *told))
                chance = QUALITY[arm] - (0.2 if age_s < 3600 else 0.0)
                outcome = Outcome(
                    quality=float(random.random() < chance), cost_usd=COST_USD[arm], latency_s=1.0
                )
                events.append(
                    ledger.RewardEvent(self.name, decision.decision_id, "", outcome, False, raw)
                )
            with connection.cursor() as cursor, cursor.copy("COPY decisions FROM STDIN") as copy:
                for row in made:
                    copy.write_row(row)
            ledger.write(connection, events)
        assert len(events) == rows
        with_features = FeatureStoreClient(self.settings)
        with_features.apply()
        with_features.close()

    def start(self, flow: str, call: str, where: str = "") -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", RUN, flow, call, END.isoformat(), where],
            env={
                **os.environ,
                "LLMOPT_SETTINGS": str(self.folder / "llmopt.yaml"),
                "PREFECT_API_URL": self.settings.prefect_address,
                "PREFECT_HOME": str(self.folder),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "true",
            },
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def left(self) -> dict[str, Any]:
        """Rows, models, reports and files, in no order and without names that are this world's."""
        found: dict[str, Any] = {}
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            if connection.execute("SELECT to_regclass('experiments')").fetchone() != (None,):
                self.drafts = [one for (one,) in connection.execute("SELECT id FROM experiments")]
            for table, query in TABLES.items():
                if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,):
                    found[table] = self._plain(connection.execute(query).fetchall())
        client = connect_mlflow(self.settings.mlflow_address)
        experiments = {one.experiment_id: one.name for one in client.search_experiments()}
        runs = []
        for run in client.search_runs(list(experiments), max_results=1000):
            files = sorted(one.path for one in client.list_artifacts(run.info.run_id))
            told = (run.info.status, run.data.params, run.data.metrics, files)
            runs.append((experiments[run.info.experiment_id], run.info.run_name, *told))
        found["runs"] = self._plain([one for one in runs if one[0] != "policies"])
        name = f"name = '{self.name} quality'"
        found["models"] = [
            (one.version, one.tags["trained_at"]) for one in client.search_model_versions(name)
        ]
        champion = QualityRegistry(self.settings.mlflow_address).champion(self.name)
        found["champion"] = None if champion is None else champion.state
        found["files"] = sorted(one.name for one in self.folder.glob("exported/*"))
        return found

    def _plain(self, rows: list[Any]) -> list[str]:
        texts = [json.dumps(row, default=str) for row in rows]
        for name in (self.name, *self.drafts):
            texts = [text.replace(name, "name") for text in texts]
        return sorted(texts)


@pytest.fixture
def world(
    postgres_url: str, valkey_url: str, mlflow_url: str, prefect_url: str, tmp_path: Path
) -> Iterator[Callable[[str], World]]:
    given = {"valkey_url": valkey_url, "mlflow_url": mlflow_url, "prefect_url": prefect_url}

    def forget_runs() -> None:
        names = ("tuning", "reports", "designs", "drift", "budgets", "quality models")
        drop_runs(mlflow_url, names, datetime.now(UTC) + timedelta(days=1))

    def make(name: str) -> World:
        forget_runs()  # those of another world may have the same names and figures
        return World(f"{name}{uuid.uuid4().hex[:8]}", postgres_url, given, tmp_path / name)

    yield make
    forget_runs()


def end(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flow", CASES)
def test_what_a_flow_leaves_is_what_one_run_leaves(
    flow: str, world: Callable[[str], World]
) -> None:
    call, where = CASES[flow]
    undisturbed = world("undisturbed")
    before = undisturbed.left()
    end(undisturbed.start(flow, call))
    expected = undisturbed.left()
    assert expected != before, "the flow left nothing that this test sees"

    killed = world("killed")
    process = killed.start(flow, call, where)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == -signal.SIGKILL, said
    end(killed.start(flow, call))
    assert killed.left() == expected

    twice = world("twice")
    for process in [twice.start(flow, call) for _ in range(2)]:
        end(process)
    assert twice.left() == expected


def test_reports_of_two_at_once_are_one_run(mlflow_url: str) -> None:
    at_once = threading.Barrier(4)

    def store(number: int) -> str:
        at_once.wait()
        parameters: dict[str, str | float] = {"end": "noon"}
        return log_report(mlflow_url, "at once", [], {"x": 1.0}, parameters, "chat")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store, range(4)))
    client = connect_mlflow(mlflow_url)
    found = client.get_experiment_by_name("at once")
    assert len(client.search_runs([found.experiment_id])) == 1


def test_a_model_that_is_stored_twice_is_one_version(mlflow_url: str) -> None:
    registry = QualityRegistry(mlflow_url)

    def store(state: bytes, champion: bool = True) -> int:
        given = {"trained_at": 1.0, "metrics": {}, "parameters": {}, "champion": champion}
        return registry.publish("stored twice", state, **given).version

    assert store(b"one", champion=False) == store(b"one")
    found = registry.champion("stored twice")
    assert found is not None and found.state == b"one"
    assert store(b"two") != found.version
