"""The front against a truth that is known, and what `llmopt pareto` prints and draws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from infra.cli import main
from infra.recordings import load_recording
from optimizer.confidence import Estimate
from optimizer.errors import InvalidInput
from optimizer.offpolicy import LoggedDecisions
from optimizer.pareto import Candidate, candidates, place
from optimizer.records import Vector

RECORDED = load_recording("paretobandit")
TASKS = sorted(set(RECORDED.tasks))
TASK = np.array([TASKS.index(task) for task in RECORDED.tasks])
FEATURES = np.column_stack([np.ones(len(TASK)), np.eye(len(TASKS))[TASK]])

# Of five arms "poor" is dominated by "good", and by nobody else in every measure.
ARMS = ("tiny", "small", "poor", "good", "huge")
QUALITY = np.array([0.60, 0.75, 0.70, 0.90, 0.97])
COST_USD = np.array([0.0001, 0.0006, 0.0030, 0.0015, 0.0120])
LATENCY_S = np.array([0.4, 0.8, 3.0, 2.0, 4.0])
SHARES = np.array([0.05, 0.20, 0.05, 0.65, 0.05])


def world(rows: int, seed: int, control_share: float = 0.1) -> LoggedDecisions:
    """A policy that does not learn, beside a control."""
    random = np.random.default_rng(seed)
    control = random.random(rows) < control_share
    arms = np.where(control, random.integers(5, size=rows), random.choice(5, rows, p=SHARES))
    return LoggedDecisions(
        np.ones((rows, 1)),
        arms,
        np.where(control, 0.2, SHARES[arms]),
        1.75e9 + 10.0 * np.arange(rows),
        (random.random(rows) < QUALITY[arms]) * 1.0,
        COST_USD[arms] * random.lognormal(-0.08, 0.4, rows),
        LATENCY_S[arms] * random.lognormal(-0.08, 0.4, rows),
        np.full(rows, np.nan),
        ARMS,
        np.where(control, "control", "champion"),
    )


def standings(log: LoggedDecisions) -> dict[str, str]:
    return {one.candidate.name: one.standing for one in place(candidates(log))}


def test_with_enough_rows_the_front_is_certain() -> None:
    found = place(candidates(world(40_000, 1)))
    by_name = {one.candidate.name: one for one in found}
    assert {name: by_name[name].standing for name in ARMS} == {
        "tiny": "front",
        "small": "front",
        "poor": "dominated",
        "good": "front",
        "huge": "front",
    }
    assert "good" in by_name["poor"].dominated_by
    assert by_name["champion"].candidate.kind == "policy"
    costs = by_name["champion"].candidate.measures["cost_usd"]
    assert costs.low < SHARES @ COST_USD < costs.high


def test_with_few_rows_nothing_is_certain() -> None:
    found = standings(world(300, 2))
    assert set(found.values()) <= {"perhaps front", "perhaps dominated"}


def test_what_is_called_certain_is_true_and_intervals_hold_together() -> None:
    """On logs of a learner over recorded outcomes; two looks, every candidate, every measure."""
    missed, seeds = 0, 40
    for seed in range(seeds):
        log, chances, order = learned(1600, seed)
        for look in (600, 1600):
            part = log.rows(slice(0, look))
            truth = true_means(chances[:look], order[:look])
            found = place(candidates(part))
            held = True
            for one in found:
                for measure, estimate in one.candidate.measures.items():
                    value = truth[one.candidate.name][measure]
                    held &= estimate.low is None or estimate.low <= value <= estimate.high
            missed += not held
            exact = {one.candidate.name: one for one in place(known_exactly(truth))}
            for one in found if held else ():
                if one.standing in ("front", "dominated"):
                    assert exact[one.candidate.name].standing == one.standing
    assert missed <= 0.05 * seeds


def learned(rows: int, seed: int) -> tuple[LoggedDecisions, Vector, Vector]:
    """A greedy learner of the mean reward, 10 % control; its propensities fall to 1 %."""
    random = np.random.default_rng((7, seed))
    order = random.permutation(len(TASK))[:rows]
    size = len(RECORDED.models)
    reward = RECORDED.quality - 20 * RECORDED.cost_usd
    total, count = np.ones(size), np.ones(size)
    control, uniform = random.random(rows) < 0.1, random.random(rows)
    arms, propensities = np.zeros(rows, dtype=int), np.zeros(rows)
    chances = np.full((rows, size), 0.03 / size)
    for row, request in enumerate(order):
        chances[row, (total / count).argmax()] += 0.97
        used = np.full(size, 1 / size) if control[row] else chances[row]
        arm = min(int((used.cumsum() < uniform[row]).sum()), size - 1)
        arms[row], propensities[row] = arm, used[arm]
        total[arm] += reward[request, arm]
        count[arm] += 1
    unknown = np.full(rows, np.nan)
    log = LoggedDecisions(
        FEATURES[order],
        arms,
        propensities,
        np.arange(rows, dtype=float),
        RECORDED.quality[order, arms],
        RECORDED.cost_usd[order, arms],
        unknown,
        unknown,
        RECORDED.models,
        np.where(control, "control", "champion"),
    )
    return log, chances, order


def true_means(chances: Vector, order: Vector) -> dict[str, dict[str, float]]:
    size = len(RECORDED.models)
    policies = {
        **{name: np.eye(size)[index][None] for index, name in enumerate(RECORDED.models)},
        "champion": chances,
        "control": np.full((1, size), 1 / size),
    }
    tables = {"quality": RECORDED.quality[order], "cost_usd": RECORDED.cost_usd[order]}
    return {
        name: {
            measure: float((of_policy * table).sum(axis=1).mean())
            for measure, table in tables.items()
        }
        for name, of_policy in policies.items()
    }


def known_exactly(truth: dict[str, dict[str, float]]) -> list[Candidate]:
    return [
        Candidate(name, "arm", {measure: Estimate(v, v, v, 1) for measure, v in measures.items()})
        for name, measures in truth.items()
    ]


numbers = st.floats(0.0, 1.0)
triples = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=8)


@given(triples)
def test_of_points_known_exactly_the_front_is_what_nobody_dominates(
    points: list[tuple[float, float, float]],
) -> None:
    given_ = [
        Candidate(
            str(index),
            "arm",
            {
                name: Estimate(value, value, value, 1)
                for name, value in zip(("quality", "cost_usd", "latency_s"), point, strict=True)
            },
        )
        for index, point in enumerate(points)
    ]
    for (quality, cost, latency), found in zip(points, place(given_), strict=True):
        better = any(
            q >= quality and c <= cost and late <= latency
            for q, c, late in points
            if (q, c, late) != (quality, cost, latency)
        )
        assert found.standing == ("dominated" if better else "front")


@given(triples, st.floats(0.0, 0.3))
def test_wider_intervals_only_take_certainty_away(
    points: list[tuple[float, float, float]], half: float
) -> None:
    def made(width: float) -> list[Candidate]:
        return [
            Candidate(
                str(index),
                "arm",
                {
                    name: Estimate(value, value - width, value + width, 1)
                    for name, value in zip(("quality", "cost_usd"), point, strict=False)
                },
            )
            for index, point in enumerate(points)
        ]

    for sharp, wide in zip(place(made(0.0)), place(made(half)), strict=True):
        assert wide.standing.removeprefix("perhaps ") == sharp.standing
        if wide.standing == "dominated":
            assert set(wide.dominated_by) <= set(sharp.dominated_by)


def test_an_arm_never_drawn_is_unknown() -> None:
    log = world(500, 3)
    from dataclasses import replace

    found = standings(replace(log, arm_names=(*ARMS, "new")))
    assert found["new"] == "unknown" and found["good"] != "unknown"


def test_the_control_helps_where_the_policy_hardly_draws_an_arm() -> None:
    """The propensity of "huge" outside the control is 5 %; by all rows alone it is less sure."""
    from dataclasses import replace

    log = world(6000, 4, control_share=0.4)
    index = ARMS.index("huge")
    both = candidates(log)[index].measures["quality"]
    alone = candidates(replace(log, roles=None))[index].measures["quality"]
    assert both.high - both.low < alone.high - alone.low


def test_a_log_without_outcomes_is_refused() -> None:
    from dataclasses import replace

    unknown = np.full(50, np.nan)
    log = replace(world(50, 5), quality=unknown, cost_usd=unknown, latency_s=unknown)
    with pytest.raises(InvalidInput, match="no outcomes"):
        candidates(log)
    with pytest.raises(InvalidInput, match="alpha"):
        candidates(world(50, 5), alpha=1.0)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    path = tmp_path / "log.parquet"
    world(4000, 6).to_frame().to_parquet(path, index=False)
    return path


def ask(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(main, ["pareto", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr or result.stdout
    return json.loads(result.stdout), result.stderr


def test_the_command_prints_a_table_and_draws(file: Path) -> None:
    found, shown = ask("--log", str(file), "--plot", "front.png")
    assert found["decisions"] == 4000 and found["level"] == 0.95
    names = [one["name"] for one in found["candidates"]]
    assert names == [*sorted(ARMS), "champion", "control"]
    for one in found["candidates"]:
        for measure in ("quality", "cost_usd", "latency_s"):
            assert one[measure]["low"] <= one[measure]["value"] <= one[measure]["high"]
        assert math.isfinite(one["cost_usd"]["high"])
    assert "hold together at 95 %" in " ".join(shown.split())
    assert "policy:" in shown and "dominated" in shown
    with Image.open("front.png") as picture:
        picture.load()
        assert min(picture.size) > 600
        assert len(set(picture.convert("RGB").resize((64, 64)).get_flattened_data())) > 20


def test_a_log_that_does_not_tell_roles_compares_arms(file: Path) -> None:
    world(400, 7).to_frame().drop(columns=["role", "latency_s"]).to_csv("plain.csv", index=False)
    found, _ = ask("--log", "plain.csv")
    assert {one["kind"] for one in found["candidates"]} == {"arm"}
    assert any("does not tell who decided" in note for note in found["notes"])
    assert "latency_s" not in found["candidates"][0]


def test_a_file_that_cannot_be_written_is_refused(file: Path) -> None:
    command = ["pareto", "--log", str(file), "--plot", "nowhere/front.png", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["field"] == "plot"
