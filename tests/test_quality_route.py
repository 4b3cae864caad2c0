"""Predictions over HTTP's own application, and proxies in the ledger, on real servers."""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
import redis

from feature_repo.embedding import Embedder
from optimizer.features import pack
from optimizer.quality_design import QualityRows
from optimizer.quality_model import QualityModel
from optimizer.records import Context, Outcome
from optimizer.response_facts import response_facts, unknown_facts
from optimizer.retry import Candidate, advise_retry
from optimizer.reward import Objective, Weights
from optimizer.settings import DecisionPoint, Settings
from serving import ledger
from serving.api import Api
from serving.learner import Learner
from serving.live_point import make_encoder
from serving.logged import read_log
from serving.openapi import document
from serving.outcomes import outcomes_frame, recent_outcomes
from serving.quality_board import PublishedQuality, QualityBoard, QualityFollower
from serving.quality_proxy import QualityProxy
from serving.replica_state import ReplicaState
from serving.tokens import CHAMPION, Decision, TokenSigner

KEY = "00" * 16
EMBEDDER = Embedder()
POINT: dict[str, Any] = {
    "name": "chat",
    "arms": [{"model": "small"}, {"model": "large"}],
    "tasks": ["easy", "hard"],
    "control_share": 0,
    "retry_below": 0.5,
    "proxy_quality": True,
}


@pytest.fixture(scope="module")
def state_bytes() -> bytes:
    """A model that knows: small fails on hard tasks, and refusals are bad."""
    point = DecisionPoint.model_validate(POINT)
    encoder = make_encoder(point, EMBEDDER)
    random = np.random.default_rng(0)
    prompts = [f"Tell {word} about {random.integers(1000)}" for word in ("me", "us") * 500]
    contexts = [
        Context(prompt=prompt, task=("easy", "hard")[row // 2 % 2])
        for row, prompt in enumerate(prompts)
    ]
    requests = encoder.encode_many(contexts, list(EMBEDDER.embed_many(prompts)), 0.0)
    arms = random.integers(2, size=1000)
    hard = np.array([one.task == "hard" for one in contexts])
    quality = (random.random(1000) < np.where((arms == 0) & hard, 0.1, 0.9)) * 1.0
    facts = unknown_facts(1000)
    refused = random.random(1000) < 0.3
    facts[refused] = response_facts(None, "I'm sorry, I cannot.")
    facts[~refused] = response_facts(None, "A good and long answer to the question.")
    rows = QualityRows(requests, arms, quality * ~refused, facts)
    return QualityModel.fit(rows, encoder.names, point.records(), seed=0).to_bytes()


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(token_keys=[KEY], decision_points=[POINT])


@pytest.fixture
def state(platform: Settings) -> Iterator[ReplicaState]:
    made = ReplicaState(platform)
    yield made
    made.close()


def publish(platform: Settings, content: bytes, version: int = 3) -> None:
    board = QualityBoard(platform.valkey_address)
    board.publish("chat", PublishedQuality(version, time.time() - 60, content))
    board.close()


def ask(state: ReplicaState, path: str = "/v1/quality", **body: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=Api(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def about(task: str, model: str = "small", **further: Any) -> dict[str, Any]:
    context = {"prompt": "Tell me about 12", "task": task}
    return {"decision_point": "chat", "model": model, "context": context, **further}


def test_it_predicts_and_advises_a_better_model(
    platform: Settings, state: ReplicaState, state_bytes: bytes
) -> None:
    publish(platform, state_bytes)
    state.quality.look()
    easy, hard = ask(state, **about("easy")).json(), ask(state, **about("hard")).json()
    assert easy["quality"] > 0.5 > hard["quality"]
    assert easy["retry"] is None and easy["model_version"] == 3 and easy["calibrated"]
    assert not easy["response_used"]
    assert hard["retry"]["advised"] and hard["retry"]["model"] == "large"
    assert hard["retry"]["expected_quality"] > 0.5
    assert hard["retry"]["expected_cost_usd"] is None
    last = ask(state, **about("hard", "large", response="I'm sorry, I cannot.")).json()
    assert last["response_used"] and last["quality"] < 0.3
    assert last["retry"]["advised"] is False and last["retry"]["model"] is None
    metrics = state.metrics.render().decode()
    assert 'llmopt_quality_predictions_total{decision_point="chat"} 3.0' in metrics
    assert 'llmopt_retries_advised_total{decision_point="chat"} 1.0' in metrics
    assert 'llmopt_quality_model_version{decision_point="chat"} 3.0' in metrics
    assert 'llmopt_quality_model_age_seconds{decision_point="chat"} ' in metrics

    context = {"prompt": "Tell me about 12", "task": "hard"}
    made = ask(state, "/v1/decisions", decision_point="chat", context=context).json()
    told = ask(state, decision_id=made["decision_id"]).json()
    same = ask(state, **about("hard", made["model"])).json()
    assert told["quality"] == pytest.approx(same["quality"], abs=0.05)


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "decision_point"),
    ({"decision_point": "chat", "context": {}}, 422, "model"),
    ({"decision_point": "mail", "model": "small", "context": {}}, 404, "decision_point"),
    ({"decision_point": "chat", "model": "huge", "context": {}}, 404, "model"),
    ({"decision_id": "x", "model": "small"}, 422, "model"),
    ({"decision_id": "x"}, 400, "decision_id"),
    ({"decision_point": "chat", "model": "small", "context": {"task": 3}}, 422, "context.task"),
    ({"further": 1}, 422, "further"),
]


def test_what_is_wrong_is_named_and_without_a_model_it_says_when_to_come_again(
    state: ReplicaState,
) -> None:
    for body, status, field in WRONG:
        answer = ask(state, **body)
        assert (answer.status_code, answer.json()["field"]) == (status, field)
    answer = ask(state, **about("easy"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "60"
    assert "quality model of chat" in answer.json()["detail"]


def test_a_model_that_is_broken_or_of_other_features_is_not_used(
    platform: Settings, state: ReplicaState, state_bytes: bytes
) -> None:
    publish(platform, state_bytes)
    state.quality.look()
    publish(platform, state_bytes[:-20], version=4)
    state.quality.look()
    assert state.quality.served["chat"].version == 3
    with redis.Redis.from_url(platform.valkey_address) as client:
        client.flushall()
    state.quality.look()
    assert ask(state, **about("easy")).status_code == 200  # what is in memory stays
    other = QualityModel.from_bytes(state_bytes)
    other.names = (*other.names[:-1], "another")
    publish(platform, other.to_bytes(), version=5)
    state.quality.look()
    assert ask(state, **about("easy")).status_code == 503


def test_the_document_tells_of_it() -> None:
    operation = document()["paths"]["/v1/quality"]["post"]
    assert {"200", "4XX", "503"} <= set(operation["responses"])
    fields = document()["components"]["schemas"]["QualityResponse"]["properties"]
    assert set(fields) == {"quality", "calibrated", "model_version", "response_used", "retry"}


def test_a_retry_is_worth_its_price() -> None:
    worth = Objective(Weights(), cost_cap_usd=0.01, quality_price_usd=0.01)
    dear, cheap = Candidate(1, 0.95, 0.02), Candidate(2, 0.6, 0.001)

    def advise(*others: Candidate, quality: float = 0.2, objective: Objective = worth) -> Any:
        return advise_retry(quality, others, objective, below=0.5, gain=0.1)

    assert advise(dear, cheap).arm == cheap
    assert advise(dear).arm is None and "cost more" in advise(dear).reason
    assert advise(dear, objective=Objective(Weights())).arm == dear
    assert advise(Candidate(1, 0.25, None)).arm is None
    assert advise(dear, cheap, quality=0.5) is None


def log_decisions(platform: Settings, number: int, age_s: float) -> list[tuple[bytes, bytes]]:
    """Decisions of the champion in the log, without any reward: ids and tokens."""
    point = platform.decision_points[0]
    encoder, arm = make_encoder(point, EMBEDDER), point.records()[0]
    signer, made = TokenSigner([KEY]), []
    at = time.time() - age_s
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.create_tables(connection)
        for row in range(number):
            context = Context(prompt="Tell me about 12", task=("easy", "hard")[row % 2])
            features = encoder.encode(context, EMBEDDER.embed(context.prompt or ""), at)
            decision = Decision(
                CHAMPION, os.urandom(16), at, arm.id, 0.5, 0, encoder.schema_id, "chat",
                pack(features),
            )  # fmt: skip
            raw, _ = signer.sign(decision)
            connection.execute(
                "INSERT INTO decisions VALUES ('chat', %s, to_timestamp(%s), 'small', 'champion',"
                " 0.5, 0, %s)",
                (uuid.UUID(bytes=decision.decision_id), at, raw),
            )
            made.append((decision.decision_id, raw))
    return made


def test_a_closed_window_gets_a_proxy_that_is_no_evidence(
    platform: Settings, state_bytes: bytes
) -> None:
    from optimizer.feature_schema import Translations

    point = platform.decision_points[0]
    decided = log_decisions(platform, 4, age_s=3600.0)
    follower = QualityFollower(platform.valkey_address, ["chat"])
    proxy = QualityProxy(platform, point, EMBEDDER, follower)
    older = datetime.now(UTC) - timedelta(seconds=60)
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:

        def close(default: float | None = None) -> int:
            return ledger.close_windows(connection, "chat", default, older, 100, proxy)

        assert close() == 0  # no model and no default: they stay open
        publish(platform, state_bytes, version=7)
        follower.look()
        assert close(0.5) == 4 and close(0.5) == 0
        rows = ledger.read(connection, "chat", 0, 10)
        easy, hard = (row.after.quality for row in rows[:2])
        assert easy is not None and hard is not None and easy > 0.5 > hard
        assert all(row.real_after == Outcome() for row in rows)
        stored = connection.execute("SELECT event_id, known_after FROM rewards").fetchall()
        assert {event for event, _ in stored} == {"(window closed: quality model 7)"}
        assert all(known[4] == 7.0 for _, known in stored)

        def tell(outcome: Outcome, place: int, *, retract: bool = False) -> None:
            decision_id, raw = decided[place]
            event = ledger.RewardEvent("chat", decision_id, "e", outcome, retract, raw)
            ledger.write(connection, [event])

        tell(Outcome(cost_usd=0.1), 0)  # as a default, a proxy ends with the first real signal
        last = ledger.read(connection, "chat", 4, 10)[-1]
        assert last.after == last.real_after == Outcome(None, 0.1)
        tell(Outcome(quality=1.0), 0)
        last = ledger.read(connection, "chat", 5, 10)[-1]
        assert last.after == last.real_after == Outcome(1.0, 0.1)
        assert last.before == last.real_before == Outcome(None, 0.1)
        tell(Outcome(), 0, retract=True)  # and its retraction brings the proxy back
        last = ledger.read(connection, "chat", 6, 10)[-1]
        assert last.after == Outcome(easy) and last.real_after == Outcome()
        tell(Outcome(quality=0.25), 1)

        start, end = datetime.now(UTC) - timedelta(hours=2), datetime.now(UTC)
        frame = outcomes_frame(platform.postgres_dsn(), "chat", start, end)
        assert frame["proxied"].sum() == 3
        assert frame["quality"].dropna().tolist() == [0.25]
        recent = [one.quality for one in recent_outcomes(connection, "chat", 100)]
        assert sorted(recent, key=str) == [0.25, None, None, None]
        layouts = Translations(make_encoder(point, EMBEDDER).schema, ())
        log = read_log(connection, "chat", point.records(), ["small", "large"], layouts, start, end)
        assert log.decisions is not None
        assert np.nansum(log.decisions.quality) == 0.25
        assert np.isnan(log.decisions.quality).sum() == 3
    follower.close(1.0)


def test_the_canary_leaves_proxies_out(platform: Settings, state_bytes: bytes) -> None:
    from optimizer.rollout import PolicyRef, RoutingPlan
    from serving.rollout_watch import RolloutWatch

    point = platform.decision_points[0]
    decided = log_decisions(platform, 3, age_s=3600.0)
    older = datetime.now(UTC) - timedelta(seconds=60)
    plan = RoutingPlan(
        "chat", 1, PolicyRef("1.0"), challenger=PolicyRef("2.0"), challenger_share=0.5,
        stage_at=0.0, stage_position=0,
    )  # fmt: skip
    with psycopg.connect(platform.postgres_dsn(), autocommit=True) as connection:
        ledger.close_windows(
            connection, "chat", None, older, 100, lambda tokens: (1, [0.9] * len(tokens))
        )
        decision_id, raw = decided[0]
        ledger.write(
            connection,
            [ledger.RewardEvent("chat", decision_id, "", Outcome(quality=0.5), False, raw)],
        )
        watch = RolloutWatch(point)
        watch.follow(plan)
        watch.learn(ledger.read(connection, "chat", 0, 100))
        assert watch._evidence.champion.quality.count == 1
        assert watch._evidence.champion.quality.mean == 0.5


def test_the_learner_learns_from_proxies_where_settings_want_it(
    platform: Settings, state_bytes: bytes
) -> None:
    point = platform.decision_points[0].model_copy(update={"attribution_window_s": 60.0})
    log_decisions(platform, 4, age_s=3600.0)
    learner = Learner(platform, point, EMBEDDER, proxy=lambda tokens: (1, [0.9] * len(tokens)))
    learner.start()
    try:
        deadline = time.monotonic() + 20
        while learner.position < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert learner.position == 4
    finally:
        learner.close()
