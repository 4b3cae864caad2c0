"""Refused reward events, on the real application with a real PostgreSQL, without Ray."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.errors import InvalidInput, InvalidToken, TooLarge, UnknownName
from optimizer.settings import Settings
from serving.api import Api
from serving.dead_letter_box import DeadLetterBox
from serving.dead_letters import (
    BODY_BYTES,
    REASONS,
    StoredLetter,
    drop_letters,
    find_letters,
    make_letter,
    mark_letter,
    store_letters,
)
from serving.replica_state import ReplicaState
from serving.reward_writer import connect
from serving.tokens import Decision, TokenSigner

KEY = "00" * 16
WRONG = InvalidInput("quality", 7, "at most 1")


@pytest.fixture
def platform(settings: Callable[..., Settings]) -> Settings:
    return settings(token_keys=[KEY])


@pytest.fixture
def connection(platform: Settings) -> Iterator[psycopg.Connection[Any]]:
    with connect(platform.postgres_dsn()) as made:
        yield made


def token(point: str = "chat", key: str = KEY, at: float | None = None) -> str:
    made_at = time.time() if at is None else at
    decision = Decision(0, bytes(16), made_at, bytes(8), 0.5, 0, 0, point, b"")
    return TokenSigner([key]).sign(decision)[1]


def letters(connection: psycopg.Connection[Any], **given: Any) -> list[StoredLetter]:
    return find_letters(connection, **({"limit": 1000} | given))


def post(app: Api, path: str, bodies: list[bytes]) -> list[httpx.Response]:
    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(path, content=body) for body in bodies]

    return asyncio.run(call())


def test_every_kind_of_refusal_is_kept_with_its_reason(platform, connection) -> None:
    def body(decision_id: str, **given: Any) -> bytes:
        return json.dumps({"decision_id": decision_id} | given).encode()

    bodies = {
        b"{": "malformed",
        b'"' + b"x" * (1 << 20) + b'"': "too_large",
        body(token(key="11" * 16), quality=1): "invalid_token",
        body(token(point="gone"), quality=1): "unknown_name",
        body(token(at=time.time() - 91 * 86400), quality=1): "too_late",
        body(token(), quality=7): "invalid_value",
        body(token()): "invalid_value",
    }
    state = ReplicaState(platform)
    try:
        app = Api(state)
        answers = post(app, "/v1/rewards", list(bodies))
        statuses = [answer.status_code for answer in answers]
        assert statuses == [400, 413, 400, 404, 422, 422, 422]
        # A batch's good items are taken, and the others are letters of one event each.
        items = b'{"items": [%s, %s]}' % (body(token(), quality=1), body(token(), cost_usd=-1))
        assert post(app, "/v1/rewards/batch", [items])[0].status_code == 202
        assert post(app, "/v1/rewards/batch", [b"[]"])[0].status_code == 400
        text = state.metrics.render().decode()
    finally:
        state.close()
    found = {letter.body: letter for letter in letters(connection)}
    for one, reason in bodies.items():
        kept = b"" if reason == "too_large" else one
        assert found[kept].reason == reason
        assert found[kept].path == "/v1/rewards"
        assert found[kept].whole == (reason != "too_large")
    assert found[b"[]"].path == "/v1/rewards/batch"
    assert len(found) == len(bodies) + 2
    assert f'llmopt_dead_letters_total{{reason="invalid_value"}} {3.0}' in text


def test_the_same_body_is_one_letter_that_is_counted(connection) -> None:
    for _ in range(3):
        store_letters(connection, [make_letter(WRONG, b"same", "/v1/rewards")])
    store_letters(connection, [make_letter(WRONG, b"same", "/v1/rewards/batch")])
    assert [letter.times for letter in letters(connection)] == [1, 3]


def test_a_letter_that_was_accepted_and_comes_again_is_open_again(connection) -> None:
    letter = make_letter(WRONG, b"x", "/v1/rewards")
    store_letters(connection, [letter])
    (stored,) = letters(connection)
    mark_letter(connection, stored.id, "refused: still")
    store_letters(connection, [letter])  # the replay's own refusal: what it came to stays
    assert letters(connection)[0].outcome == "refused: still"
    mark_letter(connection, stored.id, "accepted")
    assert letters(connection, open_only=True) == []
    store_letters(connection, [letter])
    assert letters(connection, open_only=True)[0].outcome is None


def test_a_long_body_is_cut(connection) -> None:
    long, longer = (b"x" * (BODY_BYTES + number) for number in (1, 2))
    store_letters(connection, [make_letter(WRONG, body, "/v1/rewards") for body in (long, longer)])
    found = letters(connection)
    assert [len(letter.body) for letter in found] == [BODY_BYTES] * 2
    assert not any(letter.whole for letter in found)


def test_each_reason_has_room_of_its_own(connection, monkeypatch) -> None:
    monkeypatch.setattr("serving.dead_letters._PER_REASON", 5)
    store_letters(
        connection, [make_letter(UnknownName("decision_point", "b", "a"), b"real", "/v1/rewards")]
    )
    garbage = [make_letter(WRONG, b"%d" % number, "/v1/rewards") for number in range(20)]
    store_letters(connection, garbage)
    assert [letter.body for letter in letters(connection)] == [
        *(b"%d" % number for number in range(19, 14, -1)),
        b"real",
    ]


def test_old_letters_are_dropped(connection) -> None:
    bodies = (b"old", b"new")
    store_letters(connection, [make_letter(WRONG, body, "/v1/rewards") for body in bodies])
    connection.execute("UPDATE dead_letters SET last_at = now() - interval '9 d' WHERE body='old'")
    row = connection.execute("SELECT now() - interval '8 days'").fetchone()
    assert row is not None
    assert drop_letters(connection, row[0]) == 1
    assert [letter.body for letter in letters(connection)] == [b"new"]


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=50), st.text(max_size=20), st.text() | st.floats() | st.binary())
def test_whatever_is_sent_can_be_stored(connection, body, field, value) -> None:
    letter = make_letter(InvalidInput(field, value, field), body, "/v1/rewards")
    store_letters(connection, [letter])
    query = "SELECT body FROM dead_letters WHERE digest = %s"
    assert connection.execute(query, (letter.digest,)).fetchone() == (body,)


def test_a_flood_is_counted_and_not_kept(platform, connection) -> None:
    now = 0.0
    box = DeadLetterBox(platform.postgres_dsn(), per_minute=10, clock=lambda: now)
    for number in range(1000):
        box.add(WRONG, b"%d" % number)
    box.add(InvalidToken("decision_id", "x", "send it unchanged"), b"other")
    assert (box.refused["invalid_value"], box.dropped["invalid_value"]) == (1000, 990)
    now = 61.0
    box.add(WRONG, b"a minute later")
    box.close()
    assert len(letters(connection)) == 12
    families = {family.name: family for family in box.metrics()}
    assert {sample.labels["reason"] for sample in families["llmopt_dead_letters"].samples} == set(
        REASONS
    )


def test_letters_wait_for_a_postgresql_that_is_away(platform, find_free_port, monkeypatch) -> None:
    monkeypatch.setattr("serving.dead_letter_box._STORE_EVERY_S", 0.01)
    box = DeadLetterBox(f"postgresql://postgres@127.0.0.1:{find_free_port()}/llmopt")
    box.add(TooLarge("body", "9 bytes", "at most 8"), b"")
    time.sleep(0.1)
    box._dsn = platform.postgres_dsn()
    box.close()
    with connect(platform.postgres_dsn()) as connection:
        assert [letter.reason for letter in letters(connection)] == ["too_large"]
