"""The HTTP contract, on the real application with a real PostgreSQL and Valkey, without Ray."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from feature_repo.embedding import Embedder
from infra.servers import start_postgres, wait_postgres
from optimizer.settings import Settings
from serving.api import Api
from serving.learner import Learner
from serving.openapi import document
from serving.replica_state import ReplicaState

KEY = "00" * 16


class Client:
    """Calls an application the way a server does, from code that is not asynchronous."""

    def __init__(self, app: Api) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **given)

        return self._loop.run_until_complete(call())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.request("POST", path, **given)

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(
        token_keys=[KEY],
        learner={"batch_s": 0.05},
        decision_points=[
            {
                "name": "chat",
                "arms": [{"model": "small"}, {"model": "large", "parameters": {"n": 1}}],
                "cost_cap_usd": 0.01,
                "static_arm": "large",
                "control_share": 0.2,
            }
        ],
    )


@pytest.fixture
def state(platform: Settings) -> Iterator[ReplicaState]:
    made = ReplicaState(platform)
    yield made
    made.close()


@pytest.fixture
def client(state: ReplicaState) -> Iterator[Client]:
    made = Client(Api(state))
    yield made
    made.close()


@pytest.fixture
def learner(platform: Settings) -> Iterator[Learner]:
    made = Learner(platform, platform.decision_points[0], Embedder())
    made.start()
    yield made
    made.close()


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def decide(client: Client, **given: Any) -> dict[str, Any]:
    body = {"decision_point": "chat", "context": {"prompt": "What is 2+2?"}} | given
    response = client.post("/v1/decisions", json=body)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_without_a_snapshot_the_static_rule_decides(client) -> None:
    decision = decide(client, unit_id=unit_outside_control(client))
    assert decision["fallback"] is True
    assert decision["model"] == "large"
    assert decision["parameters"] == {"n": 1}
    assert decision["propensity"] == 1.0
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def unit_outside_control(client: Client) -> str:
    """A unit that the policy serves; assignments don't change, so one is enough."""
    for number in range(1000):
        if decide(client, unit_id=f"u{number}")["propensity"] != 0.5:
            return f"u{number}"
    raise AssertionError("every unit is in the control")


def test_the_loop_from_decision_to_a_policy_that_learned(client, learner, state) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200)
    for number in range(60):
        decision = decide(client, unit_id=str(number))
        assert decision["fallback"] is False
        good = decision["model"] == "small"
        reward = {
            "decision_id": decision["decision_id"],
            "quality": 0.9 if good else 0.1,
            "cost_usd": 0.001,
        }
        answer = client.post("/v1/rewards", json=reward)
        assert (answer.status_code, answer.json()) == (202, {"accepted": True, "duplicate": False})
        answer = client.post("/v1/rewards", json=reward)
        assert answer.json() == {"accepted": True, "duplicate": True}
    wait_until(lambda: state.points["chat"].shelf.snapshot.position == 60)
    point = client.get("/v1/decision-points/chat").json()
    assert (point["rewards"], point["learned"]) == (60, 60)
    assert point["recent_reward"]["decisions"] == 60
    assert point["recent_reward"]["incomplete"] == 0
    decisions = [decide(client, unit_id=f"later {number}") for number in range(200)]
    share = sum(one["model"] == "small" for one in decisions) / 200
    assert share > 0.8
    assert all(0 < one["propensity"] <= 1 for one in decisions)
    assert {one["policy_version"] for one in decisions} == {60}


def test_candidates_narrow_the_choice(client, learner) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200)
    models = {decide(client, candidates=["large"])["model"] for _ in range(20)}
    assert models == {"large"}


def test_a_unit_stays_in_its_role(client, learner) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200)
    for number in range(50):
        in_control = {decide(client, unit_id=str(number))["propensity"] == 0.5 for _ in range(3)}
        assert len(in_control) == 1


def test_a_batch_answers_each_item_on_its_own(client, learner) -> None:
    wait_until(lambda: client.get("/readyz").status_code == 200)
    good = {"decision_point": "chat", "context": {}}
    answer = client.post("/v1/decisions/batch", json={"items": [good, {"context": {}}, good]})
    items = answer.json()["items"]
    assert answer.status_code == 200
    assert [item.get("status") for item in items] == [None, 422, None]
    assert items[1]["field"] == "decision_point"
    rewards = [
        {"decision_id": items[0]["decision_id"], "quality": 1.0},
        {"decision_id": "forged", "quality": 1.0},
        {"decision_id": items[0]["decision_id"], "quality": 1.0},
    ]
    answer = client.post("/v1/rewards/batch", json={"items": rewards})
    items = answer.json()["items"]
    assert answer.status_code == 202
    assert items[0] == {"accepted": True, "duplicate": False}
    assert items[1]["status"] == 400
    assert items[2] == {"accepted": True, "duplicate": True}


DECISION = {"decision_point": "chat", "context": {"prompt": "hello"}}
REWARD = {"decision_id": "TOKEN", "quality": 0.5}
BAD = [
    ("/v1/decisions", {**DECISION, "decision_point": "chit"}, 404, "decision_point", "chit"),
    ("/v1/decisions", {"decision_point": "chat"}, 422, "context", None),
    ("/v1/decisions", {"context": {}}, 422, "decision_point", None),
    ("/v1/decisions", {**DECISION, "context": "hello"}, 422, "context", "hello"),
    ("/v1/decisions", {**DECISION, "decision_point": 7}, 422, "decision_point", 7),
    ("/v1/decisions", {**DECISION, "context": {"prompt": 7}}, 422, "context.prompt", 7),
    (
        "/v1/decisions",
        {**DECISION, "context": {"input_tokens": -1}},
        422,
        "context.input_tokens",
        -1,
    ),
    (
        "/v1/decisions",
        {**DECISION, "context": {"priority": "now"}},
        422,
        "context.priority",
        "now",
    ),
    ("/v1/decisions", {**DECISION, "context": {"x": [1]}}, 422, "context.x", [1]),
    ("/v1/decisions", {**DECISION, "speed": 1}, 422, "speed", 1),
    ("/v1/decisions", {**DECISION, "candidates": ["tiny"]}, 404, "candidates[0]", "tiny"),
    ("/v1/decisions", {**DECISION, "candidates": []}, 422, "candidates", []),
    ("/v1/decisions", {**DECISION, "unit_id": ""}, 422, "unit_id", ""),
    ("/v1/decisions", "{not json", 400, "body", "{not json"),
    ("/v1/decisions", '{"decision_point":"chat","context":{"a":NaN}}', 422, "context.a", "nan"),
    ("/v1/rewards", {**REWARD, "quality": 1.5}, 422, "quality", 1.5),
    ("/v1/rewards", {**REWARD, "cost_usd": -0.1}, 422, "cost_usd", -0.1),
    ("/v1/rewards", {**REWARD, "latency_s": "fast"}, 422, "latency_s", "fast"),
    ("/v1/rewards", {**REWARD, "feedback": 2}, 422, "feedback", 2),
    ("/v1/rewards", {"decision_id": "TOKEN"}, 422, "quality", None),
    ("/v1/rewards", {"quality": 1.0}, 422, "decision_id", None),
    ("/v1/rewards", {**REWARD, "retract": True}, 422, "retract", True),
    ("/v1/rewards", {**REWARD, "stars": 5}, 422, "stars", 5),
    ("/v1/rewards", '{"decision_id":"TOKEN","quality":NaN}', 422, "quality", "nan"),
    ("/v1/rewards", '{"decision_id":"TOKEN","cost_usd":1e999}', 422, "cost_usd", "inf"),
    ("/v1/rewards", {**REWARD, "decision_id": "x" * 300}, 400, "decision_id", "x" * 37 + "..."),
    ("/v1/rewards", {**REWARD, "decision_id": "FORGED"}, 400, "decision_id", None),
    ("/v1/rewards", {**REWARD, "decision_id": "TRUNCATED"}, 400, "decision_id", None),
    ("/v1/decisions", "x" * (10 << 20), 413, "body", f"{10 << 20} bytes"),
    ("/v1/rewards/batch", {"items": []}, 422, "items", []),
    ("/v1/decisions/batch", {"items": [{}] * 1001}, 422, "items", None),
    ("/v1/decision", DECISION, 404, "path", "/v1/decision"),
    ("/healthz", {}, 405, "method", "POST"),
]


def test_bad_input_names_field_and_value_and_stores_nothing(client, state) -> None:
    token = decide(client)["decision_id"]
    counted = list(state.points["chat"].counts)
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    for path, body, status, field, value in BAD:
        text = body if isinstance(body, str) else json.dumps(body)
        text = text.replace("TOKEN", token).replace("FORGED", forged)
        text = text.replace("TRUNCATED", token[:40])
        response = client.post(path, content=text.encode())
        shown = text[:200]
        assert response.status_code == status, (shown, response.text)
        assert response.headers["content-type"] == "application/problem+json", shown
        problem = response.json()
        assert problem["status"] == status, shown
        assert problem["field"] == field, (shown, problem)
        if value is not None:
            assert problem["value"] == value, (shown, problem)
        assert problem["detail"], shown
    assert state.points["chat"].counts == counted
    assert client.get("/v1/decision-points/chat").json()["rewards"] == 0


def test_unknown_names_and_methods_of_cold_routes(client) -> None:
    assert client.get("/v1/decision-points/chit").status_code == 404
    assert client.get("/v1/decision-points").json()["decision_points"][0]["name"] == "chat"
    assert client.request("DELETE", "/v1/decisions").status_code == 405


def test_the_openapi_document_tells_the_truth(client, state) -> None:
    content = client.get("/openapi.json").json()
    assert content == json.loads(json.dumps(document()))
    documented = {
        (method.upper(), path) for path, methods in content["paths"].items() for method in methods
    }
    assert documented == set(Api(state).routes)
    context = content["components"]["schemas"]["ContextBody"]["properties"]
    assert set(context) == {
        "prompt", "task", "input_tokens", "expected_output_tokens", "priority",
    }  # fmt: skip
    page = client.get("/docs").text
    assert all(path in page for _, path in documented)
    assert "http://" not in page
    assert "https://" not in page


def test_metrics_count_what_happened(client) -> None:
    for _ in range(3):
        decide(client)
    client.post("/v1/decisions", json={})
    text = client.get("/metrics").text
    assert 'llmopt_requests_total{route="/v1/decisions",status="200"} 3.0' in text
    assert 'llmopt_requests_total{route="/v1/decisions",status="422"} 1.0' in text
    assert "llmopt_decision_seconds_count 3.0" in text


def test_rewards_are_refused_while_postgresql_is_away(platform) -> None:
    away = platform.model_copy(update={"postgres_url": "postgresql://postgres@127.0.0.1:1/none"})
    state = ReplicaState(away)
    client = Client(Api(state))
    decision = decide(client)
    reward = {"decision_id": decision["decision_id"], "quality": 1.0}
    answer = client.post("/v1/rewards", json=reward)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/v1/decision-points/chat").status_code == 503
    state.close()
    client.close()


def test_rewards_are_taken_again_soon_after_postgresql_came_back(
    platform, find_free_port, server_folder
) -> None:
    """Callers that keep trying must not keep the writer from trying."""
    port = find_free_port()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    state = ReplicaState(platform.model_copy(update={"postgres_url": url}))
    client = Client(Api(state))
    reward = {"decision_id": decide(client)["decision_id"], "quality": 1.0}
    assert client.post("/v1/rewards", json=reward).status_code == 503
    server = start_postgres(server_folder / "late", port, server_folder / "late.log")
    try:
        wait_postgres(url, 30, server)
        wait_until(lambda: client.post("/v1/rewards", json=reward).status_code == 202, seconds=5)
    finally:
        state.close()
        client.close()
        server.send_signal(signal.SIGINT)
        server.wait(20)


@pytest.mark.parametrize("event_id", ["\0", "a\0b", "ab\n\0"])
def test_an_event_id_that_postgresql_cannot_hold_is_refused(client, event_id) -> None:
    reward = {"decision_id": decide(client)["decision_id"], "quality": 1.0, "event_id": event_id}
    answer = client.post("/v1/rewards", json=reward)
    assert (answer.status_code, answer.json()["field"]) == (422, "event_id")
    fine = reward | {"event_id": "line\nbreak"}
    answer = client.post("/v1/rewards/batch", json={"items": [reward, fine]})
    bad, good = answer.json()["items"]
    assert bad["field"] == "event_id"
    assert good == {"accepted": True, "duplicate": False}
