"""The client against a real server that fails as told, and against the real fast lane."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

import serving.client
from optimizer.errors import InvalidInput, Unavailable
from optimizer.settings import Settings
from serving.api import Api
from serving.client import (
    AsyncOptimizer,
    Breaker,
    Decision,
    Optimizer,
    Receipt,
    Refused,
    Request,
    Reward,
    ServiceUnavailable,
    StaticChoice,
)
from serving.client_patience import Patience
from serving.fast_lane import FastLane, listen
from serving.replica_state import ReplicaState
from serving.schema import DecisionBody, DecisionResponse, RewardBody, RewardResponse

PATIENT = {"timeout_s": 60.0, "try_timeout_s": 30.0, "retries": 20, "backoff_s": 0.01}
PROBLEM = {"status": 422, "detail": "context: an object", "field": "context", "value": "hello"}
# What a service does with a request instead of answering it.
HANG, CLOSE, HALF = "hang", "close", "half"


class Service:
    """Keeps the HTTP contract on one port, unless told to do something else with what comes next.

    ``script`` holds what to do with the next requests: hang, close the connection, break off
    within the answer, or a status with headers and body.
    """

    def __init__(self, port: int = 0) -> None:
        self.script: deque[Any] = deque()
        self.asked: list[tuple[str, Any]] = []
        self.connections = 0
        self._released = threading.Event()
        self._open: set[socket.socket] = set()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                service.connections += 1
                service._open.add(self.connection)

            def finish(self) -> None:
                service._open.discard(self.connection)
                super().finish()

            def log_message(self, *said: Any) -> None:
                pass

            def do_GET(self) -> None:  # http.server's name
                service.answer(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                service.answer(self, json.loads(body))

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *of: Any) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.asked.append((handler.path, body))
        action = self.script.popleft() if self.script else None
        if action is None:
            self._send(handler, 200, {}, json.dumps(self._content(handler.path, body)).encode())
        elif action == HANG:
            self._released.wait()
            handler.close_connection = True
        elif action == CLOSE:
            handler.close_connection = True
        elif action == HALF:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")
            handler.close_connection = True
        else:
            status, headers, content = action
            self._send(handler, status, headers, content)

    def stop(self) -> None:
        """End like a process that is killed: nothing listens, and every connection is closed."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._released.set()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _content(self, path: str, body: Any) -> Any:
        if path.endswith("/batch"):
            inner = path.removesuffix("/batch")
            return {"items": [self._content(inner, item) for item in body["items"]]}
        if path == "/v1/rewards":
            return {"accepted": True, "duplicate": False}
        if path == "/v1/decision-points":
            return {"decision_points": [{"name": "chat"}]}
        if path != "/v1/decisions":
            return {"path": path}
        if body["decision_point"] == "refused":
            return PROBLEM
        return {
            "decision_id": f"id of {body.get('unit_id')}",
            "decision_point": body["decision_point"],
            "model": "large",
            "parameters": {"temperature": 0.2},
            "prompt_variant": "default",
            "propensity": 0.5,
            "policy_version": 7,
            "fallback": False,
            "of_a_later_version": 1,
        }


class Waiting:
    """An `AsyncOptimizer` whose calls are waited for, so that both clients run the same tests."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._optimizer = AsyncOptimizer(*arguments, **options)
        self._loop = asyncio.new_event_loop()

    @property
    def retried(self) -> int:
        return self._optimizer.retried

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            method = getattr(self._optimizer, name)
            return self._loop.run_until_complete(method(*arguments, **options))

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._optimizer.aclose())
        self._loop.close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture(params=[Optimizer, Waiting], ids=["threads", "event loop"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of either kind."""
    opened = []

    def made(*arguments: Any, **options: Any) -> Any:
        opened.append(request.param(*arguments, **options))
        return opened[-1]

    yield made
    for one in opened:
        one.close()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL where nothing listens, and nothing else can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def unavailable(headers: dict[str, str] | None = None, status: int = 503) -> Any:
    return (status, headers or {}, b"")


def test_a_decision_and_its_reward(make: Any, service: Service) -> None:
    optimizer = make(service.url)
    decision = optimizer.decide("chat", {"prompt": "2+2?", "priority": None}, "u", ("large",))
    assert decision == Decision(
        "id of u", "chat", "large", {"temperature": 0.2}, "default", 0.5, 7, False
    )
    receipt = optimizer.reward(decision.decision_id, quality=0.0, cost_usd=0.1, event_id="judge")
    assert receipt == Receipt(accepted=True, duplicate=False)
    optimizer.reward(decision.decision_id, event_id="judge", retract=True)
    assert service.asked == [
        (
            "/v1/decisions",
            {
                "decision_point": "chat",
                "context": {"prompt": "2+2?", "priority": None},
                "unit_id": "u",
                "candidates": ["large"],
            },
        ),
        (
            "/v1/rewards",
            {"decision_id": "id of u", "quality": 0.0, "cost_usd": 0.1, "event_id": "judge"},
        ),
        ("/v1/rewards", {"decision_id": "id of u", "event_id": "judge", "retract": True}),
    ]


def test_batches_keep_their_order_and_hold_what_was_refused(make: Any, service: Service) -> None:
    optimizer = make(service.url)
    asked = [Request("chat", {}, "a"), Request("refused", {}), Request("chat", {}, "b")]
    first, refused, second = optimizer.decide_many(asked)
    assert (first.decision_id, second.decision_id) == ("id of a", "id of b")
    assert isinstance(refused, Refused)
    assert (refused.status, refused.field, refused.value) == (422, "context", "hello")
    rewards = [Reward("a", 0.5), Reward("", 0.5), Reward("b", cost_usd=0.0)]
    receipts = optimizer.reward_many(rewards)
    assert [receipt.accepted for receipt in receipts] == [True, False, True]
    assert service.asked[-1] == (
        "/v1/rewards/batch",
        {"items": [{"decision_id": "a", "quality": 0.5}, {"decision_id": "b", "cost_usd": 0.0}]},
    )


def test_nothing_to_ask_or_to_tell_sends_nothing(make: Any, service: Service) -> None:
    optimizer = make(service.url)
    unknown = Receipt(accepted=False, duplicate=False)
    assert optimizer.decide_many([]) == []
    assert optimizer.reward_many([]) == []
    assert optimizer.reward_many([Reward("", 1.0)]) == [unknown]
    assert optimizer.reward("", quality=1.0) == unknown
    assert service.asked == []


def test_decision_points(make: Any, service: Service) -> None:
    optimizer = make(service.url)
    assert optimizer.decision_points() == [{"name": "chat"}]
    assert optimizer.decision_point("a/b c") == {"path": "/v1/decision-points/a%2Fb%20c"}


def test_a_connection_is_used_again(make: Any, service: Service) -> None:
    optimizer = make(service.url)
    for number in range(20):
        optimizer.reward(optimizer.decide("chat", {}, str(number)).decision_id, quality=1.0)
    assert len(service.asked) == 40
    assert service.connections == 1
    assert optimizer.retried == 0


@pytest.mark.parametrize(
    "failure",
    [CLOSE, HALF, *(unavailable(status=status) for status in (408, 429, 502, 503, 504))],
    ids=str,
)
def test_what_may_be_over_in_a_moment_is_retried(make: Any, service: Service, failure: Any) -> None:
    optimizer = make(service.url, static="small", **PATIENT)
    optimizer.decide("chat", {})  # a connection is kept from here
    service.script.extend([failure, failure])
    assert optimizer.decide("chat", {}).fallback is False
    service.script.append(failure)
    assert optimizer.reward("id", quality=1.0).accepted
    assert optimizer.retried == 3
    assert len(service.asked) == 6


def test_a_service_that_hangs_is_asked_again(make: Any, service: Service) -> None:
    optimizer = make(service.url, **{**PATIENT, "try_timeout_s": 0.3})
    service.script.append(HANG)
    assert optimizer.decide("chat", {}).model == "large"
    assert optimizer.retried >= 1


def test_a_service_that_was_killed_and_came_back(make: Any, service: Service) -> None:
    """The connections that were kept are dead, and nobody notices."""
    optimizer = make(service.url, **PATIENT)
    optimizer.decide("chat", {})
    service.stop()
    again = Service(service.port)
    try:
        assert optimizer.decide("chat", {}, "later").decision_id == "id of later"
    finally:
        again.stop()


def test_time_is_up_although_tries_are_left(make: Any, service: Service) -> None:
    service.script.extend([HANG] * 50)
    optimizer = make(service.url, timeout_s=0.2, try_timeout_s=0.05, retries=49)
    with pytest.raises(ServiceUnavailable, match="of 50 tries"):
        optimizer.decide("chat", {})
    assert 1 <= len(service.asked) < 50


def test_a_pause_that_would_outlast_the_call_ends_it(make: Any, service: Service) -> None:
    service.script.append(unavailable({"Retry-After": "90"}))
    with pytest.raises(ServiceUnavailable) as caught:
        make(service.url, **PATIENT).reward("id", quality=1.0)
    assert caught.value.retry_after_s == 90
    assert len(service.asked) == 1


def test_pauses_grow_are_random_and_keep_to_what_the_service_asked_for() -> None:
    patience = Patience(2.0, 1.0, 2, 0.05)
    assert [patience.pause_s(failed, 0, 1.0) for failed in range(3)] == [0.05, 0.1, 0.2]
    assert patience.pause_s(3, 0, 0.0) == 0
    assert patience.pause_s(100_000, 0, 1.0) == 2
    assert patience.pause_s(0, 1, 0.5) == 1.025


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("1", 1, 1.01), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0.01), ("-1", 0, 0.01), ("", 0, 0.01)],
)
def test_retry_after_is_waited_for(said: str, least: float, most: float) -> None:
    with Optimizer(**PATIENT) as optimizer:
        call = optimizer._call_reward(Reward("id", 1.0))
        next(call)
        pause_s = call.send(httpx.Response(503, headers={"Retry-After": said}))
        assert isinstance(pause_s, float)
        assert least <= pause_s <= most


def test_without_a_static_rule_the_error_says_what_was_tried(make: Any, nowhere: str) -> None:
    optimizer = make(nowhere, retries=1, backoff_s=0)
    with pytest.raises(ServiceUnavailable) as caught:
        optimizer.decide("chat", {})
    assert isinstance(caught.value, Unavailable)
    assert caught.value.url == f"{nowhere}/v1/decisions"
    assert "2 of 2 tries" in str(caught.value)
    assert "ConnectError" in str(caught.value)
    assert "llmopt status" in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    for tell in (
        lambda: optimizer.reward("id", quality=1.0),
        lambda: optimizer.reward_many([Reward("id", 1.0)]),
        optimizer.decision_points,
    ):
        with pytest.raises(ServiceUnavailable):
            tell()


def test_the_static_rule_decides_while_the_service_is_away(make: Any, nowhere: str) -> None:
    rule = StaticChoice("small", {"n": 1}, "short")
    optimizer = make(nowhere, static={"chat": rule, "mail": "large"}, retries=0)
    decision = optimizer.decide("chat", {})
    assert decision == Decision("", "chat", "small", {"n": 1}, "short", 1.0, 0, True)
    assert optimizer.reward(decision.decision_id, quality=1.0).accepted is False
    assert optimizer.decide("mail", {}).model == "large"
    with pytest.raises(ServiceUnavailable):
        optimizer.decide("other", {})
    both = optimizer.decide_many([Request("chat", {}), Request("mail", {})])
    assert [one.model for one in both] == ["small", "large"]
    with pytest.raises(ServiceUnavailable):
        optimizer.decide_many([Request("chat", {}), Request("other", {})])


def test_the_static_rule_keeps_to_the_candidates(make: Any, nowhere: str) -> None:
    optimizer = make(nowhere, static=StaticChoice("small", {"n": 1}), retries=0)
    assert optimizer.decide("chat", {}, candidates=["large", "small"]).parameters == {"n": 1}
    decision = optimizer.decide("chat", {}, candidates=["large", "huge"])
    assert (decision.model, decision.parameters) == ("large", {})


def test_what_the_service_refuses_is_neither_retried_nor_left_to_the_static_rule(
    make: Any, service: Service
) -> None:
    optimizer = make(service.url, static="small", **PATIENT)
    service.script.append((422, {}, json.dumps(PROBLEM).encode()))
    with pytest.raises(Refused) as caught:
        optimizer.decide("chat", {})
    refused = caught.value
    assert (refused.status, refused.field, refused.value) == (422, "context", "hello")
    assert refused.detail == "context: an object"
    assert str(pickle.loads(pickle.dumps(refused))) == str(refused)
    service.script.append((403, {}, b"<h1>No</h1>"))
    with pytest.raises(Refused, match="403: <h1>No</h1>"):
        optimizer.reward("id", quality=1.0)
    assert len(service.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b"{}"),
        (302, {"location": "/elsewhere"}, b""),
        (200, {}, b"<h1>Hello</h1>"),
        (200, {}, b'{"model": "large"}'),
        (200, {}, b'{"items": []}'),
    ],
    ids=str,
)
def test_an_unusable_answer_is_not_retried_and_opens_no_breaker(
    make: Any, service: Service, answer: Any
) -> None:
    optimizer = make(service.url, static="small", **PATIENT)
    request = Request("chat", {})
    service.script.extend([answer, answer])
    assert optimizer.decide("chat", {}).model == "small"
    assert optimizer.decide_many([request])[0].model == "small"
    assert len(service.asked) == 2
    assert optimizer.decide("chat", {}).model == "large"
    service.script.append(answer)
    with pytest.raises(ServiceUnavailable, match="unusable"):
        optimizer.reward("id", quality=1.0)


def test_a_batch_with_too_few_answers_is_unusable(make: Any, service: Service) -> None:
    service.script.append((200, {}, b'{"items": []}'))
    with pytest.raises(ServiceUnavailable, match="0 answers to 1 items"):
        make(service.url).reward_many([Reward("id", 1.0)])


def test_callers_are_spared_the_wait_until_a_probe_is_answered(
    make: Any, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    breaker = Breaker(clock=lambda: now_s[0])
    optimizer = make(service.url, static="small", breaker=breaker, retries=2, backoff_s=0)

    def asks() -> tuple[str, int]:
        before = len(service.asked)
        model = optimizer.decide("chat", {}).model
        return model, len(service.asked) - before

    service.script.extend([CLOSE] * 4)
    assert asks() == ("small", 3)
    assert asks() == ("small", 0)
    assert optimizer.decide_many([Request("chat", {})])[0].fallback
    now_s[0] = 1.0
    assert asks() == ("small", 1)  # the probe, one try
    assert caplog.text.count("the static rule decides") == 1
    now_s[0] = 2.9
    assert asks() == ("small", 0)
    now_s[0] = 3.0
    assert asks() == ("large", 1)
    assert asks() == ("large", 1)


def test_rewards_have_no_breaker(make: Any, service: Service) -> None:
    """The ledger may be away while decisions go on, and there is nothing to answer instead."""
    optimizer = make(service.url, static="small", retries=0)
    service.script.extend([CLOSE, CLOSE])
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            optimizer.reward("id", quality=1.0)
    assert optimizer.decide("chat", {}).model == "large"


def test_the_breaker_waits_longer_with_each_probe() -> None:
    now_s = [0.0]
    breaker = Breaker(1.0, 10.0, lambda: now_s[0])
    assert breaker.tries(3) == 3
    assert breaker.failed() is True
    assert breaker.failed() is False  # a call that began before
    waits = []
    for _ in range(6):
        before_s = now_s[0]
        while not breaker.tries(3):
            now_s[0] += 0.5
        assert breaker.tries(3) == 0  # one probe
        breaker.failed()
        waits.append(now_s[0] - before_s)
    assert waits == [1, 2, 4, 8, 10, 10]
    breaker.answered()
    assert breaker.tries(3) == 3
    breaker.failed()
    assert breaker.tries(3) == 0


def test_one_of_many_tasks_probes(service: Service) -> None:
    async def run() -> list[str]:
        now_s = [0.0]
        breaker = Breaker(clock=lambda: now_s[0])
        async with AsyncOptimizer(
            service.url, static="small", breaker=breaker, retries=0
        ) as optimizer:
            service.script.append(CLOSE)
            await optimizer.decide("chat", {})
            now_s[0] = 1.0
            decisions = await asyncio.gather(*(optimizer.decide("chat", {}) for _ in range(10)))
        return [decision.model for decision in decisions]

    assert sorted(asyncio.run(run())) == ["large"] + ["small"] * 9
    assert len(service.asked) == 2


def test_many_tasks_share_a_client(service: Service) -> None:
    async def run() -> list[str]:
        async with AsyncOptimizer(service.url, **PATIENT) as optimizer:
            service.script.extend([CLOSE, None, HALF, unavailable()])
            calls = (optimizer.decide("chat", {}, str(number)) for number in range(100))
            return [decision.decision_id for decision in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [f"id of {number}" for number in range(100)]
    assert len(service.asked) == 103


def test_many_threads_share_a_client(service: Service) -> None:
    service.script.extend([CLOSE, None, HALF, unavailable()])
    with (
        Optimizer(service.url, **PATIENT) as optimizer,
        ThreadPoolExecutor(8) as pool,
    ):
        decisions = list(pool.map(lambda n: optimizer.decide("chat", {}, str(n)), range(100)))
        assert optimizer.retried >= 3
    assert [one.decision_id for one in decisions] == [f"id of {number}" for number in range(100)]
    assert service.connections <= 8 + 2


def test_a_task_that_is_cancelled_leaves_a_client_that_works(service: Service) -> None:
    async def run() -> Decision:
        async with AsyncOptimizer(service.url, **PATIENT) as optimizer:
            service.script.append(HANG)
            asking = asyncio.create_task(optimizer.decide("chat", {}))
            while not service.asked:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            return await optimizer.decide("chat", {}, "next")

    assert asyncio.run(run()).decision_id == "id of next"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": "127.0.0.1:8001"}, "url"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"try_timeout_s": float("nan")}, "try_timeout_s"),
        ({"retries": -1}, "retries"),
        ({"backoff_s": -0.1}, "backoff_s"),
    ],
)
def test_bad_options_are_refused(make: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(**options)
    assert caught.value.field == field


def test_a_breaker_refuses_times_that_make_no_sense() -> None:
    for shortest_s, longest_s in itertools.pairwise([0.0, 2.0, 1.0]):
        with pytest.raises(InvalidInput):
            Breaker(shortest_s, longest_s)


def test_importing_the_client_imports_nothing_heavy() -> None:
    code = "import sys, serving.client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "ray", "pandas", "scipy", "pydantic", "mlflow", "feast", "prefect", "redis"}
    assert heavy.isdisjoint(done.stdout.split())


def test_the_types_are_those_of_the_service() -> None:
    def names(kind: type[msgspec.Struct]) -> set[str]:
        return set(kind.__struct_fields__)

    assert names(Decision) == names(DecisionResponse)
    assert names(Request) == names(DecisionBody)
    assert names(Reward) == names(RewardBody)
    assert names(Receipt) == names(RewardResponse)


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")} - {"close", "aclose"}

    assert public(Optimizer) == public(AsyncOptimizer)
    assert set(serving.client.__all__) <= set(vars(serving.client))


@pytest.fixture
def serve() -> Iterator[Callable[[Settings], str]]:
    """Serves the real application on a real fast lane, and tells where."""
    stops: list[Callable[[], None]] = []

    def made(settings: Settings) -> str:
        state = ReplicaState(settings)
        listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(Api(state), http=FastLane, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(timeout=20)
            state.close()

        stops.append(stop)
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield made
    for stop in stops:
        stop()


def test_the_real_service(
    make: Any, serve: Callable[[Settings], str], settings: Callable[..., Settings]
) -> None:
    optimizer = make(serve(settings(token_keys=["00" * 16])), **PATIENT)
    decision = optimizer.decide("chat", {"prompt": "2+2?", "length": 4}, "u", ["large"])
    assert (decision.model, bool(decision.decision_id)) == ("large", True)
    told = [optimizer.reward(decision.decision_id, quality=0.5, latency_s=1.0) for _ in range(2)]
    assert told == [Receipt(accepted=True, duplicate=False), Receipt(accepted=True, duplicate=True)]
    refusals = [
        (lambda: optimizer.decide("chit", {}), 404, "decision_point"),
        (lambda: optimizer.decide("chat", {"a": float("nan")}), 422, "context.a"),
        (lambda: optimizer.decide("chat", {}, candidates=["tiny"]), 404, "candidates[0]"),
        (lambda: optimizer.reward("forged", quality=1.0), 400, "decision_id"),
        (lambda: optimizer.reward(decision.decision_id, quality=float("nan")), 422, "quality"),
        (lambda: optimizer.decide_many([Request("chat", {})] * 1001), 422, "items"),
    ]
    for refused, status, field in refusals:
        with pytest.raises(Refused) as caught:
            refused()
        assert (caught.value.status, caught.value.field) == (status, field)
        assert caught.value.detail
    good, bad = optimizer.decide_many([Request("chat", {}), Request("chit", {})])
    assert isinstance(good, Decision)
    assert (bad.status, bad.field) == (404, "decision_point")
    stored, forged = optimizer.reward_many([Reward(good.decision_id, 1.0), Reward("forged", 1.0)])
    assert stored.accepted
    assert forged.status == 400
    assert optimizer.decision_points()[0]["name"] == "chat"
    assert optimizer.decision_point("chat")["rewards"] == 2
    assert optimizer.retried == 0


def test_the_real_service_without_its_ledger(
    make: Any, serve: Callable[[Settings], str], settings: Callable[..., Settings]
) -> None:
    away = settings(token_keys=["00" * 16], postgres_url="postgresql://postgres@127.0.0.1:1/none")
    optimizer = make(serve(away), timeout_s=60.0, try_timeout_s=30.0, retries=0)
    decision = optimizer.decide("chat", {})
    with pytest.raises(ServiceUnavailable, match="PostgreSQL") as caught:
        optimizer.reward(decision.decision_id, quality=1.0)
    assert caught.value.retry_after_s >= 1


def test_closing_closes_the_connections(service: Service) -> None:
    with closing(Optimizer(service.url)) as optimizer:
        optimizer.decide("chat", {})
    deadline = time.monotonic() + 10
    while service._open:
        assert time.monotonic() < deadline
        time.sleep(0.01)
