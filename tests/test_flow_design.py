"""The design flow on real servers: too little, a draft, the same draft again, a started one."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from optimizer.experiments.experiment import ArmPattern, Design, Variant
from optimizer.features import pack
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import audit, experiments, ledger, plans
from serving.decision_log import DecisionLog, LoggedDecisions
from serving.live_point import make_encoder
from serving.reward_writer import connect
from serving.tokens import CHAMPION, CONTROL, Decision, TokenSigner

KEY = "00" * 16
QUALITY, COST_USD = (0.85, 0.8, 0.6, 0.3), (0.02, 0.005, 0.001, 0.03)
MODELS = ("large", "middle", "small", "poor")
POINT = {"name": "chat", "arms": [{"model": name} for name in MODELS], "cost_cap_usd": 0.05}
RUN = "design(days=2)"


def traffic(live: Settings, count: int) -> None:
    """The champion draws large mostly, control all alike."""
    random, now = np.random.default_rng(count), time.time()
    point = live.decision_points[0]
    encoder, arms = make_encoder(point, Embedder()), point.records()
    signer, log = TokenSigner([KEY]), DecisionLog(live.postgres_dsn())
    events = []
    for number in range(count):
        role = CONTROL if number % 10 == 0 else CHAMPION
        chances = [0.25] * 4 if role == CONTROL else [0.7, 0.1, 0.1, 0.1]
        arm = int(random.choice(4, p=chances))
        features = np.zeros(encoder.size)
        features[0] = 1.0
        decision = Decision(
            role, uuid.uuid4().bytes, now - 86400 + number * 86000 / count, arms[arm].id,
            chances[arm], 0, encoder.schema_id, point.name, pack(features),
        )  # fmt: skip
        raw, _ = signer.sign(decision)
        log.add(LoggedDecisions(point.name, [MODELS[arm]], [role], [raw]))
        told = Outcome(quality=float(random.random() < QUALITY[arm]), cost_usd=COST_USD[arm])
        events.append(ledger.RewardEvent(point.name, decision.decision_id, "", told, False, raw))
    log.close()
    with psycopg.connect(live.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        ledger.write(connection, events)


@pytest.mark.timeout(900)
def test_one_draft_is_proposed_and_nothing_started(
    settings: Callable[..., Settings], flows: Any, mlflow_url: str
) -> None:
    platform = settings(token_keys=[KEY], decision_points=[POINT], mlflow_url=mlflow_url)
    assert "no decision was logged" in flows.run(platform, RUN)

    traffic(platform, 3000)
    assert "a draft compares" in flows.run(platform, RUN)
    with connect(platform.postgres_dsn()) as connection:
        (draft,) = experiments.list_experiments(connection, "chat")
        trail = audit.trail(connection, "chat")
    assert (draft.state, draft.made_by) == ("draft", "design")
    assert draft.design.variants[0].arms[0].model == "large"
    assert [one.action for one in trail] == ["experiment.create"]
    page = flows.artifacts("design-chat")[0]
    assert f"llmopt experiments start {draft.id}" in page
    assert "settings that no other one dominates: " in page
    assert "gain per USD" in flows.artifacts("design-chat-proposals")[0]
    found = httpx.get(
        f"{mlflow_url}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": "designs"},
    ).json()["experiment"]["experiment_id"]
    runs = httpx.post(
        f"{mlflow_url}/api/2.0/mlflow/runs/search", json={"experiment_ids": [found]}
    ).json()["runs"]
    assert {one["key"] for one in runs[0]["data"]["metrics"]} >= {"best_gain", "on_front"}


def proposal(samples: int = 100, name: str = "proposed") -> Design:
    return Design(
        decision_point="chat",
        name=name,
        variants=(
            Variant("a", (ArmPattern("large"),)),
            Variant("b", (ArmPattern("small"),)),
        ),
        analysis="fixed_horizon",
        planned_samples=samples,
    )


def test_a_flow_changes_its_own_open_draft_alone(settings: Callable[..., Settings]) -> None:
    platform = settings(token_keys=[KEY], decision_points=[POINT])

    def keep(samples: int) -> str:
        with connect(platform.postgres_dsn()) as connection:
            return experiments.keep_draft(
                connection, platform, proposal(samples), actor="design", now=samples, why="x"
            ).id

    with connect(platform.postgres_dsn()) as connection:
        point = platform.decision_point("chat")
        plans.ensure(connection, point, make_encoder(point, Embedder()).schema, 1.0)
        people = experiments.create(connection, platform, proposal(50), actor="http", now=1.0)
    with ThreadPoolExecutor(4) as threads:
        ids = set(threads.map(keep, [100] * 8))
    assert len(ids) == 1 and people.id not in ids
    assert keep(200) in ids
    with connect(platform.postgres_dsn()) as connection:
        (mine,) = [one for one in experiments.list_experiments(connection, "chat") if one.id in ids]
        assert mine.design.planned_samples == mine.planned == 200
        assert experiments.find(connection, people.id) == people
        actions = [one.action for one in audit.trail(connection, "chat")]
        assert sorted(actions) == ["experiment.create"] * 2 + ["experiment.redraft"]
        experiments.start(connection, platform, mine.id, actor="http", now=3.0)
        second = keep(300)
        assert second not in ids
        running = experiments.find(connection, mine.id)
        assert running.state == "running" and running.design.planned_samples == 200
