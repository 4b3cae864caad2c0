"""The training flow on real servers: too little, the first model, nothing new, a worse one."""

import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from flows.train_page import page
from optimizer.features import pack
from optimizer.quality_design import QualityRows
from optimizer.quality_model import QualityModel
from optimizer.quality_trial import try_model
from optimizer.records import Context, Outcome
from optimizer.response_facts import unknown_facts
from optimizer.settings import Settings
from registry.quality_models import QualityRegistry
from serving import ledger
from serving.ledger_partitions import decided_at
from serving.live_point import make_encoder
from serving.quality_board import QualityFollower
from serving.quality_training import Trained
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
EMBEDDER = Embedder()
POINT = {"name": "chat", "arms": [{"model": "small"}, {"model": "large"}], "tasks": ["a", "b"]}
RUN = "train(days=2)"


def decided(platform: Settings, number: int, seed: int, age_s: float) -> QualityRows:
    """Decisions with their rewards, in the log and in the ledger: the small arm fails on b."""
    point = platform.decision_points[0]
    encoder, arms = make_encoder(point, EMBEDDER), point.records()
    random, signer = np.random.default_rng(seed), TokenSigner([KEY])
    prompts = [f"Question {seed} about {random.integers(10**6)}" for _ in range(number)]
    contexts = [Context(prompt=prompt, task="ab"[row % 2]) for row, prompt in enumerate(prompts)]
    at = time.time() - age_s
    table = encoder.encode_many(contexts, list(EMBEDDER.embed_many(prompts)), at)
    chosen = random.integers(2, size=number)
    bad = (chosen == 0) & (np.arange(number) % 2 == 1)
    quality = (random.random(number) < np.where(bad, 0.1, 0.9)) * 1.0
    events = []
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        with connection.cursor() as cursor, cursor.copy("COPY decisions FROM STDIN") as copy:
            for row in range(number):
                decision = Decision(
                    CHAMPION, os.urandom(16), at + row / number, arms[chosen[row]].id, 0.5, 0,
                    encoder.schema_id, "chat", pack(table[row]),
                )  # fmt: skip
                raw, _ = signer.sign(decision)
                copy.write_row(
                    (
                        "chat", uuid.UUID(bytes=decision.decision_id),
                        decided_at(raw),
                        arms[chosen[row]].model, "champion", 0.5, 0, raw,
                    )
                )  # fmt: skip
                told = Outcome(quality=float(quality[row]))
                events.append(
                    ledger.RewardEvent("chat", decision.decision_id, "", told, False, raw)
                )
        ledger.write(connection, events)
    return QualityRows(table, chosen, quality, unknown_facts(number))


@pytest.mark.timeout(900)
def test_a_model_is_trained_judged_registered_and_served(
    settings: Callable[..., Settings], flows: Any, mlflow_url: str
) -> None:
    platform = settings(token_keys=[KEY], decision_points=[POINT], mlflow_url=mlflow_url)
    store = FeatureStoreClient(platform)
    store.apply()
    store.close()
    decided(platform, 50, seed=1, age_s=7200.0)
    assert "50 decisions with a known quality, 400 are needed" in flows.run(platform, RUN)
    assert "none serves" in flows.artifacts("train-chat")[0]
    registry = QualityRegistry(mlflow_url)
    assert registry.champion("chat") is None

    decided(platform, 1500, seed=2, age_s=3600.0)
    assert "the first model here serves from now on" in flows.run(platform, RUN)
    champion = registry.champion("chat")
    assert champion is not None
    follower = QualityFollower(platform.valkey_address, ["chat"])
    follower.look()
    served = follower.served["chat"]
    follower.close(1.0)
    assert served.version == champion.version and served.model.to_bytes() == champion.state
    text = flows.artifacts("train-chat")[0]
    assert f"version {champion.version} serves" in text and "Calibration error" in text
    assert "mean of the arm on the task" in flows.artifacts("train-chat-figures")[0]


def rows(number: int, seed: int, *, shuffled: bool = False) -> QualityRows:
    random = np.random.default_rng(seed)
    requests = np.column_stack([np.ones(number), random.normal(size=(number, 2))])
    quality = (random.random(number) < np.where(requests[:, 1] > 0, 0.9, 0.2)) * 1.0
    if shuffled:
        random.shuffle(quality)
    arms = random.integers(2, size=number)
    return QualityRows(requests, arms, quality, unknown_facts(number))


def test_a_champion_is_not_replaced_by_a_worse_model(settings: Callable[..., Settings]) -> None:
    arms = settings(decision_points=[POINT]).decision_points[0].records()
    names = ("constant", "embedding_0", "embedding_1")
    good = QualityModel.fit(rows(2000, 1), names, arms, seed=0)
    noise, truth = rows(1200, 2, shuffled=True), rows(300, 3)
    bad_news = QualityRows(
        np.vstack([noise.requests, truth.requests]),
        np.concatenate([noise.arms, truth.arms]),
        np.concatenate([noise.quality, truth.quality]),
        unknown_facts(1500),
    )
    worse = try_model(bad_news, names, arms, good, seed=0)
    assert worse.compared is not None and worse.compared.low > 0
    assert not worse.better and "does not serve" in worse.message
    useless = QualityModel.fit(noise, names, arms, seed=0)
    better = try_model(rows(1500, 4), names, arms, useless, seed=0)
    assert better.better and better.compared is not None and better.compared.high < 0
    assert try_model(rows(1500, 4), names, arms, None, seed=0).better
    text = page("chat", datetime(2026, 1, 2, tzinfo=UTC), Trained(1500, worse, ""), "x", 2)
    assert "capped by what a request does not tell" in text and "version 2 serves" in text


def test_the_newest_prompts_are_not_learned_from(settings: Callable[..., Settings]) -> None:
    arms = settings(decision_points=[POINT]).decision_points[0].records()
    names = ("constant", "embedding_0", "embedding_1")
    once = rows(1000, 5)
    twice = QualityRows(
        np.vstack([once.requests[-100:], once.requests]),
        np.concatenate([once.arms[-100:], once.arms]),
        np.concatenate([once.quality[-100:], once.quality]),
        unknown_facts(1100),
    )
    trial = try_model(twice, names, arms, None, seed=0)
    assert (trial.trained, trial.judged) == (780, 220)
