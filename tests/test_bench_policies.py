"""`make bench-policies`: every policy sees the same world, and the report says what was run.

`benchmarks/` is no installed package, so it is imported where a test needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from infra.recordings import load_recording
from infra.replays import encode
from optimizer.policies import POLICY_NAMES
from optimizer.replay import replay
from optimizer.reward import Weights

REQUESTS = 30


@pytest.fixture(autouse=True)
def _repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """Two models; the big one is right on code, the small one on chat."""
    rows = [
        (f"r{i}", f"prompt {i}", task, model, float((model == "big") == (task == "code")), cost)
        for i in range(REQUESTS)
        for task in (("chat", "code")[i % 2],)
        for model, cost in (("big", 0.01), ("small", 0.001))
    ]
    columns = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]
    path = tmp_path / "tiny.csv"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return str(path)


def report(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    from benchmarks.policies.__main__ import main

    main([*arguments, "--out", str(out)])
    return json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()


@pytest.mark.parametrize("index", range(len(POLICY_NAMES)), ids=POLICY_NAMES)
def test_a_lap_of_ours_is_what_replay_gives(recording: str, index: int) -> None:
    from benchmarks.policies.ours import our_entries
    from benchmarks.policies.race import Problem, course, run

    recorded = load_recording(recording)
    encoder, features = encode(recorded)
    problem = Problem.of("tiny", recorded, recorded.objective(Weights()), features)
    entry = our_entries(encoder)[index]
    lap = run(entry.start(problem, 3), problem, course(REQUESTS, 3))

    policy = entry.start(problem, 3)._policy  # type: ignore[attr-defined]
    assert lap.rewards.tolist() == replay(recorded, features, policy, 3).rewards.tolist()
    assert len(lap.decide_us) == len(lap.learn_us) == REQUESTS


class Witness:
    """Takes the first arm and notes what it is told, and after how many decisions."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[tuple[int, int]] = []

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        self.asked.append(request)
        return 0, 0.5

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        assert (arm, propensity) == (0, 0.5)
        self.told.append((len(self.asked), request))


@pytest.mark.parametrize(("delay", "missing"), [(0, 0.0), (3, 0.4), (2 * REQUESTS, 0.0)])
def test_rewards_come_late_in_order_or_never(recording: str, delay: int, missing: float) -> None:
    from benchmarks.policies.race import Problem, course, run

    recorded = load_recording(recording)
    nothing = np.zeros((REQUESTS, 1))
    problem = Problem.of("tiny", recorded, recorded.objective(Weights()), nothing)
    over = course(REQUESTS, 7, delay, missing)
    witness = Witness()
    run(witness, problem, over)

    assert witness.asked == over.order.tolist()
    assert witness.told == [
        (step + delay + 1, request)
        for step, request in enumerate(over.order.tolist())
        if step + delay < REQUESTS and not over.lost[step]
    ]


def test_order_and_draws_depend_on_the_seed_alone() -> None:
    from benchmarks.policies.race import course

    prompt, late = course(50, 1), course(50, 1, delay=9, missing=0.5)
    assert prompt.order.tolist() == late.order.tolist() != course(50, 2).order.tolist()
    assert prompt.uniform.tolist() == late.uniform.tolist()
    assert not prompt.lost.any() and 10 < late.lost.sum() < 40


def test_standings_compare_on_the_same_seeds() -> None:
    from benchmarks.policies.race import Lap
    from benchmarks.policies.standings import order_agreement, standings

    def laps(shift: float, slower: float) -> list[Lap]:
        spent = np.full(3, slower)
        return [Lap(np.full(3, level + shift), spent, spent) for level in (0.1, 0.5, 0.6)]

    all_laps = {"ours": laps(0.1, 2.0), "good": laps(0.0, 4.0), "bad": laps(-0.1, 1.0)}
    table = standings(all_laps, oracle=1.0, peers=["bad", "good"], ours="ours")

    assert [each.name for each in table] == ["ours", "good", "bad"]
    assert table[0].reward.mean == pytest.approx(0.5)
    assert table[0].regret.mean == pytest.approx(0.5)
    assert table[0].ahead is not None
    assert (table[0].ahead.low, table[0].ahead.high) == pytest.approx((0.1, 0.1))
    assert table[1].decide_ratio is not None and table[1].decide_ratio.mean == 2.0
    assert order_agreement(table, table[::-1]) == pytest.approx(1.0)


def test_report_names_what_ran_and_no_folder(recording: str, tmp_path: Path) -> None:
    asked = f"{recording}@quality=1,cost=0"
    content, text = report(
        tmp_path / "results" / "policies",
        *(asked, "--seeds", "2", "--delay", "5", "--missing", "0.3", "--only", "ours"),
    )

    assert content["command"] == (
        'make bench-policies DATA="tiny.csv@quality=1,cost=0" SEEDS=2 DELAY=5 MISSING=0.3'
        ' ONLY="ours"'
    )
    assert str(tmp_path) not in text + json.dumps(content)
    assert [(heat["delay"], heat["missing"]) for heat in content["heats"]] == [(0, 0.0), (5, 0.3)]
    for heat in content["heats"]:
        assert {each["name"] for each in heat["standings"]} == {f"ours: {n}" for n in POLICY_NAMES}
        assert heat["oracle"] == 1.0
    assert "rewards 5 decisions late, 30 % never come" in text


def test_a_peer_that_cannot_run_is_named_and_stops_no_other(
    recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.policies import __main__ as command
    from benchmarks.policies.race import Entry

    def failing(error: Exception) -> Callable[..., Any]:
        def start(problem: object, seed: int) -> Any:
            raise error

        return start

    peers = (
        Entry("absent peer", "no-such-package", "", failing(ImportError("no module"))),
        Entry("broken peer", "numpy", "", failing(ValueError("singular"))),
    )
    monkeypatch.setattr(command, "PEERS", peers)
    content, text = report(tmp_path / "policies", recording, "--seeds", "1", "--only", "peer", "l")

    assert content["heats"][0]["not_run"] == {
        "absent peer": "no-such-package is not installed",
        "broken peer": "ValueError('singular')",
    }
    assert "Not run: broken peer" in text
    assert "ours: linucb" in text
