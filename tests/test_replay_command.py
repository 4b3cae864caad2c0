"""`llmopt replay`: what it prints, and truths worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from infra.cli import main
from infra.replays import run_replay

KEYS = {
    "data",
    "requests",
    "policy",
    "seed",
    "quality",
    "cost_usd",
    "latency_s",
    "reward",
    "regret",
    "regret_share",
    "last_third",
    "decision_us",
    "baselines",
}


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """Three requests, two models; small is a tenth of the cost, and as good on the first."""
    rows = [
        ("r1", "one", "chat", "big", 1.0, 0.010),
        ("r1", "one", "chat", "small", 1.0, 0.001),
        ("r2", "two", "chat", "big", 1.0, 0.010),
        ("r2", "two", "chat", "small", 0.0, 0.001),
        ("r3", "three", "code", "big", 0.0, 0.010),
        ("r3", "three", "code", "small", 0.5, 0.001),
    ]
    columns = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]
    path = tmp_path / "three.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return str(path)


def ask(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(main, ["replay", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_json_has_exactly_the_promised_keys(recording: str) -> None:
    result, _ = ask(recording)

    assert set(result) == KEYS
    assert set(result["last_third"]) == {"quality", "cost_usd", "reward"}
    assert set(result["decision_us"]) == {"p50", "p99"}
    rules = result["baselines"]
    assert set(rules) == {"best_single", "cheapest", "random", "oracle", "equal_cost_mix"}
    assert set(rules["best_single"]) == {"model", "quality", "cost_usd", "reward"}
    assert set(rules["oracle"]) == {"quality", "cost_usd", "reward"}
    assert set(rules["equal_cost_mix"]) == {"quality"}
    assert (result["data"], result["requests"], result["policy"]) == (recording, 3, "linucb")
    assert result["latency_s"] is None


def test_fixed_rules_are_what_one_finds_by_hand(recording: str) -> None:
    result, _ = ask(recording, "--weights", "quality=1,cost=0,latency=0")

    rules = result["baselines"]
    # The oracle: r1 at the cheaper of two equals, r2 from big, r3 from small.
    assert rules["oracle"]["quality"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert rules["oracle"]["cost_usd"] == pytest.approx((0.001 + 0.010 + 0.001) / 3)
    assert rules["best_single"] == pytest.approx(
        {"model": "big", "quality": 2 / 3, "cost_usd": 0.010, "reward": 2 / 3}
    )
    assert rules["cheapest"] == pytest.approx(
        {"model": "small", "quality": 0.5, "cost_usd": 0.001, "reward": 0.5}
    )
    assert rules["random"]["quality"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert rules["random"]["cost_usd"] == pytest.approx(0.0055)


def test_static_takes_the_dearest_model_and_says_so(recording: str) -> None:
    result, said = ask(recording, "--policy", "static")

    assert result["cost_usd"] == pytest.approx(0.010)
    assert result["baselines"]["equal_cost_mix"]["quality"] == pytest.approx(2 / 3)
    assert "static always takes the dearest model, big" in said


def test_reward_is_the_weighted_sum_over_the_parts_that_are_recorded(recording: str) -> None:
    result, _ = ask(recording)

    # Half quality, three tenths cost, renormalised without latency; the cap is big's mean cost.
    assert result["baselines"]["best_single"]["model"] == "small"
    expected = (0.5 * 0.5 + 0.3 * (1 - 0.001 / 0.010)) / 0.8
    assert result["baselines"]["best_single"]["reward"] == pytest.approx(expected)


def test_same_seed_gives_the_same_result(recording: str) -> None:
    def replayed(seed: int) -> dict[str, Any]:
        result, _ = run_replay(recording, "random", seed)
        return {key: value for key, value in result.items() if key != "decision_us"}

    assert replayed(1) == replayed(1)
    outcomes = {replayed(seed)["cost_usd"] for seed in range(8)}
    assert len(outcomes) > 1


def test_progress_is_told_once_a_request(recording: str) -> None:
    told = []
    run_replay(recording, on_step=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_without_json_standard_output_is_empty(recording: str) -> None:
    result = CliRunner().invoke(main, ["replay", recording])

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "best single model" in result.stderr
    assert "oracle" in result.stderr


def test_linucb_learns_on_the_set_in_the_wheel() -> None:
    result, _ = run_replay("paretobandit")

    assert result["requests"] == 3609
    assert result["reward"] > 0.92
    assert result["reward"] > result["baselines"]["random"]["reward"] + 0.08
    assert result["last_third"]["reward"] > result["baselines"]["best_single"]["reward"] - 0.02
