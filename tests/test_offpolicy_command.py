"""`llmopt evaluate` on files: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from infra.cli import main
from optimizer.offpolicy import ESTIMATORS

SETTINGS = """
decision_points:
  - name: chat
    arms: [{model: small}, {model: large}, {model: never drawn}]
    cost_cap_usd: 0.02
    weights: {quality: 1, cost: 1, latency: 0}
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMOPT_SETTINGS", raising=False)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    Path("llmopt.yaml").write_text(SETTINGS)


def logged(rows: int = 900, share: float = 0.5) -> pd.DataFrame:
    """Large is right in 90 %, small in 60 % and ten times as cheap; every ninth is not judged."""
    random = np.random.default_rng(3)
    large = random.random(rows) < share
    quality = (random.random(rows) < np.where(large, 0.9, 0.6)) * 1.0
    return pd.DataFrame(
        {
            "decided_at": pd.date_range("2026-01-01", periods=rows, freq="min", tz="UTC"),
            "model": np.where(large, "large", "small"),
            "propensity": np.where(large, share, 1 - share),
            "quality": np.where(np.arange(rows) % 9 == 8, np.nan, quality),
            "cost_usd": np.where(large, 0.01, 0.001),
            "feature_length": random.normal(size=rows),
        }
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "log.parquet"
    logged().to_parquet(path, index=False)
    return str(path)


def ask(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(main, ["evaluate", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr or result.stdout
    return json.loads(result.stdout), result.stderr


def test_json_says_what_the_policy_would_have_got(file: str) -> None:
    result, shown = ask(
        "--policy", "static:large", "--log", file, "--weights", "quality=1,cost=0,latency=0"
    )

    assert (result["policy"], result["source"], result["decisions"]) == ("static:large", file, 900)
    assert result["evaluated"] == 800
    assert any("100 of 900 decisions lack" in note for note in result["notes"])
    assert (result["from"], result["to"]) == (
        "2026-01-01T00:00:00+00:00",
        "2026-01-01T14:59:00+00:00",
    )
    assert set(result["estimators"]) == set(ESTIMATORS)
    for found in result["estimators"].values():
        assert {"reward", "quality", "cost_usd", "difference"} < set(found)
        assert found["clipped_share"] in (0.0, 1.0)
        assert found["effective_sample_size"] == result["support"]["effective_sample_size"]
        for measure in ("reward", "quality", "cost_usd"):
            assert found[measure]["low"] <= found[measure]["high"]
            assert found[measure]["count"] == 800
    best = result["estimators"]["dr"]
    assert best["quality"]["low"] < 0.9 < best["quality"]["high"]
    assert best["cost_usd"]["value"] == pytest.approx(0.01, rel=0.05)
    assert result["logged"]["quality"]["value"] == pytest.approx(0.75, abs=0.05)
    assert result["support"]["needed"] == 100
    assert result["verdict"]["answer"] == best["verdict"]["answer"] == "better"
    assert result["verdict"]["estimator"] == "dr"
    assert "doubly robust" in shown and "static:large would have scored better" in shown


@pytest.mark.parametrize("policy", ["linucb", "thompson", "random", "static:small"])
def test_every_kind_of_policy_is_evaluated(file: str, policy: str) -> None:
    result, _ = ask("--policy", policy, "--log", file)
    assert result["verdict"]["answer"] in ("better", "worse", "undecided")
    learns = any("learns from earlier rows" in note for note in result["notes"])
    assert learns == (policy in ("linucb", "thompson"))


def test_csv_and_jsonl_say_the_same_as_parquet(file: str, tmp_path: Path) -> None:
    expected, _ = ask("--policy", "static:small", "--log", file)
    for ending in ("csv", "jsonl"):
        path = str(tmp_path / f"log.{ending}")
        written, _ = ask("--policy", "random", "--log", file, "--export", path)
        assert written["decisions"] == 900
        found, _ = ask("--policy", "static:small", "--log", path)
        assert found["estimators"]["dr"]["reward"] == pytest.approx(
            expected["estimators"]["dr"]["reward"]
        )


def test_a_decision_point_gives_arms_and_reward(file: str) -> None:
    result, _ = ask("--policy", "static:small", "--log", file, "--decision-point", "chat")
    assert result["decision_point"] == "chat"
    reward = 0.5 * 0.6 + 0.5 * (1 - 0.001 / 0.02)
    assert result["estimators"]["dr"]["reward"]["value"] == pytest.approx(reward, abs=0.03)
    never, _ = ask("--policy", "static:never drawn", "--log", file, "--decision-point", "chat")
    assert never["verdict"]["answer"] == "unsupported"
    assert never["support"]["effective_sample_size"] == 0
    assert "never drawn" in never["verdict"]["sentence"]
    assert never["estimators"]["dr"]["reward"]["low"] is None
    exact = never["estimators"]["ips"]["reward"]
    assert (exact["low"], exact["high"]) == (0.0, 1.0)


def test_a_small_log_refuses_a_verdict(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    logged(150).to_csv(path, index=False)
    result, shown = ask("--policy", "static:large", "--log", str(path))
    assert result["support"]["effective_sample_size"] < 100
    assert {found["verdict"]["answer"] for found in result["estimators"].values()} == {
        "unsupported"
    }
    assert "No verdict on static:large: the effective sample size is" in shown


def test_a_tiny_log_has_estimates_and_no_intervals(tmp_path: Path) -> None:
    path = tmp_path / "tiny.csv"
    logged(6).to_csv(path, index=False)
    result, _ = ask("--policy", "random", "--log", str(path))
    assert result["estimators"]["ips"]["reward"]["value"] is not None
    assert result["estimators"]["ips"]["reward"]["low"] is None
    assert result["verdict"]["answer"] == "unsupported"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--policy", "luck"], "luck"),
        (["--policy", "static"], "static:MODEL"),
        (["--policy", "static:tiny"], "one of large, small"),
        (["--policy", "champion"], "live ledger"),
        (["--policy", "random", "--since", "7d"], "since='7d'"),
        (["--policy", "random", "--weights", "beauty=1"], "beauty=1"),
        (["--policy", "random", "--clip", "0"], "clip=0"),
        (["--policy", "random", "--decision-point", "mail"], "mail"),
        (["--policy", "random", "--export", "out.txt"], "out.txt"),
    ],
)
def test_what_is_refused_is_named(file: str, arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--log", file, *arguments, "--json"])
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert named in error["message"]
    assert error["remedy"]


def test_a_wrong_file_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    frame = logged(20)
    frame.loc[4, "propensity"] = 0.0
    frame.to_csv(path, index=False)
    result = CliRunner().invoke(main, ["evaluate", "--policy", "random", "--log", str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "wrong.csv: propensity, row 5=0.0" in result.stderr


@pytest.mark.parametrize("since", ["soon", "7 days", "2999-01-01", "9999999d"])
def test_a_wrong_time_is_refused(since: str) -> None:
    result = CliRunner().invoke(main, ["evaluate", "--policy", "random", "--since", since])
    assert result.exit_code == 1
    assert f"since={since!r}" in result.stderr
