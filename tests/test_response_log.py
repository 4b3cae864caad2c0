"""Responses told over the API of a replica, on real servers: stored as facts, and learned from."""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from feature_repo.embedding import Embedder
from feature_repo.store import FeatureStoreClient
from optimizer.response_facts import FACTS_ID, RESPONSE_FACTS, response_facts
from optimizer.settings import Settings
from serving import ledger, ledger_partitions
from serving.api import Api
from serving.live_point import make_encoder
from serving.quality_board import PublishedQuality, QualityBoard
from serving.quality_training import train_quality
from serving.replica_state import ReplicaState
from serving.response_log import ResponseLog
from serving.retention import retire_ledger
from serving.reward_writer import connect
from serving.tokens import CHAMPION, Decision, TokenSigner
from serving.training_set import training_set

KEY = "00" * 16
EMBEDDER = Embedder()
POINT = {
    "name": "chat",
    "arms": [{"model": "small"}, {"model": "large"}],
    "tasks": ["easy", "hard"],
    "control_share": 0.5,  # decides without a learner; the rest are fallbacks, which teach nothing
}
REFUSAL = "I'm sorry, I cannot help with that."
ANSWERS = ("Here is what you asked for, at length.", "It is 12, since 5 and 7 are 12.", REFUSAL)
ANSWER = "It depends on what you mean, and here is the whole answer."


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(token_keys=[KEY], decision_points=[POINT])


@pytest.fixture
def state(platform: Settings) -> Iterator[ReplicaState]:
    made = ReplicaState(platform)
    yield made
    made.close()


def post(state: ReplicaState, path: str, *bodies: dict[str, Any]) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=Api(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(path, json=body) for body in bodies]

    return asyncio.run(send())


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ready()


def test_what_is_told_of_responses_is_learned_and_changes_predictions(
    platform: Settings, state: ReplicaState
) -> None:
    random = np.random.default_rng(0)
    items = [
        {
            "decision_point": "chat",
            "context": {"prompt": f"Tell me about {row}", "task": ("easy", "hard")[row % 2]},
        }
        for row in range(2000)
    ]
    halves = {"items": items[:1000]}, {"items": items[1000:]}
    made = post(state, "/v1/decisions/batch", *halves)
    answered = [one for batch in made for one in batch.json()["items"]]
    ids = [one["decision_id"] for one in answered if not one["fallback"]]
    ids = ids[-600:]
    told = {one: ANSWERS[random.integers(3)] for one in ids if random.random() < 0.8}
    asked = [{"decision_id": one, "response": text} for one, text in told.items()]
    # Nothing serves before the first training, and still the facts are kept for it.
    assert {one.status_code for one in post(state, "/v1/quality", *asked)} == {503}
    good = {one: told.get(one, ANSWERS[random.integers(3)]) != REFUSAL for one in ids}
    rewards = [{"decision_id": one, "quality": 0.9 * good[one] + 0.05} for one in ids]
    (taken,) = post(state, "/v1/rewards/batch", {"items": rewards})
    assert all(one["accepted"] for one in taken.json()["items"])
    wait(lambda: state.log.waiting() == state.responses.waiting() == 0)

    start, end = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    point = platform.decision_points[0]
    with closing(FeatureStoreClient(platform)) as store:
        store.apply()
        rows = training_set(platform, store, point, start, end).rows
        assert len(rows) == len(ids)
        same_facts(rows, told, state)
        before = training_set(platform, store, point, start, end, as_of=start).rows
        assert before.empty and list(before.columns) == list(rows.columns)
        yet = train_quality(platform, store, point, start, start + timedelta(seconds=1), None)
        assert yet.trial is None and yet.message.startswith("0 decisions with a known quality")
        trained = train_quality(platform, store, point, start, end, None)
    assert trained.trial is not None
    scores = trained.trial.scores
    assert scores["model"].brier < 0.7 * scores["without the response"].brier

    board = QualityBoard(platform.valkey_address)
    content = trained.trial.model.to_bytes()
    board.publish("chat", PublishedQuality(1, time.time(), content))
    board.close()
    state.quality.look()
    of_one = [{"decision_id": ids[0], "response": text} for text in (ANSWER, REFUSAL)]
    full, refused, untold = post(state, "/v1/quality", *of_one, {"decision_id": ids[0]})
    assert full.json()["response_used"] and refused.json()["response_used"]
    assert full.json()["quality"] > refused.json()["quality"] + 0.4
    assert not untold.json()["response_used"]
    assert full.json()["quality"] > untold.json()["quality"] > refused.json()["quality"]


def same_facts(rows: Any, told: dict[str, str], state: ReplicaState) -> None:
    """What is learned from is what the route computes when it is asked, NaN for NaN."""
    signer = TokenSigner([KEY])
    texts = {
        str(uuid.UUID(bytes=signer.verify(one)[1].decision_id)): text for one, text in told.items()
    }
    encoder = state.points["chat"].encoder
    facts = rows[[f"response__{name}" for name in RESPONSE_FACTS]].to_numpy()
    features = rows[[f"request__{name}" for name in encoder.names]].to_numpy()
    for row, decision_id in enumerate(rows["decision_id"]):
        expected = np.full(len(RESPONSE_FACTS), np.nan)
        if (text := texts.get(decision_id)) is not None:
            prompt = encoder.embedding_of(features[row])
            expected = response_facts(None, text, prompt, EMBEDDER.embed(text))
        np.testing.assert_allclose(facts[row], expected, rtol=1e-12)  # NaN equals NaN
    known = dict(zip(RESPONSE_FACTS, np.isfinite(facts).sum(axis=0), strict=True))
    assert known["refusal"] == known["similarity"] == len(told)
    assert known["ratio_log"] == known["other_language"] == 0  # no token has the prompt's text


def signed(platform: Settings, at: datetime) -> bytes:
    point = platform.decision_points[0]
    encoder, arm = make_encoder(point, EMBEDDER), point.records()[0]
    decision = Decision(
        CHAMPION, os.urandom(16), at.timestamp(), arm.id, 0.5, 0, encoder.schema_id, "chat",
        bytes(2 * encoder.size),
    )  # fmt: skip
    raw, _ = TokenSigner([KEY]).sign(decision)
    return raw


def stored(connection: psycopg.Connection[Any]) -> list[tuple[int, list[float]]]:
    query = "SELECT facts_id, facts FROM response_facts ORDER BY decided_at"
    return connection.execute(query).fetchall()


def test_the_later_response_holds_and_what_waits_is_bounded(
    platform: Settings, find_free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.response_log._STORE_EVERY_S", 0.01)
    monkeypatch.setattr("serving.response_log._WAITING", 2)
    now = datetime.now(UTC)
    tokens = [signed(platform, now + timedelta(seconds=second)) for second in range(3)]
    refused, full = response_facts(None, REFUSAL), response_facts(None, ANSWER)
    log = ResponseLog(f"postgresql://postgres@127.0.0.1:{find_free_port()}/llmopt")
    for token in tokens:
        log.add(token, refused)
    time.sleep(0.1)  # tries that fail
    log.add(tokens[0], full)
    assert (log.waiting(), log.dropped()) == (2, 1)
    log._dsn = platform.postgres_dsn()
    log.close()
    with connect(platform.postgres_dsn()) as connection:
        first, second = stored(connection)
        assert first[0] == second[0] == FACTS_ID
        np.testing.assert_array_equal(first[1], full)
        np.testing.assert_array_equal(second[1], refused)
        # Another replica was told before, and comes later.
        connection.execute("UPDATE response_facts SET told_at = told_at + interval '1 hour'")
        late = ResponseLog(platform.postgres_dsn())
        late.add(tokens[0], refused)
        late.close()
        np.testing.assert_array_equal(stored(connection)[0][1], full)


def test_facts_of_another_version_count_as_unknown(platform: Settings) -> None:
    now = datetime.now(UTC)
    point, tokens = platform.decision_points[0], [signed(platform, now) for _ in range(2)]
    log = ResponseLog(platform.postgres_dsn())
    for token in tokens:
        log.add(token, response_facts(None, ANSWER))
    log.close()
    with connect(platform.postgres_dsn()) as connection:
        for token in tokens:
            decision_id = token[2:18]
            connection.execute(
                "INSERT INTO decisions VALUES ('chat', %s, %s, 'small', 'champion', 0.5, 0, %s)",
                (uuid.UUID(bytes=decision_id), ledger_partitions.decided_at(token), token),
            )
            reward = ledger.Outcome(quality=0.5)
            event = ledger.RewardEvent("chat", decision_id, "", reward, False, token)
            ledger.write(connection, [event])
        connection.execute(
            "UPDATE response_facts SET facts_id = facts_id + 1, facts = facts[1:3] "
            "WHERE decision_id = %s",
            (uuid.UUID(bytes=tokens[0][2:18]),),
        )
    hour = timedelta(hours=1)
    with closing(FeatureStoreClient(platform)) as store:
        store.apply()
        rows = training_set(platform, store, point, now - hour, now + hour).rows
    assert sorted(rows["response__refusal"].isna()) == [False, True]


def test_an_older_database_gets_the_table_and_old_weeks_go(platform: Settings, tmp_path) -> None:
    now = datetime.now(UTC)
    with connect(platform.postgres_dsn()) as connection:
        ledger.create_tables(connection)
        connection.execute("DROP TABLE response_facts")
        assert not ledger_partitions.partitioned(connection)
        ledger.create_tables(connection)
        assert ledger_partitions.partitioned(connection)
        log = ResponseLog(platform.postgres_dsn())
        for age in (400, 0):
            token = signed(platform, now - timedelta(days=age))
            log.add(token, response_facts(None, ANSWER))
        log.close()
        report = retire_ledger(platform, now.timestamp(), tmp_path)
        assert len(stored(connection)) == 1
    (gone,) = report.responses
    assert gone.file is not None and gone.file.exists()
