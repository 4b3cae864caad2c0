"""Signals: what each kind means, and how applications send them."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from infra.servers import create_database
from optimizer.errors import InvalidInput
from optimizer.records import Outcome
from optimizer.settings import DecisionPoint, Settings
from optimizer.signals import CATALOGUE, SignalSettings, signals_of
from serving import ledger
from serving.api import Api
from serving.client import AsyncOptimizer
from serving.cloud_events import reward_schema
from serving.replica_state import ReplicaState
from serving.tokens import token_text

DAY_S = 86400.0
CE = "application/cloudevents+json"
CE_BATCH = "application/cloudevents-batch+json; charset=utf-8"

SIGNALS = {
    "stars": {"weight": 3.0},
    "judge": {"part": "quality", "low": 0, "high": 10, "half_life_s": DAY_S},
    "complaints": {"part": "feedback", "low": 0, "high": 2, "less_is_better": True, "capped": True},
    "revenue_usd": {"high": 50.0, "part": "feedback"},
}


@pytest.fixture(scope="module")
def dsn(postgres_url: str) -> str:
    create_database(postgres_url, "test_signals")
    return f"{postgres_url.rpartition('/')[0]}/test_signals"


@pytest.fixture(scope="module")
def api(dsn: str, valkey_url: str) -> Iterator[Api]:
    """One for all tests: each tells of decisions of its own."""
    point = {"name": "chat", "arms": [{"model": "a"}, {"model": "b"}], "signals": SIGNALS}
    state = ReplicaState(
        Settings(
            token_keys=["00" * 16],
            decision_points=[point],
            postgres_url=dsn,
            valkey_url=valkey_url,
        )
    )
    yield Api(state)
    state.close()


class Caller:
    """Calls of an application, each answered before the next."""

    def __init__(self, app: Api, dsn: str) -> None:
        self._app = app
        self._dsn = dsn

    def post(self, path: str, body: Any, content_type: str = "application/json") -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"content-type": content_type}
                return await client.post(path, content=json.dumps(body), headers=headers)

        return asyncio.run(call())

    def get(self, path: str) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.get(path)

        return asyncio.run(call())

    def decide(self) -> str:
        answer = self.post("/v1/decisions", {"decision_point": "chat", "context": {}})
        decision_id: str = answer.json()["decision_id"]
        return decision_id

    def tell(self, decision_id: str, **said: Any) -> dict[str, Any]:
        answer = self.post("/v1/rewards", {"decision_id": decision_id, **said})
        assert answer.status_code == 202, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def known(self, decision_id: str) -> Outcome:
        """What the ledger knows of a decision in the end."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            ledger.create_tables(connection)
            rows = ledger.read_final(connection, "chat")
            outcomes = {token_text(row.token).decode(): row.after for row in rows}
        return outcomes.get(decision_id, Outcome())


@pytest.fixture
def caller(api: Api, dsn: str) -> Caller:
    return Caller(api, dsn)


@given(st.sampled_from(sorted(CATALOGUE)), st.floats(0, 1), st.floats(0, 1))
def test_every_kind_grows_or_falls_over_its_whole_range(name: str, first: float, second: float):
    signal = signals_of({"revenue_usd": SignalSettings(high=20.0)})[name]
    assert signal.high is not None
    width = signal.high - signal.low
    raws = sorted((signal.low + width * first, signal.low + width * second))
    means = [mean for raw in raws if (mean := signal.read(min(raw, signal.high))[1]) is not None]
    assert means == sorted(means, reverse=signal.less_is_better)
    if signal.part in ("quality", "feedback"):
        assert all(0.0 <= mean <= 1.0 for mean in means)


def test_what_values_of_each_kind_mean() -> None:
    kinds = signals_of({name: SignalSettings(**given) for name, given in SIGNALS.items()})
    meanings = {
        ("thumbs", "up"): 1.0,
        ("thumbs", "neutral"): 0.5,
        ("thumbs", -1): 0.0,
        ("stars", 1): 0.0,
        ("stars", 5): 1.0,
        ("task_done", True): 1.0,
        ("retry", 0): 1.0,
        ("retry", 7): 0.0,
        ("edit_distance", 0.25): 0.75,
        ("error", True): 0.0,
        ("error", False): None,
        ("latency_s", 2.5): 2.5,
        ("cost_usd", 0.01): 0.01,
        ("conversion", False): 0.0,
        ("revenue_usd", 25.0): 0.5,
        ("revenue_usd", 80.0): 1.0,
        ("judge", 7): 0.7,
        ("complaints", 1): 0.5,
        ("complaints", 9): 0.0,
    }
    for (name, value), meaning in meanings.items():
        assert kinds[name].read(value)[1] == meaning, (name, value)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"mood": {"part": "quality", "low": 0}}, "signals.mood.high"),
        ({"mood": {"part": "quality", "low": 1, "high": 1}}, "signals.mood.high=1.0"),
        ({"mood": {"part": "joy", "low": 0, "high": 1}}, "part"),
        ({"mood": {"part": "cost", "low": -1, "high": 1}}, "signals.mood"),
        ({"quality": {"weight": 2}}, "signals.quality"),
        ({"stars": {"part": "cost"}}, "signals.stars.part"),
        ({"stars": {"weight": 0}}, "weight"),
        ({"stars": {"half_life_s": 0}}, "half_life_s"),
        ({"a mood": {"part": "quality", "low": 0, "high": 1}}, "a mood"),
    ],
)
def test_settings_that_are_wrong_say_where(given_: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DecisionPoint(name="chat", arms=[{"model": "a"}], signals=given_)


def test_revenue_needs_to_know_what_is_much() -> None:
    with pytest.raises(InvalidInput, match=r"signals\.revenue_usd\.high"):
        CATALOGUE["revenue_usd"].read(3.0)


def test_signals_of_one_decision_are_combined_by_their_weights(caller) -> None:
    told = caller.decide()
    caller.tell(told, quality=0.9, cost_usd=0.002)
    caller.tell(told, kind="thumbs", value="down")
    assert caller.tell(told, kind="stars", value=5) == {"accepted": True, "duplicate": False}
    assert caller.tell(told, kind="stars", value=5) == {"accepted": True, "duplicate": True}
    caller.tell(told, kind="task_done", value=True)
    caller.tell(told, kind="latency_s", value=1.5)
    # thumbs 0 with weight 1, stars 1 with weight 3; quality 0.9 and task_done 1, each with 1
    assert caller.known(told) == Outcome(0.95, 0.002, 1.5, 0.75)
    caller.tell(told, kind="stars", retract=True)
    caller.tell(told, kind="cost_usd", value=0.004)  # the same kind as in the plain form
    assert caller.known(told) == Outcome(0.95, 0.004, 1.5, 0.0)


def test_a_late_signal_weighs_less_and_a_delayed_one_does_not(caller) -> None:
    now = datetime.now(UTC)
    qualities = []
    for when in (None, now + timedelta(hours=12)):
        told = caller.decide()
        caller.tell(told, quality=0.0)
        time = {} if when is None else {"occurred_at": when.isoformat()}
        caller.tell(told, kind="judge", value=10, **time)
        qualities.append(caller.known(told).quality)
    weight = 0.5**0.5
    assert qualities[0] == 0.5
    assert qualities[1] == pytest.approx(weight / (1 + weight), abs=1e-4)


REFUSED = [
    ({"kind": "star", "value": 3}, 404, "kind", "star"),
    ({"kind": "stars", "value": 6}, 422, "value", 6),
    ({"kind": "stars", "value": "good"}, 422, "value", "good"),
    ({"kind": "stars"}, 422, "value", None),
    ({"value": 3}, 422, "kind", None),
    ({"kind": "retry", "value": -1}, 422, "value", -1),
    ({"kind": "stars", "value": 3, "quality": 0.5}, 422, "kind", "stars"),
    ({"kind": "stars", "value": 3, "retract": True}, 422, "retract", True),
    ({"kind": "stars", "value": [3]}, 422, "value", [3]),
    ({"quality": 1, "occurred_at": "2026-11-24T10:00:00"}, 422, "occurred_at", None),
    ({"quality": 1, "occurred_at": "2226-11-24T10:00:00Z"}, 422, "occurred_at", None),
]


def test_refusals_name_field_value_and_remedy(caller) -> None:
    told = caller.decide()
    for said, status, field, value in REFUSED:
        answer = caller.post("/v1/rewards", {"decision_id": told, **said})
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (status, field), answer.text
        if value is not None:
            assert problem["value"] == value
        assert problem["detail"]
    assert caller.known(told) == Outcome()


def test_a_decision_point_tells_what_it_takes(caller) -> None:
    kinds = {
        kind["name"]: kind for kind in caller.get("/v1/decision-points/chat").json()["signals"]
    }
    assert set(kinds) == set(CATALOGUE) | set(SIGNALS)
    assert (kinds["stars"]["family"], kinds["stars"]["weight"]) == ("explicit", 3.0)
    assert (kinds["judge"]["low"], kinds["judge"]["high"]) == (0, 10)


def event(**given_: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "e1",
        "source": "/shop",
        "type": "ai.llmopt.reward.v1",
        "data": {"kind": "stars", "value": 4},
    } | given_


def test_cloud_events_are_rewards(caller) -> None:
    told = caller.decide()
    first = event(subject=told, time="2026-01-01T10:00:00Z", traceparent="00-1")
    answer = caller.post("/v1/rewards", first, CE)
    assert (answer.status_code, answer.json()) == (202, {"accepted": True, "duplicate": False})
    assert caller.post("/v1/rewards", first, CE).json()["duplicate"] is True
    data = {"kind": "stars", "value": 1, "event_id": "e1", "decision_id": told}
    correction = event(id="e2", time="2026-01-02T10:00:00+01:00", data=data)
    other = event(id="e3", subject=told, data={"latency_s": 2.0})
    answer = caller.post("/v1/rewards", [correction, event(), other, first], CE_BATCH)
    items = answer.json()["items"]
    assert [item.get("status") for item in items] == [None, 422, None, None]
    assert items[1]["field"] == "subject"
    assert [item.get("duplicate") for item in items] == [False, None, False, True]
    assert caller.known(told) == Outcome(latency_s=2.0, feedback=0.0)


BAD_EVENTS = [
    ({"specversion": "0.3"}, "specversion"),
    ({"type": "com.example.other"}, "type"),
    ({"id": ""}, "id"),
    ({"time": "yesterday"}, "time"),
    ({"data": {"stars": 4}}, "data.stars"),
    ({"data": {"value": 4}}, "kind"),
    ({"data": {}}, "quality"),
    ({"datacontenttype": "text/xml"}, "datacontenttype"),
    ({"subject": None}, "subject"),
]


def test_what_the_schema_refuses_the_service_refuses(caller) -> None:
    validator = Draft202012Validator(reward_schema(), format_checker=FormatChecker())
    good = event(subject=caller.decide())
    assert validator.is_valid(good)
    for wrong, field in BAD_EVENTS:
        bad = good | wrong
        if "time" not in wrong:  # formats are checked by packages that are not there
            assert not validator.is_valid(bad), wrong
        answer = caller.post("/v1/rewards", bad, CE)
        assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


def test_the_schema_is_a_schema_and_knows_every_form(caller) -> None:
    schema = reward_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for data in (
        {"kind": "thumbs", "value": "up"},
        {"kind": "task_done", "value": True},
        {"quality": 0.5, "cost_usd": 0.1, "latency_s": 1, "feedback": 1},
        {"retract": True, "event_id": "e1"},
    ):
        validator.validate(event(subject="x", data=data))

    answer = caller.get("/v1/schemas/reward.json")
    assert answer.json() == schema
    assert answer.headers["content-type"] == "application/schema+json"


def test_the_client_sends_signals(api, caller) -> None:
    transport = httpx.ASGITransport(app=api)  # type: ignore[arg-type]
    when = datetime(2026, 1, 1, tzinfo=UTC)

    class Inside(AsyncOptimizer):
        def _open(self, **options: Any) -> None:
            super()._open(transport=transport, **options)

    async def calls() -> str:
        earlier = when.replace(year=2025)
        async with Inside("http://test") as optimizer:
            told = (await optimizer.decide("chat", {})).decision_id
            receipt = await optimizer.reward(told, kind="task_done", value=False, occurred_at=when)
            assert receipt.accepted
            assert not receipt.duplicate
            await optimizer.reward(told, kind="task_done", value=1, occurred_at=earlier)
            return told

    assert caller.known(asyncio.run(calls())) == Outcome(quality=0.0)
