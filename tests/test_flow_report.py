from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.report_page import draw, figures, page, table
from optimizer.records import Outcome
from optimizer.report import over_time, rewards_of, summarise
from optimizer.reward import Objective, Weights

START = datetime(2026, 1, 2, 3, tzinfo=UTC)
END = START + timedelta(hours=1)
OBJECTIVE = Objective(Weights(), cost_cap_usd=0.01)
COLUMNS = "decided_at model role propensity policy_version unit quality cost_usd latency_s feedback"


def outcomes(rows: int, *, control_share: float = 0.1, seed: int = 1) -> pd.DataFrame:
    """An hour of traffic: control costs 4.5 mUSD in the mean, the champion 1.7."""
    random = np.random.default_rng(seed)
    control = random.random(rows) < control_share
    large = random.random(rows) < np.where(control, 0.5, 0.1)
    return pd.DataFrame(
        {
            "decided_at": pd.date_range(START, END, rows + 1)[:-1],
            "model": np.where(large, "large", "small"),
            "role": np.where(control, "control", "champion"),
            "propensity": 0.5,
            "policy_version": 3.0,
            "unit": 2 * np.arange(rows) + np.arange(rows) // 2 % 2,
            "quality": (random.random(rows) < 0.9) * 1.0,
            "cost_usd": np.where(large, 0.008, 0.001),
            "latency_s": np.nan,
            "feedback": np.nan,
        }
    )


def empty() -> pd.DataFrame:
    frame = outcomes(2).iloc[:0]
    assert list(frame.columns) == COLUMNS.split()
    return frame


def test_the_saving_is_found_with_its_interval() -> None:
    summary = summarise(outcomes(5000), OBJECTIVE, 0.1)
    cost = next(one for one in summary.comparisons if one.measure == "cost_usd")
    assert cost.saving.low is not None and cost.saving.high is not None
    assert 0.3 < cost.saving.low < 1 - 1.7 / 4.5 < cost.saving.high < 0.8
    assert cost.difference.high is not None and cost.difference.high < 0
    assert summary.readiness.ready and summary.readiness.trusted
    saved = cost.saved_per_1000
    assert saved.low is not None and saved.high is not None and saved.value is not None
    assert saved.low < saved.value < saved.high
    assert saved.value == pytest.approx(2.8, abs=0.6)
    text = page("chat", START, END, summary)
    assert "USD per 1,000 requests (" in text and "Not ready" not in text
    assert figures(summary)["saved_usd_per_1000"] == saved.value
    assert figures(summary)["ready"] == 1.0
    assert sum(summary.arm_shares["control"].values()) == pytest.approx(1.0)


def test_fallback_and_incomplete_decisions_are_counted_and_left_out() -> None:
    frame = outcomes(1000)
    frame.loc[frame.index[::10], ["role", "quality"]] = ["fallback", 0.0]
    frame.loc[frame.index[5::10], "cost_usd"] = np.nan
    summary = summarise(frame, OBJECTIVE, 0.1)
    assert summary.decisions["fallback"] == summary.complete["fallback"] == 100
    assert sum(summary.decisions.values()) == 1000
    assert sum(summary.complete.values()) == 900
    assert all(one.difference.count in (0, 800) for one in summary.comparisons)
    text = page("chat", START, END, summary)
    assert "100 champion and control decisions lack a part" in text
    assert "Fallback decisions are not compared" in text


def test_a_share_of_control_against_the_settings_is_red() -> None:
    summary = summarise(outcomes(2000, control_share=0.3), OBJECTIVE, 0.1)
    assert not summary.readiness.trusted
    assert "Do not trust the comparison" in page("chat", START, END, summary)
    assert figures(summary)["ready"] == 0.0


def test_a_fallback_takes_the_place_of_the_policy_and_not_of_control() -> None:
    frame = outcomes(4000)
    frame.loc[(frame["role"] == "champion") & (frame.index % 2 == 0), "role"] = "fallback"
    assert summarise(frame, OBJECTIVE, 0.1).readiness.ready


def test_halves_of_the_control_that_differ_are_red() -> None:
    frame = outcomes(6000)
    frame.loc[(frame["role"] == "control") & (frame["unit"] % 2 == 1), "quality"] = 0.1
    readiness = summarise(frame, OBJECTIVE, 0.1).readiness
    assert not readiness.trusted
    assert len(readiness.reasons) == 1 and "halves of control differ" in readiness.reasons[0]


def test_right_traffic_is_hardly_ever_red() -> None:
    for seed in range(40):
        for rows in (60, 500, 3000):
            readiness = summarise(outcomes(3000, seed=seed)[:rows], OBJECTIVE, 0.1).readiness
            assert readiness.trusted, (seed, rows, readiness)


def test_requests_of_one_unit_count_once() -> None:
    """A unit with a thousand requests says no more than one with a single request."""
    frame = outcomes(400)
    busy = pd.concat([frame, *[frame[frame["unit"] == frame["unit"][0]]] * 999])
    once, often = (summarise(one, OBJECTIVE, 0.1) for one in (frame, busy))
    assert often.comparisons[1].difference == pytest.approx(once.comparisons[1].difference)
    assert often.readiness == once.readiness


def test_no_traffic_is_said() -> None:
    summary = summarise(empty(), OBJECTIVE, 0.1)
    assert "No decisions were logged" in page("chat", START, END, summary)
    assert table(summary) == [] and figures(summary) == {}


@pytest.mark.parametrize("planned", [0.0, 0.1])
def test_no_control_is_said(planned: float) -> None:
    summary = summarise(outcomes(500, control_share=0.0), OBJECTIVE, planned)
    assert "No control decision" in page("chat", START, END, summary)
    assert all(one.difference.value is None for one in summary.comparisons)
    assert figures(summary)["quality_treated"] == pytest.approx(0.9, abs=0.05)


def test_no_complete_outcome_is_said() -> None:
    summary = summarise(outcomes(50).assign(quality=np.nan), OBJECTIVE, 0.1)
    assert "No decision has a complete outcome" in page("chat", START, END, summary)


def test_few_controls_give_no_interval() -> None:
    summary = summarise(outcomes(40), OBJECTIVE, 0.1)
    text = page("chat", START, END, summary)
    assert "not enough data" in text and "Not ready for conclusions yet" in text
    assert summary.readiness.trusted and not summary.readiness.ready


def test_rewards_are_those_of_the_objective() -> None:
    random = np.random.default_rng(4)
    frame = outcomes(200)
    for column in ("quality", "cost_usd", "latency_s", "feedback"):
        frame[column] = np.where(random.random(200) < 0.3, np.nan, random.random(200))
    for weights in (Weights(), Weights(feedback=0.3), Weights(quality=0.0, latency=0.0)):
        objective = Objective(weights, cost_cap_usd=0.5, latency_cap_s=0.7)
        known = frame[["quality", "cost_usd", "latency_s", "feedback"]].itertuples(index=False)
        expected = [
            objective.reward(Outcome(*(None if np.isnan(part) else part for part in row)))
            for row in known
        ]
        wanted = [np.nan if reward is None else reward for reward in expected]
        assert rewards_of(frame, objective) == pytest.approx(wanted, nan_ok=True)


def test_means_over_time_cut_the_span_into_equal_pieces() -> None:
    means = over_time(outcomes(1200), START, END)
    assert means["bucket"].nunique() == 12
    assert means["bucket"].min() == pd.Timestamp(START)
    assert set(means["role"]) == {"champion", "control"}


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    file = tmp_path / "plot.png"
    draw(over_time(outcomes(300), START, END), START, END, file)
    assert file.read_bytes().startswith(b"\x89PNG")
