"""Which experiment comes next, against truths that are known."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flows.design_page import page
from optimizer.arm_beliefs import ArmEvidence, Beliefs, believe, gather, settings_between
from optimizer.errors import InvalidInput
from optimizer.experiment_design import Cost, expected_gain, halving, promising, propose
from optimizer.experiment_plan import plan
from optimizer.experiments.experiment import resolve
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.records import Arm
from optimizer.settings import DecisionPoint

COST = Cost(requests=100_000, samples=20_000)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NUMBERS = st.floats(-2, 2, allow_nan=False)


def evidence(rewards: list[float], errors: list[float], costs: list[float]) -> ArmEvidence:
    number = len(rewards)
    return ArmEvidence(
        tuple(Arm(f"m{place}") for place in range(number)),
        np.array(rewards),
        np.array(errors),
        np.array(costs),
        np.full(number, 1e-5),
        0.4,
        0,
        1000,
    )


def independent(found: ArmEvidence) -> Beliefs:
    return Beliefs(found.arms, len(found.arms), found.reward, np.diag(found.reward_error**2))


def traffic(
    quality: list[float], cost: list[float], chances: list[float], rows: int, seed: int
) -> LoggedDecisions:
    random = np.random.default_rng(seed)
    arms = random.choice(len(quality), size=rows, p=chances)
    return LoggedDecisions(
        np.ones((rows, 1)),
        arms,
        np.array(chances)[arms],
        np.arange(rows) * 86400.0 * 7 / rows,
        (random.random(rows) < np.array(quality)[arms]) * 1.0,
        np.array(cost)[arms] * random.uniform(0.5, 1.5, rows),
        np.full(rows, np.nan),
        np.full(rows, np.nan),
        tuple(f"m{place}" for place in range(len(quality))),
        np.full(rows, "champion"),
    )


def point(number: int, **given: object) -> DecisionPoint:
    arms = [{"model": f"m{place}"} for place in range(number)]
    return DecisionPoint(
        **{"name": "chat", "arms": arms, "cost_cap_usd": 0.05, "control_share": 0.1, **given}
    )


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8))
@example([(0.0, 4e-164), (1.0, 0.0)])
def test_the_expected_gain_is_that_of_numerical_integration(
    lines: list[tuple[float, float]],
) -> None:
    mean, slope = (np.array(column) for column in zip(*lines, strict=True))
    z = np.linspace(-9, 9, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    highest = (mean[:, None] + slope[:, None] * z).max(axis=0)
    expected = np.trapezoid(highest * density, z) - mean.max()
    assert expected_gain(mean, slope) == pytest.approx(expected, abs=1e-5)


def test_two_independent_arms_have_the_textbook_value() -> None:
    """Unit normal loss of the difference, for one size that is given."""
    found = evidence([0.5, 0.45], [0.03, 0.04], [0.001, 0.001])
    (one,) = propose(independent(found), found, COST, effects=[0.05])
    prior = 0.03**2 + 0.04**2
    std = prior / math.sqrt(prior + 4 * 0.4**2 / one.samples)
    scaled = 0.05 / std
    loss = math.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi)
    loss -= scaled * 0.5 * math.erfc(scaled / math.sqrt(2))
    assert one.gain == pytest.approx(std * loss * (COST.requests - one.samples))
    assert one.better == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)))
    assert one.cost_usd == pytest.approx(one.samples * 0.001, rel=0.01)


def test_the_uncertain_and_the_cheap_come_first() -> None:
    found = evidence([0.6, 0.55, 0.55, 0.55], [0.01, 0.001, 0.08, 0.08], [0.01, 0.01, 0.01, 0.10])
    ranked = propose(independent(found), found, COST)
    assert ranked[0].candidate == 2
    by_arm = {one.candidate: one for one in ranked}
    assert by_arm[3].cost_usd > 5 * by_arm[2].cost_usd
    assert by_arm[1].gain < 0.01 * by_arm[2].gain
    assert promising(ranked)[0].candidate == 2
    assert 1 not in [one.candidate for one in promising(ranked)]


def test_nothing_fits_into_little_traffic() -> None:
    found = evidence([0.6, 0.5], [0.05, 0.05], [0.01, 0.01])
    assert propose(independent(found), found, Cost(requests=1000, samples=50)) == ()


@given(st.integers(1, 20), st.integers(1000, 100_000))
def test_halving_stays_within_its_requests_and_ends_with_one(number: int, samples: int) -> None:
    rungs = halving(number, samples)
    assert sum((rung.candidates + 1) * rung.samples_each for rung in rungs) <= samples
    assert rungs[0].candidates == number and rungs[-1].candidates == 1
    assert all(rung.samples_each >= 1 for rung in rungs)


@pytest.mark.parametrize("wrong", ["requests", "samples", "observing_usd"])
def test_impossible_costs_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        replace(COST, **{wrong: 0})
    with pytest.raises(InvalidInput, match="samples"):
        halving(8, 3)


def test_estimates_from_a_skewed_log_hold_the_truth() -> None:
    """A learned policy hardly draws the third arm; its belief is wide and not wrong."""
    quality, cost = [0.8, 0.6, 0.5], [0.01, 0.002, 0.02]
    objective, arms = point(3).objective(), point(3).records()
    truth = objective.rewards(np.array(quality), np.array(cost), None)
    far = []
    for seed in range(20):
        found = gather(traffic(quality, cost, [0.85, 0.12, 0.03], 3000, seed), arms, objective)
        far += list((found.reward - truth) / found.reward_error)
        assert found.incumbent == 0 and found.reward_error[2] > 2 * found.reward_error[0]
    # Two pseudo-rows make errors a little wide, so their scores spread a little less than 1.
    assert 0.5 < np.std(far) < 1.15 and abs(np.mean(far)) < 0.3


def test_an_arm_that_nobody_drew_borrows_from_those_that_are_like_it() -> None:
    arms = (*(Arm("a", {"temperature": t}) for t in (0.0, 0.5, 1.0)), Arm("b"))
    nan = math.nan
    found = ArmEvidence(
        arms, np.array([0.8, nan, 0.7, 0.3]), np.array([0.02, nan, 0.02, 0.02]),
        np.full(4, 0.01), np.full(4, 0.001), 0.4, 0, 900,
    )  # fmt: skip
    extra = settings_between(arms)
    assert [arm.parameters["temperature"] for arm in extra] == [0.25, 0.75]
    beliefs = believe(found, extra)
    assert 0.6 < beliefs.mean[1] < 0.85
    assert beliefs.covariance[1, 1] > 4 * beliefs.covariance[0, 0]
    assert np.linalg.eigvalsh(beliefs.covariance).min() > -1e-9
    ranked = propose(beliefs, found, COST)
    assert {one.candidate for one in ranked if not one.configured} == {4, 5}


def test_a_plan_has_a_draft_and_the_front_of_three() -> None:
    quality, cost = [0.9, 0.75, 0.6, 0.4], [0.03, 0.01, 0.001, 0.02]
    log = traffic(quality, cost, [0.7, 0.1, 0.1, 0.1], 6000, 3)
    planned = plan(log, point(4), 7 * 86400.0)
    assert planned.draft is not None and planned.evidence is not None
    resolve(planned.draft, point(4).records())
    assert planned.draft.variants[0].arms[0].model == "m0"
    assert planned.draft.planned_samples == planned.rungs[0].samples_each
    assert planned.requests_per_day == pytest.approx(6000 / 7, rel=0.01)
    arms = {one.candidate.name for one in planned.on_front if one.candidate.kind == "arm"}
    assert {"m0", "m1", "m2"} <= arms and "m3" not in arms
    again = plan(log, point(4), 7 * 86400.0)
    assert again.draft == planned.draft and again.message == planned.message


def test_too_little_is_said() -> None:
    short = traffic([0.5, 0.5], [0.01, 0.01], [0.5, 0.5], 50, 1)
    few = plan(short, point(2), 7 * 86400.0)
    assert few.draft is None and "200 decisions with a complete reward" in few.message
    assert "nothing is proposed" in plan(None, point(2), 1.0).message
    alone = traffic([0.5], [0.01], [1.0], 500, 1)
    assert "one arm" in plan(alone, point(1), 7 * 86400.0).message
    assert "Next experiment of chat" in page("chat", NOW, few, None)
