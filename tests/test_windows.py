"""Windows of the stream: what pandas computes on the whole set, whatever the order."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.windows import COLUMNS, LATENESS_S, PANE_S, WINDOWS_MIN, ArmWindows
from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.records import Outcome

START_S = 1_700_000_000.0
NOTHING = Outcome()
PARTS = ["quality", "cost_usd", "latency_s"]


class Change(NamedTuple):
    model: str
    at_s: float
    before: Outcome
    after: Outcome


values = st.none() | st.floats(0.0, 1e9) | st.floats(0.0, 10.0)
outcomes = st.builds(
    Outcome, st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0), values, values
)
decisions = st.tuples(
    st.sampled_from(["small", "large"]),
    st.floats(0.0, LATENESS_S).map(lambda age: START_S - age),
    st.lists(outcomes, min_size=1, max_size=3),
)


def changes(told: list[tuple[str, float, list[Outcome]]], order: random.Random) -> list[Change]:
    """Every decision's own changes in their order, those of different decisions in any."""
    turns = [number for number, (_, _, story) in enumerate(told) for _ in story]
    order.shuffle(turns)
    known, heard, made = [NOTHING] * len(told), [0] * len(told), []
    for number in turns:
        model, at_s, story = told[number]
        after = story[heard[number]]
        if after != known[number]:
            made.append(Change(model, at_s, known[number], after))
        known[number], heard[number] = after, heard[number] + 1
    return made


def told_by_pandas(rows: list[tuple[str, float, Outcome]], model: str, minutes: int, now_s: float):
    """The features of `WindowFeatures` in its order, from the final outcomes of all decisions."""
    frame = pd.DataFrame(
        [(name, at_s, *outcome.values()[:3]) for name, at_s, outcome in rows if outcome != NOTHING],
        columns=["model", "at_s", *PARTS],
    ).astype(dict.fromkeys(PARTS, "float64"))
    end_s = (now_s // PANE_S + 1) * PANE_S
    inside = (frame.at_s < end_s) & (frame.at_s >= end_s - minutes * 60)
    frame = frame[inside & (frame.model == model)]
    quality, latency = frame.quality.dropna(), frame.latency_s.dropna().sort_values()
    ranks = [-(-percent * len(latency) // 100) for percent in (50, 95)]
    return [
        float(len(frame)),
        quality.mean(),
        frame.cost_usd.mean(),
        frame.cost_usd.sum(),
        latency.mean(),
        *(latency.iloc[rank - 1] if rank else float("nan") for rank in ranks),
        (quality == 0.0).mean(),
    ]


def assert_same_as_pandas(windows: ArmWindows, rows, now_s: float) -> None:
    for model, found in windows.values(["small", "large"], now_s).items():
        for minutes in WINDOWS_MIN:
            features = found[minutes]
            ours = [getattr(features, name) for name in features.__slots__]
            theirs = told_by_pandas(rows, model, minutes, now_s)
            for name, one, other in zip(features.__slots__, ours, theirs, strict=True):
                exactness = 0.011 if name.startswith("latency_p") else 1e-9
                expected = None if pd.isna(other) else pytest.approx(other, rel=exactness, abs=2e-9)
                assert one == expected, (model, minutes, name)


@settings(max_examples=60)
@given(st.lists(decisions, max_size=25), st.randoms(use_true_random=False), st.floats(0, 4000))
def test_any_order_inside_the_lateness_gives_what_pandas_computes(told, order, later_s) -> None:
    windows = ArmWindows()
    for change in changes(told, order):
        windows.update(*change)
    assert windows.late == 0
    rows = [(model, at_s, story[-1]) for model, at_s, story in told]
    assert_same_as_pandas(windows, rows, START_S + later_s)


@given(st.lists(decisions, max_size=15), st.randoms(use_true_random=False))
def test_order_questions_and_restarts_leave_the_same_bytes(told, order) -> None:
    plain, disturbed = ArmWindows(), ArmWindows()
    for change in changes(told, order):
        plain.update(*change)
    for change in changes(told, order):
        disturbed.update(*change)
        if order.random() < 0.3:
            disturbed.values(["small", "large"], START_S - order.uniform(0, LATENESS_S))
        if order.random() < 0.3:
            disturbed = ArmWindows.from_bytes(disturbed.to_bytes())
    assert disturbed.to_bytes() == plain.to_bytes()
    both = [one.values(["small", "large"], START_S) for one in (plain, disturbed)]
    assert both[0] == both[1]


@given(st.lists(decisions, max_size=15), st.randoms(use_true_random=False))
def test_what_is_taken_back_leaves_nothing(told, order) -> None:
    kept, taken = told[::2], [(model, at_s, [*story, NOTHING]) for model, at_s, story in told[1::2]]
    windows, expected = ArmWindows(), ArmWindows()
    for one in (windows, expected):
        one.update("small", START_S, NOTHING, Outcome(quality=1.0))
    windows.values(["small", "large"], START_S)
    for change in changes(kept + taken, order):
        windows.update(*change)
    for change in changes(kept, order):
        expected.update(*change)
    assert windows.to_bytes() == expected.to_bytes()
    both = [one.values(["small", "large"], START_S) for one in (windows, expected)]
    assert both[0] == both[1]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 900.0), outcomes.filter(lambda one: one != NOTHING))),
    st.sampled_from([0, 60, 300]),
)
def test_what_is_too_late_is_counted_and_left_out(told, lateness_s) -> None:
    windows = ArmWindows(lateness_s)
    for age_s, outcome in told:
        windows.update("small", START_S - age_s, NOTHING, outcome)
    arrivals = pd.DataFrame({"at_s": [START_S - age_s for age_s, _ in told]}, dtype="float64")
    watermark_s = arrivals.at_s.cummax() // PANE_S * PANE_S - lateness_s
    on_time = arrivals.at_s >= watermark_s
    assert windows.late == int((~on_time).sum())
    if told:
        assert windows.watermark_s == watermark_s.iloc[-1]
    rows = [
        ("small", START_S - age_s, outcome)
        for (age_s, outcome), taken in zip(told, on_time, strict=True)
        if taken
    ]
    assert_same_as_pandas(windows, rows, START_S)


def test_a_correction_of_a_closed_pane_is_late_and_the_pane_stays() -> None:
    windows = ArmWindows(lateness_s=60)
    first, second = Outcome(quality=1.0), Outcome(quality=0.0)
    windows.update("small", START_S, NOTHING, first)
    windows.update("small", START_S + 600, NOTHING, first)
    windows.update("small", START_S, first, second)
    assert windows.late == 1
    hour = windows.values(["small"], START_S + 600)["small"][60]
    assert (hour.count, hour.quality_mean) == (2.0, 1.0)


def test_a_correction_of_what_was_never_seen_takes_nothing_away() -> None:
    """A learner that starts again reads no rows older than its span."""
    windows = ArmWindows()
    windows.update("small", START_S, Outcome(quality=1.0), Outcome(quality=0.0))
    assert windows.late == 1
    assert windows.values(["small"], START_S)["small"][60].count == 0.0


def test_a_clock_that_is_ahead_makes_nobody_late() -> None:
    windows = ArmWindows()
    one = Outcome(quality=1.0)
    windows.update("small", START_S + 86_400, NOTHING, one, received_s=START_S)
    windows.update("small", START_S, NOTHING, one, received_s=START_S)
    assert windows.late == 0
    assert windows.values(["small"], START_S)["small"][1].count == 1.0
    assert windows.values(["small"], START_S + 86_400)["small"][1].count == 1.0


def test_memory_ends_with_the_longest_window() -> None:
    windows = ArmWindows(lateness_s=0)
    for second in range(0, 20_000, 10):
        windows.update("small", START_S + second, NOTHING, Outcome(latency_s=1.0))
    panes = json.loads(windows.to_bytes())["models"]["small"]
    assert len(panes) == 60 * 60 // PANE_S + 1


def test_an_unknown_model_has_counts_of_zero() -> None:
    assert ArmWindows().values(["new"], START_S)["new"][60].count == 0.0


@pytest.mark.parametrize("lateness_s", [-10, 5])
def test_bad_lateness_is_refused(lateness_s) -> None:
    with pytest.raises(InvalidInput, match="lateness_s"):
        ArmWindows(lateness_s)


def test_state_of_another_format_is_refused() -> None:
    state = json.loads(ArmWindows().to_bytes()) | {"pane_s": 60}
    with pytest.raises(IncompatibleState, match="pane"):
        ArmWindows.from_bytes(json.dumps(state).encode())


def test_columns_are_those_of_the_view() -> None:
    assert COLUMNS[:8] == (
        "count_1m", "quality_mean_1m", "cost_usd_mean_1m", "cost_usd_sum_1m",
        "latency_mean_s_1m", "latency_p50_s_1m", "latency_p95_s_1m", "error_rate_1m",
    )  # fmt: skip
    assert len(COLUMNS) == 32


def test_twenty_kills_change_nothing(monkeypatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    from benchmarks.windows import (
        MODELS,
        fold,
        fold_killed,
        fold_without_checkpoints,
        made_ledger,
    )

    rows = made_ledger(4000, span_s=7200.0, seed=3)
    end_s = START_S + 7200.0
    rows = [row for row in rows if row.received_s <= end_s]
    kills = random.Random(3).sample(range(1, len(rows)), 20)
    undisturbed = fold(ArmWindows(), rows)
    assert undisturbed.late > 20
    killed = fold_killed(rows, kills, every=150)
    assert killed.to_bytes() == undisturbed.to_bytes()
    expected = undisturbed.values(MODELS, end_s)
    assert killed.values(MODELS, end_s) == expected
    assert fold_without_checkpoints(rows, kills).values(MODELS, end_s) == expected
