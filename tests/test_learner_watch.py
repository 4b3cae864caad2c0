"""The learner's watch: true figures on known worlds, the same bytes however rows are cut."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.control_regret import ControlRegret
from optimizer.drift_stream import GRID, DriftStream
from optimizer.errors import IncompatibleState
from optimizer.learner_watch import LearnerWatch, WatchedRows
from optimizer.prediction_accuracy import HEADS, PredictionAccuracy
from optimizer.reward import TARGETS, Objective, Weights

ARMS = [b"arm-one ", b"arm-two "]
CONTROL = 0.1
QUALITY = Objective(Weights(quality=1.0, cost=0.0, latency=0.0, feedback=0.0))


def rows(count: int, seed: int, value, start: int = 0, expected: float = 0.5):
    """Traffic of one policy that always takes the first arm, and of control."""
    random = np.random.default_rng(seed)
    control = random.random(count) < CONTROL
    arm = np.where(control, random.integers(2, size=count), 0)
    after = np.full((count, len(TARGETS)), np.nan)
    after[:, 0] = random.random(count) < np.array([value(one) for one in arm.tolist()])
    watched = WatchedRows(
        [ARMS[one] for one in arm.tolist()],
        control.tolist(),
        np.where(control, 0.5, 1.0).tolist(),
        list(range(start + 1, start + count + 1)),
    )
    return watched, np.full_like(after, expected), np.full_like(after, np.nan), after


def watch() -> LearnerWatch:
    return LearnerWatch(ARMS, QUALITY, CONTROL)


def see(watcher: LearnerWatch, told, cuts=()) -> None:
    ends = [0, *sorted(cuts), len(told[3])]
    for start, stop in itertools.pairwise(ends):
        watcher.see(told[0].cut(start, stop), *(table[start:stop] for table in told[1:]))


@hypothesis_settings(max_examples=15)
@given(st.lists(st.integers(0, 3000), max_size=6))
def test_state_and_alarms_do_not_depend_on_how_rows_are_cut(cuts) -> None:
    calm = rows(1500, 1, lambda arm: 0.8)
    bad = rows(1500, 2, lambda arm: 0.2, start=1500)
    told = (
        WatchedRows(*([*a, *b] for a, b in zip(parts(calm[0]), parts(bad[0]), strict=True))),
        *(np.vstack(pair) for pair in zip(calm[1:], bad[1:], strict=True)),
    )
    whole, cut = watch(), watch()
    see(whole, told)
    see(cut, told, cuts)
    assert whole.alarms
    assert cut.to_bytes() == whole.to_bytes()


def parts(watched: WatchedRows):
    return watched.arm_ids, watched.control, watched.propensities, watched.positions


def test_a_watch_goes_on_where_its_bytes_stand() -> None:
    first, second = rows(2300, 3, lambda arm: 0.7), rows(900, 4, lambda arm: 0.3, start=2300)
    whole, restored = watch(), watch()
    see(whole, first)
    restored.from_bytes(whole.to_bytes())
    assert restored.to_bytes() == whole.to_bytes()
    see(whole, second)
    see(restored, second)
    assert restored.to_bytes() == whole.to_bytes()
    assert restored.figures() == whole.figures()


@pytest.mark.parametrize(
    "other",
    [
        LearnerWatch(ARMS[:1], QUALITY, CONTROL),
        LearnerWatch(ARMS, QUALITY, 0.2),
        LearnerWatch(ARMS, Objective(Weights(quality=1.0, feedback=1.0)), CONTROL),
    ],
)
def test_a_watch_of_something_else_is_refused(other) -> None:
    with pytest.raises(IncompatibleState):
        watch().from_bytes(other.to_bytes())
    with pytest.raises(IncompatibleState):
        watch().from_bytes(b"\x81\xa1a\x01")


def test_a_fall_is_seen_soon_is_one_alarm_and_says_that_predictions_are_worse() -> None:
    watcher = watch()
    see(watcher, rows(3000, 5, lambda arm: 0.9, expected=0.9))
    assert not watcher.alarms
    see(watcher, rows(400, 6, lambda arm: 0.4, start=3000, expected=0.9))
    assert len(watcher.alarms) == watcher.raised == 1
    alarm = watcher.alarms[0]
    assert 3000 < alarm.position < 3250
    assert alarm.worse
    assert alarm.after < alarm.before


def test_what_a_policy_forgets_is_an_alarm_that_is_kept() -> None:
    watcher, restored = watch(), watch()
    see(watcher, rows(700, 5, lambda arm: 0.9, expected=0.9))
    watcher.forgot(700, ARMS[1], 0.03125)
    (alarm,) = watcher.figures()["alarms"]
    assert (alarm["stream"], alarm["detector"]) == ("memory", "cusum")
    assert (alarm["position"], alarm["arm"]) == (700, ARMS[1].hex())
    assert (alarm["before"], alarm["after"]) == (1.0, 0.03125)
    restored.from_bytes(watcher.to_bytes())
    assert restored.figures() == watcher.figures()
    assert watcher.raised == 1


def test_a_reward_that_rises_as_foreseen_is_no_alarm() -> None:
    watcher = watch()
    see(watcher, rows(1500, 7, lambda arm: 0.3, expected=0.3))
    see(watcher, rows(1500, 8, lambda arm: 0.8, start=1500, expected=0.8))
    assert not watcher.alarms


def test_shuffled_traffic_alarms_in_under_two_of_a_hundred_windows() -> None:
    watcher = watch()
    for window in range(60):  # 0/1 outcomes: the noisiest there are
        see(watcher, rows(1000, 100 + window, lambda arm: 0.5, start=window * 1000))
    assert watcher.raised / 60 < 0.02


def test_regret_against_the_best_arm_is_found_from_control() -> None:
    watcher = watch()
    see(watcher, rows(20_000, 9, lambda arm: (0.5, 0.8)[arm]))
    regret = watcher.figures()["regret"]
    assert regret["best_arm"] == ARMS[1].hex()
    low, high = regret["interval"]
    truth = 0.3 * regret["decisions"]
    assert low < truth < high
    assert low > 0
    assert abs(regret["per_decision"] - 0.3) < 0.06


def test_intervals_of_regret_cover_at_every_look() -> None:
    missed = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        regret, seen = ControlRegret(2, CONTROL), 0
        for _ in range(15):
            control = random.random(200) < CONTROL
            arm = np.where(control, random.integers(2, size=200), 0)
            reward = (random.random(200) < np.where(arm == 1, 0.9, 0.7)).astype(float)
            odds = np.where(control, 0.5, 1.0)
            regret.add(arm, control.tolist(), odds, reward)
            interval, seen = regret.figures()["interval"], seen + int((~control).sum())
            if interval and not interval[0] <= 0.2 * seen <= interval[1]:
                missed += 1
                break
    assert missed <= 60 * 0.05


def test_without_control_nothing_is_claimed() -> None:
    watcher = LearnerWatch(ARMS, QUALITY, 0.0)
    see(watcher, rows(100, 10, lambda arm: 0.5))
    assert "cumulative" not in watcher.figures()["regret"]


def test_errors_and_calibration_are_those_of_the_textbook() -> None:
    random = np.random.default_rng(11)
    guess = random.random(4000)
    truth = (random.random(4000) < guess).astype(float)
    seen, expected = np.full((4000, 5), np.nan), np.full((4000, 5), np.nan)
    seen[:, HEADS.index("quality")], expected[:, HEADS.index("quality")] = truth, guess
    accuracy = PredictionAccuracy()
    accuracy.add(expected, seen)
    figures = accuracy.figures()
    assert list(figures) == ["quality"]
    quality = figures["quality"]
    assert math.isclose(quality["brier"], ((guess - truth) ** 2).mean())
    assert math.isclose(quality["mean_absolute_error"], abs(guess - truth).mean())
    assert abs(quality["skill"] - (1 - (1 / 6) / (1 / 4))) < 0.03
    assert quality["calibration_error"] < 0.04
    wrong = PredictionAccuracy()
    wrong.add(np.where(np.isnan(expected), np.nan, 1 - guess[:, None]), seen)
    assert wrong.figures()["quality"]["calibration_error"] > 0.4
    assert wrong.figures()["quality"]["skill"] < 0


def test_a_late_part_and_a_correction_count_once() -> None:
    watcher = watch()
    told = rows(50, 12, lambda arm: 0.5)
    see(watcher, told)
    again = (told[0], told[1], told[3], 1.0 - told[3])
    see(watcher, again)
    assert watcher.figures()["predictions"]["reward"]["count"] == 50
    assert watcher.figures()["regret"]["decisions"] < 50


@given(st.integers(0, 2**32 - 1), st.integers(1, 9000))
def test_a_stream_goes_on_where_its_state_stands(seed, count) -> None:
    random = np.random.default_rng(seed)
    whole, restored = DriftStream("both"), DriftStream("down")
    for units in random.integers(0, round(1 / GRID), count % 9000).tolist():
        whole.update(units)
    restored = DriftStream("both")
    restored.restore(whole.state())
    further = [*[900] * 200, *[100] * 400]
    assert [whole.update(one) for one in further] == [restored.update(one) for one in further]
    assert whole.state() == restored.state()
