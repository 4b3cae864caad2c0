"""Cheapest at a quality floor: what a replay reports, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from infra.replays import ReplayRequest, run_replay
from optimizer.baselines import equal_quality_mix
from optimizer.policies import PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm
from optimizer.replay import replay
from optimizer.replay_summary import floor_violations, summary
from optimizer.reward import Objective, Weights

MEANS = {"big": (0.8, 0.010), "middle": (0.7, 0.004), "poor": (0.4, 0.009), "small": (0.5, 0.001)}


def recording(requests: int) -> RecordedOutcomes:
    rows = [
        (f"r{i}", "prompt", "task", model, quality, cost)
        for i in range(requests)
        for model, (quality, cost) in MEANS.items()
    ]
    columns = ["request_id", "prompt", "task", "model", "quality", "cost_usd"]
    return RecordedOutcomes.from_frame(pd.DataFrame(rows, columns=columns))


@pytest.mark.parametrize(
    ("quality", "cost"),
    [
        (0.5, 0.001),
        (0.3, 0.001),
        (0.6, (0.001 + 0.004) / 2),
        (0.7, 0.004),
        (0.75, 0.007),
        (0.8, 0.010),
        (0.9, 0.010),
    ],
)
def test_cheapest_mix_at_a_quality(quality: float, cost: float) -> None:
    # Of the four models, poor is the dearer and the worse: no mix has it.
    assert equal_quality_mix(recording(4), quality) == pytest.approx(cost)


@pytest.mark.parametrize(("floor", "violated"), [(0.8, 0.0), (0.9, 1.0)])
def test_fields_of_one_model_are_what_one_finds_by_hand(floor: float, violated: float) -> None:
    recorded = recording(10)
    objective = Objective(Weights(), cost_cap_usd=0.01, quality_floor=floor)
    middle = make_policy(
        PolicySettings(name="static", uniform_share=1e-9),
        [Arm(model) for model in recorded.models],
        1,
        objective,
        static_arm=recorded.models.index("middle"),
    )
    told = summary("", recorded, middle, 0, replay(recorded, np.ones((10, 1)), middle, 0))

    assert told["quality_share"] == pytest.approx(0.7 / 0.8)
    assert told["saving"] == pytest.approx(0.6)
    assert told["mix_saving"] == pytest.approx(0.6)
    assert told["floor_violation_rate"] == violated


def test_violations_are_counted_in_whole_windows_that_do_not_overlap() -> None:
    quality = np.concatenate([np.full(500, 0.8), np.full(500, 0.6), np.full(499, 0.0)])
    assert floor_violations(quality, np.full(1499, 0.7)) == 0.5
    # The model one is measured by may be worse in a window, too.
    wanted = np.concatenate([np.full(500, 0.9), np.full(999, 0.5)])
    assert floor_violations(quality, wanted) == 0.5
    assert floor_violations(quality, np.full(1499, 0.6)) == 0.0
    assert floor_violations(np.full(3, 0.5), np.full(3, 0.6)) == 1.0


def test_floor_brings_four_fields_and_nothing_else_does() -> None:
    fields = {"quality_share", "saving", "floor_violation_rate", "mix_saving"}
    asked = ReplayRequest("paretobandit", ("random",))
    plain = run_replay(asked).result
    floored = run_replay(ReplayRequest("paretobandit", ("random",), quality_floor=0.95)).result

    assert set(floored) - set(plain) == fields
    # Random takes each of three models alike; gemini-2.5-pro is the best of them.
    best, cost = 0.9335, 0.015097
    assert floored["quality_share"] == pytest.approx(floored["quality"] / best, abs=1e-4)
    assert floored["saving"] == pytest.approx(1 - floored["cost_usd"] / cost, abs=1e-4)
    assert floored["saving"] == pytest.approx(2 / 3, abs=0.03)
    # Random does not follow the floor, but for the few requests that probe for the best arm.
    assert floored["reward"] == pytest.approx(plain["reward"], abs=0.001)
