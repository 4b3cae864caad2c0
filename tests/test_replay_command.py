"""`llmopt replay`: what it prints and writes, and truths worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from infra.cli import main
from infra.replays import ReplayRequest, run_replay

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
    assert (result["data"], result["requests"], result["policy"]) == (recording, 3, "randucb")
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
        result = run_replay(ReplayRequest(recording, ("random",), seed)).result
        return {key: value for key, value in result.items() if key != "decision_us"}

    assert replayed(1) == replayed(1)
    outcomes = {replayed(seed)["cost_usd"] for seed in range(8)}
    assert len(outcomes) > 1


def test_progress_is_told_once_a_request(recording: str) -> None:
    told = []
    request = ReplayRequest(recording, ("linucb", "random"), seed=4, seeds=2)
    run_replay(request, lambda done, total, label: told.append((done, total, label)))

    assert [(done, total) for done, total, _ in told] == [(done, 12) for done in range(1, 13)]
    assert [label for _, _, label in told[::3]] == [
        "replay linucb, seed 4",
        "replay random, seed 4",
        "replay linucb, seed 5",
        "replay random, seed 5",
    ]


def test_without_json_standard_output_is_empty(recording: str) -> None:
    result = CliRunner().invoke(main, ["replay", recording])

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "best single model" in result.stderr
    assert "oracle" in result.stderr


def test_linucb_learns_on_the_set_in_the_wheel() -> None:
    result = run_replay(ReplayRequest("paretobandit")).result

    assert result["requests"] == 3609
    assert result["reward"] > 0.92
    assert result["reward"] > result["baselines"]["random"]["reward"] + 0.08
    assert result["last_third"]["reward"] > result["baselines"]["best_single"]["reward"] - 0.02


def test_several_seeds_give_means_and_t_intervals(recording: str) -> None:
    passes = [ask(recording, "--policy", "random", "--seed", str(seed))[0] for seed in (3, 4)]
    joined, said = ask(recording, "--policy", "random", "--seed", "3", "--seeds", "2")

    assert set(joined) == KEYS | {"seeds", "policies"}
    assert (joined["seed"], joined["requests"]) == (3, 3)
    assert joined["baselines"]["best_single"]["model"] == "small"
    assert (joined["seeds"]["first"], joined["seeds"]["count"]) == (3, 2)
    costs = [one["cost_usd"] for one in passes]
    mean = sum(costs) / 2
    half = 12.7062 * abs(costs[0] - costs[1]) / 2  # t of one degree of freedom; sd / sqrt(2)
    assert joined["cost_usd"] == pytest.approx(mean)
    assert joined["seeds"]["cost_usd"] == pytest.approx(
        {"mean": mean, "low": mean - half, "high": mean + half}, rel=1e-4
    )
    assert set(joined["seeds"]["last_third"]) == {"quality", "cost_usd", "reward"}
    assert "means over seeds 3 to 4" in said


def test_several_policies_stand_side_by_side(recording: str) -> None:
    names = ["static", "random", "gaussian+gap"]
    options = [word for name in names for word in ("--policy", name)]
    joined, said = ask(recording, *options)

    assert [one["policy"] for one in joined["policies"]] == names
    first, second, _ = joined["policies"]
    assert {key: joined[key] for key in KEYS} == {key: first[key] for key in KEYS}
    assert second["reward_minus_first"] == {
        "mean": pytest.approx(second["reward"] - first["reward"]),
        "low": None,
        "high": None,
    }
    assert "reward_minus_first" not in first
    assert first["seeds"]["reward"] == {"mean": first["reward"], "low": None, "high": None}
    alone, _ = ask(recording, "--policy", "random")
    assert second["reward"] == alone["reward"]
    assert all(f"{name}: regret" in said for name in names)
    assert "random: reward minus that of static" in said


def test_report_is_a_picture_and_a_page_that_needs_nothing_else(
    recording: str, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "report"
    arguments = ["--policy", "linucb", "--policy", "random", "--seeds", "2"]
    result, said = ask(recording, *arguments, "--report", str(folder))

    assert {path.name for path in folder.iterdir()} == {"replay.png", "replay.html"}
    assert result["report"] == {
        "png": str(folder / "replay.png"),
        "html": str(folder / "replay.html"),
    }
    assert str(folder / "replay.html") in said
    assert (folder / "replay.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "replay.html").read_text(encoding="utf-8")
    assert "http" not in page and "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(word in page for word in ("<th>linucb</th>", "<th>random</th>", "oracle", "±"))


def test_without_a_report_nothing_is_written(
    recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    result, _ = ask(recording, "--seeds", "2")

    assert "report" not in result
    assert set(tmp_path.rglob("*")) == before


def test_names_of_models_and_files_are_escaped(tmp_path: Path) -> None:
    rows = [("r1", "p", "t", model, 1.0, 0.1) for model in ("<b>[red]", "b")]
    columns = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]
    path = tmp_path / "<i>[bold].csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    _, said = ask(str(path), "--report", str(tmp_path))

    assert "[red]" in said and "[bold]" in said
    page = (tmp_path / "replay.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;[red]" in page
