"""The columns of logged decisions: read, written, and refused by name."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from optimizer.errors import InvalidRecording
from optimizer.offpolicy import LoggedDecisions


def test_a_log_survives_its_table() -> None:
    random = np.random.default_rng(6)
    frame = pd.DataFrame(
        {
            "decided_at": 1.7e9 + np.arange(50) / 8,
            "model": np.array(["a", "b"])[random.integers(2, size=50)],
            "propensity": random.uniform(0.1, 1.0, size=50),
            "quality": np.where(np.arange(50) % 7 == 0, np.nan, random.random(50)),
            "cost_usd": random.random(50),
            "feature_x": random.normal(size=50),
        }
    )
    log = LoggedDecisions.from_frame(frame)
    again = LoggedDecisions.from_frame(log.to_frame())
    assert again.arm_names == log.arm_names
    for name in ("features", "arms", "propensities", "quality", "cost_usd", "latency_s"):
        assert np.array_equal(getattr(again, name), getattr(log, name), equal_nan=True)
    assert again.decided_at == pytest.approx(log.decided_at)


def test_rows_are_put_in_the_order_of_time_and_a_constant_in_front() -> None:
    frame = pd.DataFrame(
        {
            "decided_at": ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00+00:00"],
            "model": ["late", "early"],
            "propensity": [0.5, 0.25],
            "feature_x": [3.0, 4.0],
        }
    )
    log = LoggedDecisions.from_frame(frame)
    assert [log.arm_names[arm] for arm in log.arms] == ["early", "late"]
    assert log.features.tolist() == [[1.0, 4.0], [1.0, 3.0]]
    assert np.isnan(log.quality).all()


GOOD = {"decided_at": [1.0, 2.0], "model": ["a", "b"], "propensity": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"propensity": [0.5, 0.0]}, "propensity, row 2=0.0"),
        ({"propensity": [1.5, 0.5]}, "propensity, row 1=1.5"),
        ({"propensity": [0.5, None]}, "propensity, row 2"),
        ({"propensity": ["half", 0.5]}, "propensity='half'"),
        ({"quality": [0.5, 1.5]}, "quality, row 2=1.5"),
        ({"cost_usd": [-1.0, 0.5]}, "cost_usd, row 1=-1.0"),
        ({"latency_s": [math.inf, 0.5]}, "latency_s, row 1=inf"),
        ({"feature_x": [math.nan, 0.5]}, "features, row 1"),
        ({"decided_at": ["yesterday", "today"]}, "decided_at='yesterday'"),
        ({"decided_at": [1.0, None]}, "decided_at, row 2"),
        ({"model": ["a", None]}, "model=None"),
    ],
)
def test_a_wrong_row_is_named(columns: dict[str, list[object]], named: str) -> None:
    with pytest.raises(InvalidRecording) as caught:
        LoggedDecisions.from_frame(pd.DataFrame(GOOD | columns))
    assert named in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_column_is_named(missing: str) -> None:
    with pytest.raises(InvalidRecording, match=missing):
        LoggedDecisions.from_frame(pd.DataFrame(GOOD).drop(columns=missing))
