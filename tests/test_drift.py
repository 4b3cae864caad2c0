"""Drift: what has changed is found, and what has not raises no alarm."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.drift_page import draw, figures, page, table
from optimizer.drift import compare
from optimizer.drift_check import check
from optimizer.drift_settings import DriftSettings
from optimizer.errors import InvalidInput
from optimizer.quality_drop import find_drop

SETTINGS = DriftSettings()


def decisions(rows: int, seed: int, quality: float = 0.9, shift: float = 0.0) -> pd.DataFrame:
    """Ten requests a second of two arms; features are correlated, as embeddings are."""
    random = np.random.default_rng(seed)
    common = random.normal(size=(rows, 1))
    features = 0.7 * common + random.normal(size=(rows, 20)) + shift
    frame = pd.DataFrame(features, columns=[f"feature__{index}" for index in range(20)])
    arm = random.choice(["small", "large"], size=rows, p=[0.8, 0.2])
    return frame.assign(
        feature__task=random.integers(3, size=rows).astype(float),
        decided_at=pd.date_range("2026-01-01", periods=rows, freq="100ms", tz="UTC"),
        arm=arm,
        error=(random.random(rows) < 0.01) * 1.0,
        quality=(random.random(rows) < quality * np.where(arm == "small", 0.98, 1.0)) * 1.0,
        cost_usd=random.lognormal(-6, 1, rows),
        latency_s=random.lognormal(0, 0.5, rows),
        prediction=np.clip(0.9 + 0.02 * features[:, 0], 0, 1),
    )


def test_shuffled_traffic_raises_hardly_any_alarm() -> None:
    """The benchmark counts over more windows; 25 with at most one alarm."""
    everything = decisions(20_000, 1)
    random = np.random.default_rng(2)
    alarms = 0
    for _ in range(25):
        rows = random.permutation(len(everything))[:6000]
        drawn = everything.iloc[rows].assign(decided_at=everything["decided_at"][:6000].to_numpy())
        alarms += bool(check(drawn[:4500], drawn[4500:], SETTINGS).findings())
    assert alarms <= 1


def test_each_kind_of_drift_is_found_and_named() -> None:
    before = decisions(15_000, 1)
    moved = check(before, decisions(3000, 2, shift=0.6), SETTINGS)
    assert {one.what for one in moved.findings()} == {"features", "predictions"}
    other_arms = decisions(3000, 3).assign(arm=["large", "small"] * 1500, prediction=0.5)
    found = check(before, other_arms, SETTINGS).findings()
    assert {"decisions", "predictions"} <= {one.what for one in found}
    slow = decisions(3000, 4)
    slow["latency_s"] *= 3
    [anomaly] = check(before, slow, SETTINGS).findings()
    assert anomaly.what == "anomalies" and "latency in 5 minutes" in anomaly.reason


@pytest.mark.parametrize("seed", range(10))
def test_a_tenth_less_quality_is_found_within_five_minutes(seed: int) -> None:
    """10 requests/s; 0/1 qualities, the noisiest there are."""
    drop = check(decisions(20_000, seed), decisions(3000, 100 + seed, 0.81), SETTINGS).drop
    assert drop is not None and drop.rows <= 3000
    assert drop.after < 0.95 * drop.before


def test_a_policy_that_moves_to_a_worse_arm_is_no_drop_of_quality() -> None:
    random = np.random.default_rng(1)
    means = np.array([0.9, 0.6])
    before, after = random.integers(2, size=5000), np.ones(5000, dtype=int)
    told = [(random.random(5000) < means[arms]) * 1.0 for arms in (before, after)]
    assert find_drop(told[0], before, told[1], after, 0.05, 0.005) is None


def test_arms_without_reference_and_empty_windows_are_left_out() -> None:
    one, none = np.ones(500), np.zeros(500, dtype=int)
    assert find_drop(one, none, np.zeros(500), none + 3, 0.05, 0.01) is None
    assert find_drop(one, none, one[:0], none[:0], 0.05, 0.01) is None
    assert find_drop(one[:0], none[:0], one, none, 0.05, 0.01) is None


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"alpha": 1.0}, {"current": [1.5]}])
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    given = {"tolerance": 0.05, "alpha": 0.01, "current": [0.5]} | wrong
    zero = np.zeros(1, dtype=int)
    with pytest.raises(InvalidInput):
        find_drop(
            np.ones(1), zero, np.array(given["current"]), zero, given["tolerance"], given["alpha"]
        )


def test_large_windows_do_not_alarm_on_nothing() -> None:
    random = np.random.default_rng(1)
    before, after = (pd.DataFrame({"x": random.normal(at, 1, 200_000)}) for at in (0.0, 0.03))
    [found] = compare(before, after, {"x": "features"}, 0.01, 0.1)
    assert found.p_value < 1e-6 and found.psi < 0.01 and not found.drifted


def test_a_category_that_is_new_is_found_and_rare_ones_do_no_harm() -> None:
    before = pd.DataFrame({"task": ["a"] * 500 + ["b"] * 500 + ["c"]})
    after = pd.DataFrame({"task": ["a"] * 300 + ["b"] * 300 + ["new"] * 300})
    [found] = compare(before, after, {"task": "features"}, 0.01, 0.1)
    assert found.test == "chi2" and found.drifted
    same = pd.DataFrame({"task": ["a"] * 1000})
    assert compare(same, same, {"task": "features"}, 0.01, 0.1) == []


def test_too_little_traffic_is_said() -> None:
    found = check(decisions(50, 1), decisions(50, 2), SETTINGS)
    assert "100 are needed" in found.message and found.findings() == []
    assert "Not checked" in page("chat", pd.Timestamp("2026-01-01"), found, [])


def test_evidently_agrees_on_a_clear_case(tmp_path: Path) -> None:
    before, after = decisions(2000, 1), decisions(1000, 2)
    after[["feature__0", "feature__1"]] += 2.0
    found = check(before, after.drop(columns="prediction"), SETTINGS)
    drifted = {one.name for one in found.columns if one.drifted}
    assert drifted == {"feature__0", "feature__1"}
    assert draw(found, before, after, tmp_path / "drift.html") == 2
    assert "<html" in (tmp_path / "drift.html").read_text()[:2000].lower()
    assert figures(found)["columns_drifted"] == 2 == sum(row["drifted"] for row in table(found))
