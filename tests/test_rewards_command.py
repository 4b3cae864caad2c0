"""`llmopt rewards`, on the real application without Ray."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from infra.cli import main
from optimizer.settings import Settings
from serving.api import Api
from serving.dead_letters import find_letters, make_letter, store_letters
from serving.replica_state import ReplicaState
from serving.reward_writer import connect
from serving.tokens import Decision, TokenSigner

OLD_KEY, NEW_KEY = "11" * 16, "00" * 16
POINTS = [{"name": name, "arms": [{"model": "a"}, {"model": "b"}]} for name in ("chat", "search")]


@pytest.fixture
def made(
    settings: Callable[..., Settings],
    find_free_port: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Settings]:
    """Settings that the command finds, too."""
    port = find_free_port()

    def make(keys: list[str], points: list[dict[str, Any]]) -> Settings:
        platform = settings(token_keys=keys, decision_points=points, ports={"fast_lane": port})
        file = tmp_path / "llmopt.yaml"
        content = platform.model_dump(mode="json") | {"token_keys": keys}
        file.write_text(yaml.safe_dump(content))
        monkeypatch.setenv("LLMOPT_SETTINGS", str(file))
        return platform

    return make


@contextmanager
def running(platform: Settings) -> Iterator[httpx.Client]:
    state = ReplicaState(platform)
    port = platform.ports.fast_lane
    server = uvicorn.Server(
        uvicorn.Config(Api(state), port=port, log_config=None, lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        state.close()


def run(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["rewards", *arguments, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def token(number: int, point: str = "chat", key: str = NEW_KEY) -> str:
    decision = Decision(0, number.to_bytes(16, "big"), time.time(), bytes(8), 0.5, 0, 0, point, b"")
    return TokenSigner([key]).sign(decision)[1]


def test_events_that_were_refused_are_sent_again_when_that_is_put_right(made) -> None:
    search = token(1, "search")
    with running(made([NEW_KEY], POINTS[:1])) as client:
        assert run("dead-letters") == {"dead_letters": []}
        by_old_key = {"decision_id": token(2, key=OLD_KEY), "quality": 0.25}
        wrong = {"decision_id": token(3), "quality": 5}
        for body in ({"decision_id": search, "quality": 0.75}, by_old_key, wrong):
            assert client.post("/v1/rewards", json=body).is_client_error
    found = run("dead-letters")["dead_letters"]
    assert [letter["reason"] for letter in found] == [
        "invalid_value",
        "invalid_token",
        "unknown_name",
    ]
    assert found[0]["field"] == "quality" and "<= 1" in found[0]["remedy"]
    (only,) = run("dead-letters", "--reason", "invalid_token")["dead_letters"]
    assert json.loads(only["body"]) == by_old_key
    refused = run("dead-letters", "--reason", "typo", status=1)["error"]
    assert refused["field"] == "reason" and "unknown_name" in refused["remedy"]
    assert "llmopt up" in run("dead-letters", "--replay", status=1)["error"]["message"]

    with running(made([NEW_KEY, OLD_KEY], POINTS)):
        one = run("dead-letters", str(found[2]["id"]), "--replay")["replayed"]
        assert one == [{"id": found[2]["id"], "outcome": "accepted"}]
        rest = run("dead-letters", "--replay")["replayed"]
        assert [sent["outcome"].partition(":")[0] for sent in rest] == ["accepted", "refused"]
        again = run("dead-letters", "--replay")["replayed"]
        assert [sent["id"] for sent in again] == [found[0]["id"]]
        shown = run("show", search)
        assert shown["known"]["quality"] == 0.75
    after = {letter["id"]: letter for letter in run("dead-letters")["dead_letters"]}
    assert len(after) == 3  # what was refused again is no new letter
    assert after[found[0]["id"]]["times"] == 3
    missing = run("dead-letters", "999", status=1)["error"]
    assert (missing["field"], missing["value"]) == ("id", "999")


def test_a_replay_that_was_cut_off_is_repeated_without_harm(made) -> None:
    platform = made([NEW_KEY], POINTS)
    body = json.dumps({"decision_id": token(1), "quality": 0.5}).encode()
    from optimizer.errors import InvalidInput

    error = InvalidInput("body", None, "for the test")
    with connect(platform.postgres_dsn()) as connection, running(platform):
        long = make_letter(error, body + b" " * 9000, "/v1/rewards")
        store_letters(connection, [make_letter(error, body, "/v1/rewards"), long])
        sent = run("dead-letters", "--replay")["replayed"]
        assert sent[0]["outcome"] == "accepted" and sent[1]["outcome"].startswith("not sent")
        connection.execute("UPDATE dead_letters SET outcome = NULL")  # as if killed before it
        sent = run("dead-letters", "--replay")["replayed"]
        assert sent[0]["outcome"] == "duplicate"
        assert find_letters(connection, limit=9, open_only=True)[0].body_bytes == len(body) + 9000


def test_what_is_known_of_a_decision_is_shown(made) -> None:
    platform = made([NEW_KEY], POINTS)
    with running(platform) as client:
        asked = {"decision_point": "chat", "context": {"prompt": "What is 2+2?"}}
        decided = client.post("/v1/decisions", json=asked).json()
        decision_id = decided["decision_id"]
        for event_id, quality in (("judge", 0.5), ("user", 1.0)):
            body = {"decision_id": decision_id, "event_id": event_id, "quality": quality}
            client.post("/v1/rewards", json=body)
        client.post("/v1/rewards", json={"decision_id": decision_id, "cost_usd": 0.25})
        client.post("/v1/quality", json={"decision_id": decision_id, "response": "It is"})
    shown = run("show", decision_id)
    assert shown["response"]["cut_off"] == 1.0 and "ratio_log" not in shown["response"]
    assert [event["event_id"] for event in shown["events"]] == ["judge", "user", ""]
    assert shown["known"] == {
        "quality": 0.75,
        "cost_usd": 0.25,
        "latency_s": None,
        "feedback": None,
    }
    assert shown["decision"]["model"] == decided["model"]
    assert run("show", shown["decision_id"]) == shown
    result = CliRunner().invoke(main, ["rewards", "show", decision_id])
    assert "judge" in result.stderr and "cut_off" in result.stderr and result.stdout == ""
    assert run("show", decision_id[:50], status=1)["error"]["field"] == "decision_id"
    unknown = "00000000-0000-0000-0000-000000000009"
    assert run("show", unknown, status=1)["error"]["type"] == "UnknownName"


def test_rewards_are_exported(made, tmp_path) -> None:
    with running(made([NEW_KEY], POINTS)) as client:
        for number in range(5):
            body = {"decision_id": token(number), "quality": number / 4}
            assert client.post("/v1/rewards", json=body).status_code == 202
    file = tmp_path / "rewards.parquet"
    told = run("export", "--since", "1h", "--out", str(file))
    assert told["rewards"] == 5
    frame = pd.read_parquet(file)
    assert frame["quality"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert frame["position"].tolist() == [1, 2, 3, 4, 5]
    assert run("export", "--since", "2d", "--until", "1d", "--out", str(file))["rewards"] == 0
    for given, field in (
        (("--out", "rewards.csv"), "out"),
        (("--out", str(tmp_path / "none" / "x.parquet")), "out"),
        (("--since", "yesterday", "--out", str(file)), "since"),
        (("--since", "1h", "--until", "2h", "--out", str(file)), "until"),
    ):
        assert run("export", *given, status=1)["error"]["field"] == field
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet", ".yaml"]


def test_without_postgresql_it_says_what_to_do(made, find_free_port, monkeypatch) -> None:
    made([NEW_KEY], POINTS)
    url = f"postgresql://postgres@127.0.0.1:{find_free_port()}/llmopt"
    monkeypatch.setenv("LLMOPT_POSTGRES_URL", url)
    assert "llmopt up" in run("dead-letters", status=1)["error"]["message"]
