"""Rules that every policy keeps, applied to every combination that has a name."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.policies import POLICY_NAMES, Policy, PolicySettings, Thompson, make_policy
from optimizer.policies.base import draw
from optimizer.records import Arm, Observation, Outcome
from optimizer.reward import Objective, Weights

ARMS = tuple(Arm(name) for name in ("small", "middle", "large", "huge"))
SIZE = 6
OBJECTIVE = Objective(Weights(), cost_cap_usd=0.01)
SHARE = 0.04
NOTHING = Outcome()


def make(name: str, arms: tuple[Arm, ...] = ARMS, share: float = SHARE) -> Policy:
    return make_policy(PolicySettings(name=name, uniform_share=share), arms, SIZE, OBJECTIVE)


def observations(seed: int, count: int = 120) -> list[Observation]:
    random = np.random.default_rng(seed)
    seen = []
    for _ in range(count):
        arm = int(random.integers(len(ARMS)))
        outcome = Outcome(quality=float(random.random()), cost_usd=float(random.random() * 0.02))
        seen.append(Observation(arm, random.normal(size=SIZE).round(3), NOTHING, outcome))
    return seen


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE)


named = pytest.mark.parametrize("name", POLICY_NAMES)


@named
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), data=st.data())
def test_probabilities_sum_to_one_and_respect_the_floor(name, seed, count, data) -> None:
    policy = make(name)
    policy.learn(observations(seed, count))
    candidates = data.draw(
        st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)
    )
    aside = data.draw(st.lists(st.integers(0, 3), max_size=4, unique=True))
    probabilities = policy.probabilities(features(seed), candidates, aside)
    allowed = range(4) if candidates is None else candidates
    assert probabilities.sum() == pytest.approx(1.0)
    for arm in range(4):
        floor = SHARE / len(allowed) if arm in allowed else 0.0
        assert probabilities[arm] >= floor - 1e-12
        assert arm in allowed or probabilities[arm] == 0.0


@named
def test_an_arm_set_aside_keeps_only_its_floor(name) -> None:
    if name == "random":
        pytest.skip("nothing but a floor")
    policy = make(name)
    policy.learn(observations(1))
    best = int(policy.probabilities(features(1)).argmax())
    aside = policy.probabilities(features(1), None, [best])
    assert aside[best] == pytest.approx(SHARE / len(ARMS))


@named
def test_state_survives_bytes_exactly(name) -> None:
    policy = make(name)
    policy.learn(observations(2))
    copy = make(name)
    copy.from_bytes(policy.to_bytes())
    assert copy.to_bytes() == policy.to_bytes()
    assert (copy.probabilities(features(3)) == policy.probabilities(features(3))).all()
    policy.learn(observations(4))
    copy.learn(observations(4))
    assert copy.to_bytes() == policy.to_bytes()


@named
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_learning_does_not_depend_on_how_events_are_cut(name, cuts) -> None:
    seen = observations(5)
    whole = make(name)
    whole.learn(seen)
    pieces = make(name)
    edges = [0, *sorted(cuts), len(seen)]
    for start, end in itertools.pairwise(edges):
        pieces.learn(seen[start:end])
    assert pieces.to_bytes() == whole.to_bytes()


@named
def test_a_correction_is_as_if_it_had_been_right_at_once(name) -> None:
    vector = features(6)
    wrong, right = Outcome(quality=0.9), Outcome(quality=0.2, cost_usd=0.004)
    corrected = make(name)
    corrected.learn([Observation(1, vector, NOTHING, wrong), Observation(1, vector, wrong, right)])
    direct = make(name)
    direct.learn([Observation(1, vector, NOTHING, right)])
    mean, std = corrected.outcome_model.score(vector)
    direct_mean, direct_std = direct.outcome_model.score(vector)
    np.testing.assert_allclose(mean, direct_mean, atol=1e-9)
    np.testing.assert_allclose(std, direct_std, atol=1e-9)


@named
def test_a_retraction_leaves_nothing(name) -> None:
    vector, outcome = features(7), Outcome(quality=0.9, cost_usd=0.001)
    policy = make(name)
    policy.learn(
        [Observation(2, vector, NOTHING, outcome), Observation(2, vector, outcome, NOTHING)]
    )
    fresh = make(name)
    for got, expected in zip(
        policy.outcome_model.score(vector),
        fresh.outcome_model.score(vector),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-9)


@named
def test_features_that_are_not_finite_are_refused_and_nothing_is_learned(name) -> None:
    policy = make(name)
    before = policy.to_bytes()
    bad = np.full(SIZE, np.nan)
    with pytest.raises(InvalidInput, match="features"):
        policy.learn([Observation(0, bad, NOTHING, Outcome(quality=1.0))])
    assert policy.to_bytes() == before


@named
def test_state_of_other_arms_is_refused(name) -> None:
    other = make(name, ARMS[:3])
    with pytest.raises(IncompatibleState, match="lineage"):
        make(name).from_bytes(other.to_bytes())
    with pytest.raises(IncompatibleState):
        make(name).from_bytes(b"no state")


def test_linear_heads_agree_with_ridge_regression() -> None:
    random = np.random.default_rng(8)
    matrix = random.normal(size=(300, SIZE))
    truth = random.normal(size=SIZE) * 0.1
    quality = np.clip(0.5 + matrix @ truth + 0.05 * random.normal(size=300), 0, 1)
    policy = make("linucb")
    policy.learn(
        [
            Observation(0, row, NOTHING, Outcome(quality=float(value)))
            for row, value in zip(matrix, quality, strict=True)
        ]
    )
    optimism = np.eye(SIZE)[0]
    expected = np.linalg.solve(matrix.T @ matrix + np.eye(SIZE), matrix.T @ quality + optimism)
    policy.objective = Objective(Weights(quality=1, cost=0, latency=0))
    vector = features(9)
    mean, std = policy.outcome_model.score(vector)
    assert mean[0] == pytest.approx(vector @ expected, abs=1e-9)
    assert std[0] < std[1]


def test_thompson_matches_a_simulation() -> None:
    mean, std = np.array([0.5, 0.55, 0.3]), np.array([0.05, 0.1, 0.02])
    draws = np.random.default_rng(10).normal(mean, std, size=(200_000, 3))
    truth = np.bincount(draws.argmax(axis=1), minlength=3) / len(draws)
    np.testing.assert_allclose(Thompson().probabilities(mean, std), truth, atol=0.02)


def test_policies_find_the_best_arm() -> None:
    random = np.random.default_rng(11)
    for name in ("linucb", "thompson"):
        policy = make(name, share=0.01)
        chosen = []
        for _step in range(600):
            vector = np.r_[1.0, random.normal(size=SIZE - 1) * 0.3]
            arm = draw(policy.probabilities(vector), random.random())
            quality = float(random.random() < (0.3, 0.5, 0.9, 0.4)[arm])
            policy.learn([Observation(arm, vector, NOTHING, Outcome(quality, 0.001))])
            chosen.append(arm)
        assert np.mean(np.array(chosen[300:]) == 2) > 0.9, name


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_only_arms_with_a_probability_are_drawn(weights: list[float], uniform: float) -> None:
    total = sum(weights)
    if total < 1e-6:
        return
    probabilities = np.array(weights) / total
    assert probabilities[draw(probabilities, uniform)] > 0
