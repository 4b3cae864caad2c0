"""The flow that keeps online and offline the same, and the list of deployments, on real servers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import redis
import yaml

from feature_repo.aggregates import ArmStatistics
from feature_repo.embedding import Embedder
from feature_repo.push_log import PushedRows, write_pushed
from feature_repo.store import FeatureStoreClient
from feature_repo.windows import ArmWindows
from optimizer.arm_traits import ArmTraits
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.arm_fold import fold_arms
from serving.live_point import make_encoder
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
MANIFEST = Path(__file__).parents[1] / "infra" / "prefect.yaml"
RUN = """
from flows.materialise import materialise
state = materialise(minutes=5, pairs=60, return_state=True)
print("STATE", state.name, state.message)
"""


def publish(platform: Settings, store: FeatureStoreClient) -> None:
    """An outcome in the ledger; what follows from it online and in the log, as the learner does."""
    point = platform.decision_points[0]
    encoder = make_encoder(point, Embedder())
    now, arm = time.time(), point.records()[0]
    decision = Decision(
        CHAMPION, os.urandom(16), now, arm.id, 0.5, 0, encoder.schema_id, "chat",
        pack(np.zeros(encoder.size)),
    )  # fmt: skip
    raw, _ = TokenSigner([KEY]).sign(decision)
    event = ledger.RewardEvent("chat", decision.decision_id, "", Outcome(0.5, 0.25), False, raw)
    statistics, windows = ArmStatistics(), ArmWindows()
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, [event])
        models = {one.id: one.model for one in point.records()}
        fold_arms(models, ledger.read(connection, "chat", 0, 9), statistics, windows)
        values, panes = statistics.values(now), windows.values([arm.model], now)
        store.push("chat", values, now)
        store.push_windows("chat", panes, now)
        write_pushed(
            connection,
            [
                PushedRows.of_statistics("chat", values, now - 200, None),
                PushedRows.of_statistics("chat", values, now, 1),
                PushedRows.of_windows("chat", panes, now, 1),
            ],
        )


def environment(platform: Settings, prefect_url: str, folder: Path) -> dict[str, str]:
    file = folder / "llmopt.yaml"
    given = {
        "postgres_url": platform.postgres_dsn(),
        "valkey_url": platform.valkey_address,
        "decision_points": [{"name": "chat", "arms": [{"model": "small"}, {"model": "large"}]}],
    }
    file.write_text(json.dumps(given))
    return {
        **os.environ,
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": str(folder),
        "LLMOPT_SETTINGS": str(file),
    }


def run(code: list[str], given: dict[str, str], folder: Path) -> str:
    made = subprocess.run(
        [sys.executable, *code], env=given, cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def artifacts(prefect_url: str, key: str) -> list[Any]:
    body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    found = httpx.post(f"{prefect_url}/artifacts/filter", json=body).raise_for_status().json()
    return [one["data"] for one in found]


@pytest.mark.timeout(600)
def test_it_brings_back_what_was_lost_and_fails_where_values_differ(
    settings: Callable[..., Settings], prefect_url: str, tmp_path: Path
) -> None:
    platform = settings(token_keys=[KEY])
    store = FeatureStoreClient(platform)
    store.apply()
    facts = {"small": ArmTraits(price_in_usd=1.0), "large": ArmTraits(price_in_usd=2.0)}
    store.push_model_facts("chat", facts, time.time() - 60)
    publish(platform, store)
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.flushall()
    given = environment(platform, prefect_url, tmp_path)
    assert "STATE Completed" in run(["-c", RUN], given, tmp_path)
    assert store.read("chat", ["small"])["small"].quality == 0.5
    page = artifacts(prefect_url, "materialise-parity")[0]
    assert "They agree." in page
    assert "chat: arm_statistics, arm_windows, model_facts" in page
    assert '"quality"' in artifacts(prefect_url, "materialise-differences")[0]

    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("UPDATE feast.arm_windows SET cost_usd_sum_5m = 0.5")
    said = run(["-c", RUN], given, tmp_path)
    assert "STATE Failed" in said and "disagree by more than 1e-06" in said
    assert "cost_usd_sum_5m of chat/small" in said
    assert "**They do not agree.**" in artifacts(prefect_url, "materialise-parity")[0]
    store.close()


def test_the_manifest_is_that_of_the_list(tmp_path: Path) -> None:
    given = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "true"}
    assert run(["-m", "flows.deployments"], given, tmp_path) == MANIFEST.read_text()
    listed = yaml.safe_load(MANIFEST.read_text())["deployments"]
    names = [one["name"] for one in listed]
    assert len(set(names)) == len(names) and {"report", "materialise"} <= set(names)


@pytest.mark.timeout(300)
def test_a_prefect_of_the_users_own_takes_the_manifest(
    settings: Callable[..., Settings], prefect_url: str, tmp_path: Path
) -> None:
    pool = {"name": "llmopt", "type": "process"}
    httpx.post(f"{prefect_url}/work_pools/", json=pool).raise_for_status()
    given = environment(settings(), prefect_url, tmp_path)
    command = ["-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
    run([*command, str(MANIFEST)], given, tmp_path)
    body = {"work_pools": {"name": {"any_": ["llmopt"]}}}
    found = httpx.post(f"{prefect_url}/deployments/filter", json=body).raise_for_status().json()
    listed = yaml.safe_load(MANIFEST.read_text())["deployments"]
    assert {(one["name"], one["entrypoint"]) for one in found} == {
        (one["name"], one["entrypoint"]) for one in listed
    }
    assert all(one["global_concurrency_limit"]["limit"] == 1 for one in found)
