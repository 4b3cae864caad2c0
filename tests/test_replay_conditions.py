"""What makes a replay harder: each option does what it promises, on a recording one can survey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.replays import ReplayRequest, run_replay
from optimizer.errors import InvalidInput, InvalidRecording, UnknownName
from optimizer.policies import Policy, PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Observation
from optimizer.replay import ReplayResult, replay
from optimizer.replay_conditions import NEVER, Conditions, Delay, course, parse_delay
from optimizer.reward import Objective, Weights

REQUESTS = 60
COLUMNS = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]


def frame(qualities: Sequence[float] = (0.9, 0.5, 0.7), prefix: str = "r") -> pd.DataFrame:
    """Three models of the given quality; a request costs up to twice a model's mean."""
    rows = [
        (f"{prefix}{i}", f"prompt {i}", f"task {prefix}", model, quality, cost * (i + 1) / REQUESTS)
        for i in range(REQUESTS)
        for model, quality, cost in zip("abc", qualities, (0.03, 0.001, 0.01), strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


RECORDED = RecordedOutcomes.from_frame(frame())
FEATURES = np.ones((2 * REQUESTS, 1))


def policy(name: str, models: int = 3, objective: Objective | None = None) -> Policy:
    objective = objective or RECORDED.objective(Weights())
    arms = [Arm(model) for model in "abc"[:models]]
    return make_policy(PolicySettings.model_validate({"name": name}), arms, 1, objective)


def run(
    conditions: Conditions,
    name: str = "random",
    seed: int = 0,
    recorded: RecordedOutcomes = RECORDED,
    models: int = 3,
) -> ReplayResult:
    chosen = policy(name, models)
    return replay(recorded, FEATURES, chosen, seed, conditions=conditions)


def taught(conditions: Conditions, seed: int = 0) -> list[tuple[int, Observation]]:
    """Every observation that a policy learned, and the step after whose decision it did."""
    chosen, notes = policy("random"), []
    learn, decided = chosen.learn, 0

    def noted(observations: Sequence[Observation]) -> None:
        notes.extend((decided, one) for one in observations)
        learn(observations)

    def count(step: int) -> None:
        nonlocal decided
        decided = step + 1

    chosen.learn = noted  # type: ignore[method-assign, assignment]
    replay(RECORDED, FEATURES, chosen, seed, count, conditions)
    return notes


@pytest.mark.parametrize("late", [0, 1, 7, REQUESTS - 1, REQUESTS, 1000])
def test_constant_delay_is_exact(late: int) -> None:
    conditions = Conditions(delay=Delay(late))
    notes = taught(conditions)

    assert [step for step, _ in notes] == list(range(late, REQUESTS))
    assert [one.position for _, one in notes] == list(range(1, len(notes) + 1))
    # When step s is decided, the rewards of the steps up to s - late - 1 were learned.
    assert [one.version for _, one in notes] == [max(s - late, 0) for s in range(len(notes))]
    result = run(conditions)
    assert (result.learned, result.lost) == (max(REQUESTS - late, 0), 0)


@given(
    mean=st.floats(0, 50), missing=st.floats(0, 1), seed=st.integers(0, 100), shift=st.booleans()
)
@settings(max_examples=50, deadline=None)
def test_every_reward_is_lost_or_comes_once_after_its_decision(
    mean: float, missing: float, seed: int, shift: bool
) -> None:
    conditions = Conditions(Delay(mean, "exp"), missing, REQUESTS // 2 if shift else None)
    path = course(REQUESTS, seed, conditions)
    due, lost = path.due(), path.arrival == NEVER

    assert sorted(due) == np.flatnonzero(~lost).tolist()
    assert (path.arrival[~lost] >= np.flatnonzero(~lost)).all()
    assert (np.diff(path.arrival[due]) >= 0).all()
    assert len(set(path.order.tolist())) == len(path.order)


def test_counts_of_lost_and_late_rewards_add_up() -> None:
    conditions = Conditions(Delay(9, "exp"), 0.4)
    path = course(REQUESTS, 5, conditions)
    result = run(conditions, seed=5)

    assert result.lost == (path.arrival == NEVER).sum()
    assert result.learned == ((path.arrival != NEVER) & (path.arrival < REQUESTS)).sum()
    assert 0 < result.learned < REQUESTS - result.lost
    assert len(taught(conditions, 5)) == result.learned
    assert run(Conditions(missing=1)).learned == 0


def test_exponential_delay_has_the_mean_that_was_asked() -> None:
    drawn = Delay(200, "exp").draw(100_000, np.random.default_rng(0))
    assert drawn.min() == 0
    assert drawn.mean() == pytest.approx(200, rel=0.01)
    assert drawn.std() == pytest.approx(200, rel=0.02)


def test_order_and_draws_do_not_depend_on_the_conditions() -> None:
    plain, hard = course(50, 1, Conditions()), course(50, 1, Conditions(Delay(9, "exp"), 0.5))
    assert plain.order.tolist() == hard.order.tolist() != course(50, 2, Conditions()).order.tolist()
    assert plain.uniform.tolist() == hard.uniform.tolist()


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1.5", "exp:", "exp:inf", "exp:-1", "gauss:3", ":3"]
)
def test_delay_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_delay(text)
    assert (caught.value.field, caught.value.value) == ("delay", text)


def write(table: pd.DataFrame, path: Path) -> str:
    table.to_csv(path, index=False)
    return str(path)


def test_shift_is_another_world_from_half_way_on() -> None:
    later = RecordedOutcomes.from_frame(frame((0.1, 0.2, 0.3), "s"))
    both = RECORDED.followed_by(later)
    result = run(Conditions(shift_at=REQUESTS), "static", recorded=both)

    half = REQUESTS // 2
    assert result.change == half
    assert result.quality.tolist() == [0.9] * half + [0.1] * half
    assert (result.order[:half] < REQUESTS).all() and (result.order[half:] >= REQUESTS).all()
    # The same requests in both: one stream of them, none twice.
    assert len(set((result.order % REQUESTS).tolist())) == REQUESTS
    assert result.order[:half].tolist() == run(Conditions()).order[:half].tolist()


def test_shift_at_the_command(tmp_path: Path) -> None:
    first = write(frame(), tmp_path / "first.csv")
    second = write(frame((0.1, 0.2, 0.3), "s"), tmp_path / "second.csv")
    request = ReplayRequest(first, ("static",), shift=second)
    result = run_replay(request).result

    assert result["requests"] == REQUESTS
    assert result["quality"] == pytest.approx(0.5)
    assert result["change"]["at"] == REQUESTS // 2
    assert result["change"]["excess_regret"] is None  # too short to tell

    fewer = write(frame().query("model != 'b'"), tmp_path / "fewer.csv")
    timed = write(frame().assign(latency_s=1.0), tmp_path / "timed.csv")
    with pytest.raises(InvalidRecording, match="the same models are needed") as caught:
        run_replay(replace(request, shift=fewer))
    assert caught.value.field == f"shift: {fewer}: models"
    with pytest.raises(InvalidRecording) as caught:
        run_replay(replace(request, shift=timed))
    assert caught.value.field == f"shift: {timed}: latency_s"


@pytest.mark.parametrize("name", ["random", "linucb", "thompson", "squarecb", "static"])
def test_new_arm_is_never_chosen_before_it_arrives(name: str) -> None:
    chosen = policy(name, models=2)
    result = replay(RECORDED, FEATURES, chosen, 0, conditions=Conditions(Delay(5), new_arm=True))

    half = REQUESTS // 2
    assert (result.arms[:half] < 2).all()
    assert chosen.arm_ids == tuple(Arm(model).id for model in "abc")
    assert not result.there[:half, 2].any() and result.there[half:].all()
    assert name == "static" or (result.arms[half:] == 2).any()
    # Rewards of decisions before the change still teach after it.
    assert result.learned == REQUESTS - 5


def test_fixed_rules_do_not_have_the_new_arm_either(tmp_path: Path) -> None:
    data = write(frame(), tmp_path / "file.csv")
    weights = "quality=1,cost=0,latency=0"
    result = run_replay(ReplayRequest(data, ("static",), weights=weights, new_arm="a")).result

    rules = result["baselines"]
    assert rules["best_single"]["model"] == "c"
    assert rules["oracle"]["quality"] == pytest.approx((0.7 + 0.9) / 2)
    assert rules["random"]["quality"] == pytest.approx((0.6 + 0.7) / 2)
    assert result["quality"] == pytest.approx(0.7)  # static: the dearest of those there
    assert rules["equal_cost_mix"]["quality"] == pytest.approx(0.7)


def test_new_arm_needs_a_name_that_is_recorded_and_another_model(tmp_path: Path) -> None:
    data = write(frame(), tmp_path / "file.csv")
    with pytest.raises(UnknownName) as caught:
        run_replay(ReplayRequest(data, new_arm="z"))
    assert (caught.value.field, caught.value.value) == ("new_arm", "z")
    alone = write(frame().query("model == 'a'"), tmp_path / "alone.csv")
    with pytest.raises(InvalidInput, match="another model") as refused:
        run_replay(ReplayRequest(alone, new_arm="a"))
    assert refused.value.field == "new_arm"


def test_frozen_policy_learns_no_more_and_gets_no_new_arm() -> None:
    chosen, states = policy("linucb", models=2), []
    conditions = Conditions(new_arm=True, frozen_after=20)
    result = replay(
        RECORDED, FEATURES, chosen, 0, lambda step: states.append(chosen.to_bytes()), conditions
    )

    assert result.learned == chosen.learned == 20
    assert len(set(states[:20])) == 20 and len(set(states[19:])) == 1
    assert (result.arms < 2).all()
    assert run(Conditions(frozen_after=0)).learned == 0


@pytest.mark.parametrize("name", ["static", "random", "linucb"])
@pytest.mark.parametrize("budget", [0.031, 0.05, 0.2, 0.6])
def test_budget_is_never_exceeded(name: str, budget: float) -> None:
    for seed in range(5):
        result = run(Conditions(budget_usd=budget), name, seed)
        assert result.cost_usd.sum() <= budget


def test_budget_that_is_no_limit_changes_nothing() -> None:
    free, rich = run(Conditions()), run(Conditions(budget_usd=100.0))
    assert free.arms.tolist() == rich.arms.tolist()
    assert free.propensities.tolist() == rich.propensities.tolist()


def test_budget_at_the_command(tmp_path: Path) -> None:
    data = write(frame(), tmp_path / "file.csv")
    result = run_replay(ReplayRequest(data, ("linucb",), budget_usd=0.2)).result

    assert result["budget_usd"] == 0.2
    assert result["spent_usd"] == pytest.approx(result["cost_usd"] * REQUESTS)
    assert 0.1 < result["spent_usd"] <= 0.2
    with pytest.raises(
        InvalidInput, match=r"the cheapest model, b, alone costs 0\.0305 USD"
    ) as caught:
        run_replay(ReplayRequest(data, budget_usd=0.03))
    assert (caught.value.field, caught.value.value) == ("budget", 0.03)


def test_conditions_are_told_in_the_result(tmp_path: Path) -> None:
    data = write(frame(), tmp_path / "file.csv")
    told = run_replay(ReplayRequest(data, ("random",), delay="10", missing=0.5)).result["rewards"]

    assert told["learned"] + told["lost"] + told["not_learned_yet"] == REQUESTS
    assert 15 < told["lost"] < 45 and 0 < told["not_learned_yet"] <= 10
    assert "rewards" not in run_replay(ReplayRequest(data, ("random",))).result
