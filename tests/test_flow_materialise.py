"""The flow that keeps online and offline the same, and the list of deployments, on real servers."""

import os
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
from flows.deployments import manifest
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


@pytest.mark.timeout(600)
def test_it_brings_back_what_was_lost_and_fails_where_values_differ(
    settings: Callable[..., Settings], flows: Any
) -> None:
    platform = settings(token_keys=[KEY])
    store = FeatureStoreClient(platform)
    store.apply()
    facts = {"small": ArmTraits(price_in_usd=1.0), "large": ArmTraits(price_in_usd=2.0)}
    store.push_model_facts("chat", facts, time.time() - 60)
    publish(platform, store)
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.flushall()
    assert "STATE Completed" in flows.python(platform, "-c", RUN)
    assert store.read("chat", ["small"])["small"].quality == 0.5
    page = flows.artifacts("materialise-parity")[0]
    assert "They agree." in page
    assert "chat: arm_statistics, arm_windows, model_facts" in page
    assert '"quality"' in flows.artifacts("materialise-differences")[0]

    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        connection.execute("UPDATE feast.arm_windows SET cost_usd_sum_5m = 0.5")
    said = flows.python(platform, "-c", RUN)
    assert "STATE Failed" in said and "disagree by more than 1e-06" in said
    assert "cost_usd_sum_5m of chat/small" in said
    assert "**They do not agree.**" in flows.artifacts("materialise-parity")[0]
    store.close()


def test_the_manifest_is_that_of_the_list() -> None:
    assert manifest() == MANIFEST.read_text()
    listed = yaml.safe_load(MANIFEST.read_text())["deployments"]
    names = [one["name"] for one in listed]
    assert len(set(names)) == len(names) and {"report", "materialise"} <= set(names)


def test_a_server_that_answers_knows_every_deployment(prefect_server: Any, tmp_path: Path) -> None:
    server = type(prefect_server)(tmp_path)
    try:
        server.start()  # returns at the first answer
        found = httpx.post(f"{server.url}/deployments/filter", json={}).raise_for_status().json()
    finally:
        server.kill()
    listed = yaml.safe_load(MANIFEST.read_text())["deployments"]
    assert {one["name"] for one in found} == {one["name"] for one in listed}
    assert all(one["schedules"] and not one["paused"] for one in found)


@pytest.mark.timeout(300)
def test_a_prefect_of_the_users_own_takes_the_manifest(
    settings: Callable[..., Settings], flows: Any, prefect_url: str
) -> None:
    pool = {"name": "llmopt", "type": "process"}
    httpx.post(f"{prefect_url}/work_pools/", json=pool).raise_for_status()
    command = ["-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
    flows.python(settings(), *command, str(MANIFEST))
    body = {"work_pools": {"name": {"any_": ["llmopt"]}}}
    found = httpx.post(f"{prefect_url}/deployments/filter", json=body).raise_for_status().json()
    listed = yaml.safe_load(MANIFEST.read_text())["deployments"]
    assert {(one["name"], one["entrypoint"]) for one in found} == {
        (one["name"], one["entrypoint"]) for one in listed
    }
    assert all(one["global_concurrency_limit"]["limit"] == 1 for one in found)
