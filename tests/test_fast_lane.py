"""The fast lane's short cut, over real sockets: what the way through the application answers."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from optimizer.settings import Settings
from serving import fast_lane
from serving.api import Api
from serving.fast_lane import FastLane, listen
from serving.replica_state import ReplicaState

BODY = b'{"decision_point": "chat", "context": {"task": "a"}}'
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
QUEUE = 50


class Server:
    """uvicorn in a thread, as a replica runs it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        config = uvicorn.Config(api, http=FastLane, lifespan="off", log_config=None)
        self._server = uvicorn.Server(config)
        listener = listen("127.0.0.1", 0)
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def keep_alive(self, seconds: float) -> None:
        self._server.config.timeout_keep_alive = seconds

    def talk(self, *parts: bytes, pause_s: float = 0.0) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
        return connection


@pytest.fixture
def server(settings: Callable[..., Settings]) -> Iterator[Server]:
    state = ReplicaState(
        settings(
            token_keys=["00" * 16],
            serving={"queue": QUEUE},
            decision_points=[
                {"name": "chat", "arms": [{"model": "a"}, {"model": "b"}], "control_share": 0}
            ],
        )
    )
    made = Server(Api(state))
    yield made
    made.stop()
    state.close()


def request(
    body: bytes = BODY, path: bytes = b"/v1/decisions", more: bytes = b"", version: bytes = b"1.1"
) -> bytes:
    length = b"" if b"chunked" in more else b"content-length: %d\r\n" % len(body)
    return b"POST %s HTTP/%s\r\nhost: x\r\n%s%s\r\n%s" % (path, version, length, more, body)


def answers(connection: socket.socket, number: int) -> list[tuple[int, dict[str, Any]]]:
    """Status and body of so many answers, in the order in which they come."""
    stream = connection.makefile("rb")
    found = []
    while len(found) < number:
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        if status != 100:
            found.append((status, json.loads(stream.read(length) or b"{}")))
    return found


def test_a_decision_is_what_the_application_gives(server) -> None:
    with server.talk(request()) as connection:
        ((status, short),) = answers(connection, 1)
    url = f"http://127.0.0.1:{server.port}/v1/decisions/batch"
    batch = httpx.post(url, json={"items": [json.loads(BODY)]}).json()["items"][0]
    assert status == 200
    assert short.keys() == batch.keys()
    assert short["fallback"] is batch["fallback"] is True
    metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
    assert 'llmopt_requests_total{route="/v1/decisions",status="200"} 1.0' in metrics
    assert "llmopt_decision_seconds_count 2.0" in metrics


def test_requests_on_one_connection_are_answered_in_their_order(server) -> None:
    """Decisions take the short cut, what stands between them does not."""
    wrong = b'{"decision_point": "nobody", "context": {}}'
    parts = [
        request(),
        request(wrong),
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        request(),
        request(b"{", path=b"/v1/decisions/batch"),
        request(),
        request(),
    ]
    for pieces in (parts, [b"".join(parts)]):
        with server.talk(*pieces) as connection:
            found = answers(connection, len(parts))
        assert [status for status, _ in found] == [200, 404, 200, 200, 400, 200, 200]
        assert found[1][1]["field"] == "decision_point"
        assert found[2][1] == {"status": "alive"}
        assert len({content.get("decision_id") for _, content in found}) == 5


@pytest.mark.parametrize(
    "sent",
    [
        request(version=b"1.0"),
        request(more=b"connection: close\r\n"),
        request(more=b"expect: 100-continue\r\n"),
        request(CHUNKED, more=b"transfer-encoding: chunked\r\n"),
        request(path=b"/v1/decisions?x=1"),
    ],
    ids=["HTTP/1.0", "close", "expect", "chunked", "query"],
)
def test_unusual_requests_are_answered_too(server, sent: bytes) -> None:
    with server.talk(sent) as connection:
        assert answers(connection, 1)[0][0] == 200


def test_a_request_in_small_pieces_is_put_together(server) -> None:
    with server.talk(*(bytes([byte]) for byte in request())) as connection:
        assert answers(connection, 1)[0][0] == 200


def test_a_body_beyond_the_limit_is_refused_and_the_connection_lives(server) -> None:
    large = BODY[:-1] + b" " * fast_lane.SINGLE_LIMIT + b"}"
    with server.talk(request(large), request()) as connection:
        (status, content), (after, _) = answers(connection, 2)
    assert (status, content["field"], after) == (413, "body", 200)


def test_no_http_is_refused(server) -> None:
    with server.talk(b"hello\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_beyond_the_queue_the_answer_is_503_at_once(server) -> None:
    """More requests in one piece than may wait: the rest is turned away, the connection lives."""
    with server.talk(request() * (QUEUE + 10)) as connection:
        found = answers(connection, QUEUE + 10)
    assert sorted(status for status, _ in found) == [200] * QUEUE + [503] * 10
    refused = next(content for status, content in found if status == 503)
    assert refused["retry_after_s"] >= 1
    metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
    assert "llmopt_turned_away_total 10.0" in metrics
    assert f"llmopt_queue_longest {QUEUE}.0" in metrics


def test_a_connection_that_hangs_is_closed(server, monkeypatch) -> None:
    monkeypatch.setattr(fast_lane, "_LOOK_S", 0.05)
    monkeypatch.setattr(fast_lane, "_SLOWEST_REQUEST_S", 0.1)
    with server.talk(request()[:-5]) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert connection.recv(1000) == b""


@pytest.mark.parametrize("path", ["/v1/decisions", "/healthz"])
def test_only_an_idle_connection_is_closed(server, monkeypatch, path) -> None:
    """Whichever way its requests take: rewards do not go through the short cut."""
    monkeypatch.setattr(fast_lane, "_LOOK_S", 0.05)
    server.keep_alive(0.6)
    asked = request() if path == "/v1/decisions" else b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.talk() as connection:
        for _ in range(6):
            connection.sendall(asked)
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
            time.sleep(0.25)
        assert connection.recv(1000) == b""


def test_a_caller_that_is_gone_harms_nobody(server) -> None:
    for _ in range(20):
        server.talk(request() * 5).close()
    with server.talk(request()) as connection:
        assert answers(connection, 1)[0][0] == 200


def test_many_callers_at_once_get_their_own_answers(server) -> None:
    points = [f"none-{number}" for number in range(40)]

    async def call() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            return await asyncio.gather(
                *(
                    client.post("/v1/decisions", json={"decision_point": name, "context": {}})
                    for name in points
                )
            )

    assert [one.json()["value"] for one in asyncio.run(call())] == points
