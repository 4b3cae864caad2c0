"""`llmopt demo` against a small real server that keeps the HTTP contract."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from infra.cli import main
from infra.recordings import load_recording

MODELS = [
    "meta-llama/llama-3.1-8b-instruct",
    "mistralai/mistral-large-2512",
    "google/gemini-2.5-pro",
]


class Platform:
    """Takes the models in turn; every tenth reward finds the ledger away at first."""

    def __init__(self) -> None:
        self.models = MODELS
        self.decided: dict[str, dict[str, Any]] = {}
        self.rewards: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self._turn = itertools.count()
        self.app = Starlette(
            routes=[
                Route("/v1/decisions", self.decide, methods=["POST"]),
                Route("/v1/rewards", self.reward, methods=["POST"]),
                Route("/v1/decision-points", self.points),
                Route("/v1/decision-points/chat", self.point),
            ]
        )

    async def decide(self, request: Request) -> Response:
        turn = next(self._turn)
        decision = {
            "decision_id": f"d{turn}",
            "decision_point": "chat",
            "model": self.models[turn % len(self.models)],
            "parameters": {},
            "prompt_variant": "default",
            "propensity": 1.0,
            "policy_version": turn,
            "fallback": turn == 0,
        }
        self.decided[f"d{turn}"] = {**decision, "asked": await request.json()}
        return JSONResponse(decision)

    async def reward(self, request: Request) -> Response:
        body = await request.json()
        name = body["decision_id"]
        if int(name[1:]) % 10 == 0 and name not in self.refused:
            self.refused.add(name)
            return JSONResponse({"detail": "PostgreSQL is away"}, 503, {"Retry-After": "1"})
        duplicate = name in self.rewards
        self.rewards[name] = body
        return JSONResponse({"accepted": True, "duplicate": duplicate}, 202)

    async def points(self, request: Request) -> Response:
        summary = {"name": "chat", "models": self.models, "policy_version": len(self.rewards)}
        return JSONResponse({"decision_points": [summary]})

    async def point(self, request: Request) -> Response:
        stored = len(self.rewards)
        return JSONResponse({"policy_version": stored, "learned": stored, "rewards": stored})


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    platform = Platform()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMOPT_SETTINGS", raising=False)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLMOPT_PORTS__FAST_LANE", str(listener.getsockname()[1]))
    config = uvicorn.Config(platform.app, lifespan="off", ws="none", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield platform
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()


def demo(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(main, ["demo", "--rate", "1000", "--json", *arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_every_reward_arrives_once_and_is_the_recorded_outcome(platform: Platform) -> None:
    result, _ = demo("--requests", "90")

    assert len(platform.decided) == len(platform.rewards) == 90
    assert platform.refused == {f"d{turn}" for turn in range(0, 90, 10)}
    assert result["retried"] == 9
    recorded = load_recording("paretobandit")
    rows = {name: row for row, name in enumerate(recorded.request_ids)}
    for name, decision in platform.decided.items():
        asked = decision["asked"]
        row = rows[asked["unit_id"]]
        assert asked["context"] == {
            "prompt": recorded.prompts[row],
            "task": recorded.tasks[row],
        }
        model = recorded.models.index(decision["model"])
        assert platform.rewards[name] == {
            "decision_id": name,
            "quality": recorded.quality[row, model],
            "cost_usd": recorded.cost_usd[row, model],
        }


def test_figures_are_means_over_what_was_sent(platform: Platform) -> None:
    result, _ = demo("--requests", "90")

    rewards = platform.rewards.values()
    assert result["requests"] == 90
    assert result["quality"] == pytest.approx(sum(body["quality"] for body in rewards) / 90)
    assert result["cost_usd"] == pytest.approx(sum(body["cost_usd"] for body in rewards) / 90)
    assert result["models"] == pytest.approx(dict.fromkeys(MODELS, 1 / 3))
    assert result["fallbacks"] == 1
    assert result["policy_version"] == {"before": 0, "after": 90}
    first = load_recording("paretobandit").quality[:90]
    assert result["baselines"]["random"]["quality"] == pytest.approx(first.mean())
    assert 0 < result["decision_ms"]["p50"] <= result["decision_ms"]["p99"]
    oracle = result["baselines"]["oracle"]["reward"]
    assert result["reward"] < oracle


def test_picture_and_table(platform: Platform, tmp_path: Path) -> None:
    result, said = demo("--requests", "30")

    picture = tmp_path / "home" / "demo.png"
    assert result["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert said.count("oracle") == 1
    assert "no LLM was called" in said.replace("\n", " ")
    assert "is most of the saving" in said.replace("\n", " ")


def test_one_request_is_enough(platform: Platform) -> None:
    result, _ = demo("--requests", "1")

    assert result["requests"] == 1
    assert result["last_third"]["quality"] == result["quality"]


def test_decision_point_with_other_models(platform: Platform) -> None:
    platform.models = ["mine"]
    result = CliRunner().invoke(main, ["demo"])

    assert result.exit_code == 1
    assert "the demo needs one with models of" in result.stderr


def test_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMOPT_SETTINGS", raising=False)
    monkeypatch.setenv("LLMOPT_PORTS__FAST_LANE", str(number))
    result = CliRunner().invoke(main, ["demo", "--json"])

    assert result.exit_code == 1
    assert "llmopt up" in json.loads(result.stdout)["error"]["message"]
