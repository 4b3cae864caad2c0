"""Designs, lifecycle, allocation and assignment: pure functions."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InvalidInput, UnknownName
from optimizer.experiments import Moments
from optimizer.experiments.allocation import (
    FLOOR,
    first_weights,
    thompson_weights,
    with_floor,
)
from optimizer.experiments.assignment import Assigner
from optimizer.experiments.experiment import (
    TRANSITIONS,
    ArmPattern,
    Design,
    Experiment,
    Span,
    Variant,
    free_stretch,
    resolve,
)
from optimizer.records import Arm
from optimizer.rollout.plan import RunningExperiment

ARMS = tuple(
    Arm(model, {}, prompt) for model in ("small", "large") for prompt in ("default", "terse")
)
IDS = tuple(arm.id for arm in ARMS)
HEX = tuple(arm.hex() for arm in IDS)


def design(**given) -> Design:
    variants = (
        Variant("old", (ArmPattern("small", None, "default"),)),
        Variant("new", (ArmPattern("small", None, "terse"),)),
    )
    return Design(**({"decision_point": "chat", "name": "x", "variants": variants} | given))


def running(number: str, begin: float = 0.0, share: float = 1.0, **given) -> RunningExperiment:
    defaults = {"arms": ((HEX[0],), (HEX[1],)), "weights": (0.7, 0.3), "begin": begin}
    return RunningExperiment(number, share, **(defaults | given))


def test_patterns_stand_for_the_arms_that_agree() -> None:
    by_prompt = design(
        variants=(
            Variant("old", (ArmPattern(prompt_variant="default"),)),
            Variant("new", (ArmPattern(prompt_variant="terse"),)),
        )
    )
    assert resolve(by_prompt, ARMS) == ((HEX[0], HEX[2]), (HEX[1], HEX[3]))
    assert resolve(design(), ARMS) == ((HEX[0],), (HEX[1],))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"analysis": "fixed_horizon"}, "planned_samples"),
        ({"analysis": "fixed_horizon", "measure": "cost_usd", "smallest_effect": 1.0},
         "planned_samples"),
        ({"analysis": "fixed_horizon", "allocation": "thompson", "planned_samples": 100},
         "analysis"),
        ({"allocation": "weighted"}, "variants[0].weight"),
        ({"allocation": "thompson", "sticky": True}, "sticky"),
        ({"variants": (Variant("a", (ArmPattern("small"),)),) * 2}, "variants"),
        ({"variants": (Variant("a", (ArmPattern("small"),), 1.0),
                       Variant("b", (ArmPattern("large"),), 2.0))}, "allocation"),
    ],
)  # fmt: skip
def test_designs_that_make_no_sense_name_the_field(given, field) -> None:
    with pytest.raises(InvalidInput) as caught:
        design(**given)
    assert caught.value.field == field


def test_variants_must_be_told_apart_by_arm() -> None:
    same = (Variant("a", (ArmPattern("small"),)), Variant("b", (ArmPattern(None, None, "terse"),)))
    with pytest.raises(InvalidInput, match="shares an arm with 'a'"):
        resolve(design(variants=same), ARMS)
    several = (Variant("a", (ArmPattern("small"),)), Variant("b", (ArmPattern("large"),)))
    with pytest.raises(InvalidInput, match="one arm"):
        resolve(design(variants=several, allocation="thompson"), ARMS)
    unknown = (Variant("a", (ArmPattern("small"),)), Variant("b", (ArmPattern("huge"),)))
    with pytest.raises(UnknownName, match="huge"):
        resolve(design(variants=unknown), ARMS)


@given(st.lists(st.sampled_from(sorted(TRANSITIONS)), max_size=8))
def test_the_lifecycle_is_the_table(actions) -> None:
    experiment = Experiment(id="e", design=design(), arms=(("a",), ("b",)), weights=(0.5, 0.5))
    for now, action in enumerate(actions):
        before = experiment.state
        if before in TRANSITIONS[action]:
            experiment = experiment.moved(action, float(now), "why")
            assert experiment.state == TRANSITIONS[action][before]
            open_spans = [span for span in experiment.spans if span.end is None]
            assert len(open_spans) == (experiment.state == "running")
        else:
            with pytest.raises(InvalidInput) as caught:
                experiment.moved(action, float(now), "why")
            assert caught.value.value == before
            for name, moves in TRANSITIONS.items():
                assert (name in caught.value.remedy.split(";")[1]) == (before in moves)


def test_a_pause_is_no_running_time() -> None:
    spans = (Span(0.0, 10.0), Span(50.0))
    experiment = Experiment(
        id="e", design=design(), arms=(("a",), ("b",)), weights=(0.5, 0.5), spans=spans
    )
    assert experiment.ran_s(60.0) == 20.0
    assert msgspec.convert(msgspec.to_builtins(experiment), Experiment) == experiment


@given(st.lists(st.floats(0.01, 0.5), max_size=6))
def test_stretches_never_overlap(shares) -> None:
    taken: list[tuple[float, float]] = []
    for share in shares:
        try:
            begin = free_stretch(taken, share)
        except InvalidInput:
            continue
        assert begin + share <= 1.0 + 1e-6
        assert all(
            begin + share <= other + 1e-6 or other + long <= begin + 1e-6 for other, long in taken
        )
        taken.append((begin, share))


def test_too_large_a_share_says_what_is_free() -> None:
    with pytest.raises(InvalidInput, match=r"at most 0\.5 is free"):
        free_stretch([(0.0, 0.25), (0.75, 0.25)], 0.6)


def test_units_are_divided_as_asked_and_stay() -> None:
    assigner = Assigner((running("e1", 0.25, 0.5),), IDS)
    first = [assigner.variant(f"u{number}", 0.0) for number in range(20_000)]
    assert first == [assigner.variant(f"u{number}", 0.99) for number in range(20_000)]
    counts = Counter(None if one is None else one.variant for one in first)
    assert counts[None] / 20_000 == pytest.approx(0.5, abs=0.015)
    assert counts[0] / (counts[0] + counts[1]) == pytest.approx(0.7, abs=0.015)
    assert {one.propensity for one in first if one} == {0.7, 0.3}
    assert {one.arms for one in first if one} == {(0,), (1,)}


def test_requests_without_a_unit_are_divided_by_their_draw() -> None:
    assigner = Assigner((running("e1", 0.25, 0.5),), IDS)
    grid = (np.arange(10_000) + 0.5) / 10_000
    counts = Counter(
        None if one is None else one.variant
        for one in (assigner.variant(None, uniform) for uniform in grid.tolist())
    )
    assert counts == {None: 5000, 0: 3500, 1: 1500}


def test_a_unit_that_does_not_stay_is_still_in_or_out() -> None:
    assigner = Assigner((running("e1", 0.0, 0.5, sticky=False),), IDS)
    for number in range(200):
        drawn = {assigner.variant(f"u{number}", uniform) for uniform in (0.1, 0.9)}
        assert drawn == {None} or {one.variant for one in drawn if one} == {0, 1}


def test_experiments_have_different_units_and_independent_variants() -> None:
    both = Assigner((running("e1", 0.0, 0.5), running("e2", 0.5, 0.5)), IDS)
    units = [both.variant(f"u{number}", 0.0) for number in range(1000)]
    assert {one.experiment_id for one in units if one} == {"e1", "e2"}
    # The next experiment on the same units divides those of each variant anew.
    half = {"weights": (0.5, 0.5)}
    old, new = Assigner((running("e1", **half),), IDS), Assigner((running("e2", **half),), IDS)
    pairs = Counter(
        (old.variant(name, 0.0).variant, new.variant(name, 0.0).variant)
        for name in map(str, range(20_000))
    )
    assert min(pairs.values()) > 0.23 * 20_000


def test_other_experiments_come_and_go_and_units_stay() -> None:
    alone = Assigner((running("e2", 0.5, 0.5),), IDS)
    beside = Assigner((running("e1", 0.0, 0.5), running("e2", 0.5, 0.5)), IDS)
    for number in range(500):
        found = alone.variant(f"u{number}", 0.3)
        if found is not None:
            assert beside.variant(f"u{number}", 0.3) == found


def test_a_request_that_cannot_get_every_arm_is_not_in_it() -> None:
    assigner = Assigner((running("e1"),), IDS)
    assert assigner.variant("u", 0.5, allowed=(0, 2)) is None
    assert assigner.variant("u", 0.5, allowed=(0, 1)) is not None


def test_an_arm_that_is_gone_leaves_the_experiment_out() -> None:
    assigner = Assigner((running("e1", arms=((HEX[0],), ("00" * 8,))),), IDS)
    assert assigner.left_out == ("e1",)
    assert not assigner
    assert assigner.variant("u", 0.5) is None


def test_contextual_experiments_leave_the_choice_to_the_policy() -> None:
    assigner = Assigner((running("e1", contextual=True),), IDS)
    found = assigner.variant("u", 0.5)
    assert found is not None
    assert (found.variant, found.arms, found.propensity) == (None, (0, 1), 1.0)


def test_a_variant_without_weight_is_never_drawn() -> None:
    assigner = Assigner((running("e1", weights=(0.0, 1.0)),), IDS)
    drawn = {assigner.variant(None, uniform) for uniform in (0.0, 0.5, 0.999)}
    assert {one.variant for one in drawn if one} == {1}


def test_first_weights_are_equal_or_as_given() -> None:
    assert first_weights(design()) == (0.5, 0.5)
    weighted = (
        Variant("a", (ArmPattern("small"),), 9.0),
        Variant("b", (ArmPattern("large"),), 1.0),
    )
    assert first_weights(design(variants=weighted, allocation="weighted")) == (0.9, 0.1)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 1)), min_size=2, max_size=8))
def test_thompson_weights_are_probabilities_above_the_floor(seen) -> None:
    moments = [Moments(count, count * mean, count * mean) for count, mean in seen]
    weights = thompson_weights(moments, span=1.0)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= min(FLOOR, 0.5 / len(weights)) - 1e-12
    assert weights == thompson_weights(moments, span=1.0)


def test_thompson_weights_are_the_share_of_draws_that_win() -> None:
    means, counts = (0.50, 0.53, 0.48), (400, 300, 500)
    moments = [
        Moments(count, count * mean, count * mean)
        for count, mean in zip(counts, means, strict=True)
    ]
    spread = [np.sqrt((one.variance + 2 / one.count) / one.count) for one in moments]
    draws = np.random.default_rng(0).normal(means, spread, (200_000, 3))
    share = np.bincount(draws.argmax(axis=1), minlength=3) / 200_000
    expected = with_floor(share)
    assert thompson_weights(moments, span=1.0) == pytest.approx(expected, abs=0.005)
