"""The search for a model's parameters: finds, prunes, refuses, is killed, goes on, and offers."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from optimizer.errors import InvalidInput
from optimizer.offpolicy.logged import LoggedDecisions, LoggedRow
from optimizer.parameter_evaluator import hopeless, parts_of
from optimizer.parameter_log import logged_settings, task_rows
from optimizer.parameter_proposals import Evaluated, Proposer
from optimizer.parameter_space import ParameterSpace
from optimizer.parameter_tuning import from_log, tune_parameters
from optimizer.records import Arm, Outcome
from optimizer.settings import Settings
from optimizer.tuning_settings import TuningSettings
from optimizer.worth import Worth
from serving import audit, experiments
from serving.reward_writer import connect
from serving.tuning_store import study_storage

SPACE = ParameterSpace({"temperature": (0.0, 1.5), "max_tokens": (64, 2048)})
WORTH = Worth(0.8, 0.2, 0.01)
PRESENT = {"temperature": 1.4, "max_tokens": 2048, "stop": "END"}


def judge(model: str, parameters: dict[str, Any], task: str) -> tuple[float, float]:
    """Best at 0.3 and 400 tokens."""
    assert parameters["stop"] == "END"
    away = (parameters["temperature"] - 0.3) ** 2
    away += 0.1 * np.log(parameters["max_tokens"] / 400) ** 2
    return max(0.9 - 0.5 * away, 0.0), 0.000004 * parameters["max_tokens"]


def search(evaluate: Any, trials: int, **more: Any) -> Any:
    return tune_parameters(
        evaluate, "small", "math", PRESENT, SPACE, WORTH, "study", trials, **more
    )


def test_better_parameters_are_found_and_the_rest_of_the_arm_is_kept() -> None:
    found, study = search(judge, 14)
    assert found.better and found.winner.worth > found.present.worth + 0.3
    assert abs(found.winner.parameters["temperature"] - 0.3) < 0.25
    assert found.winner.parameters["stop"] == "END"
    assert study.trials[0].user_attrs["parameters"] == PRESENT == found.present.parameters
    qualities, costs = zip(*((one.quality, one.cost_usd) for one in found.front), strict=True)
    assert list(qualities) == sorted(qualities) and list(costs) == sorted(costs)
    assert len(study.best_trials) == len(found.front)


def test_a_floor_takes_the_cheapest_that_is_good_enough() -> None:
    floor = Worth(0.5, 0.5, 0.01, quality_floor=0.9)
    found, _ = tune_parameters(
        judge, "small", "", {**PRESENT, "temperature": 0.3}, SPACE, floor, "study", 16
    )
    assert found.better and found.winner.cost_usd < 0.4 * found.present.cost_usd
    assert found.winner.quality > 0.85 * max(one.quality for one in found.front)


def test_a_hopeless_setting_is_pruned_and_one_on_the_front_is_not() -> None:
    asked = []

    def parts(model: str, parameters: dict[str, Any], task: str) -> Iterator[tuple[float, float]]:
        quality, cost = judge(model, parameters, task)
        random = np.random.default_rng(3)
        for _ in range(60):
            asked.append(1)
            yield float(np.clip(quality + random.normal(0, 0.1), 0, 1)), cost

    found, _ = search(parts, 12)
    assert found.pruned > 0 and found.trials + found.pruned == 12
    assert len(asked) < 12 * 50
    assert found.better
    good = np.array([(0.9, 0.001)] * 60)
    assert hopeless([(0.2, 0.002)] * 20, [good], WORTH)
    assert not hopeless([(0.2, 0.0005)] * 20, [good], WORTH)
    assert not hopeless([(0.2, 0.002)] * 5, [good], WORTH)


@pytest.mark.parametrize("given", [0.5, None, (0.5,), (1.5, 0.1), (0.5, -1.0), ("a", 1), [], "ab"])
def test_what_is_no_outcome_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"tuning\.evaluator"):
        search(lambda model, parameters, task: given, 2)
    assert list(parts_of((0.5, 0.1))) == [(0.5, 0.1)]
    assert list(parts_of([(0.5, 0.1), (0.2, 0.3)])) == [(0.5, 0.1), (0.2, 0.3)]


def test_an_evaluator_may_fail_now_and_then_but_not_always() -> None:
    calls = []

    def flaky(model: str, parameters: dict[str, Any], task: str) -> tuple[float, float]:
        calls.append(1)
        if len(calls) in (1, 4):
            raise ConnectionError("away")
        return judge(model, parameters, task)

    found, _ = search(flaky, 5)
    assert (found.trials, found.failed) == (5, 2)
    assert found.present.parameters == PRESENT

    def broken(model: str, parameters: dict[str, Any], task: str) -> tuple[float, float]:
        raise ConnectionError("away")

    with pytest.raises(InvalidInput, match=r"ConnectionError.*3 times in a row"):
        search(broken, 5)


def test_other_task_types_help_and_their_level_does_not_matter() -> None:
    known = [
        Evaluated(dict(parameters), judge("", parameters, "")[0] / 2, 0.002, 0.01, 0.0001, task)
        for task in ("code", "chat")
        for temperature in (0.0, 0.3, 0.6, 1.0, 1.4)
        for tokens in (100, 400, 1600)
        for parameters in ({"temperature": temperature, "max_tokens": tokens, "stop": "END"},)
    ]
    first = Evaluated(PRESENT, *judge("", PRESENT, ""), 0.01, 0.0001)
    proposed = Proposer(SPACE, WORTH, known).propose([first], 1)
    assert judge("", {**PRESENT, **proposed}, "")[0] > 0.8


ARMS = (
    Arm("small", {"temperature": 1.4}), Arm("small", {"temperature": 0.3}), Arm("large"),
)  # fmt: skip


def logged(rows: int) -> LoggedDecisions:
    """The second arm is better; tasks math and other, half each."""
    random, made = np.random.default_rng(4), []
    for row in range(rows):
        arm, maths = int(random.integers(3)), float(row % 2)
        quality = float(random.random() < (0.3, 0.8, 0.9)[arm])
        outcome = Outcome(quality=quality, cost_usd=(0.001, 0.001, 0.02)[arm])
        made.append(LoggedRow(np.array([1.0, maths]), arm, 1 / 3, float(row), outcome, "control"))
    return LoggedDecisions.from_rows(made, ("hot", "cold", "large"))


def test_a_log_answers_for_what_it_drew_alone() -> None:
    log = logged(2400)
    assert task_rows(log, ("1", "task=math"), "code") is None
    maths = task_rows(log, ("1", "task=math"), "math")
    assert maths is not None and len(maths) == 1200
    seen = logged_settings(maths, ARMS, [0, 1])
    space = ParameterSpace({"temperature": (0.0, 1.5)})
    present = dict(ARMS[0].parameters)
    found, study = from_log(seen, "small", "math", present, space, WORTH, "log")
    assert found.better and found.winner.parameters == {"temperature": 0.3}
    assert found.winner.quality == pytest.approx(0.8, abs=0.08)
    assert len(study.trials) == 2
    assert found.untried is not None and found.untried not in (present, {"temperature": 0.3})
    assert logged_settings(log.rows(slice(0, 150)), ARMS, [0, 1]) == []
    with pytest.raises(InvalidInput, match="two arms of the model"):
        from_log(seen[1:], "small", "math", present, space, WORTH, "log")


@pytest.mark.parametrize(
    "wrong",
    [{"evaluator": "judge"}, {"temperature": [1.0, 0.5]}, {"top_p": [0.0, 1.0]}, {"trials": 0}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TuningSettings(**wrong)


def test_a_study_goes_on_in_postgresql(settings: Callable[..., Settings]) -> None:
    storage = study_storage(settings().postgres_dsn())
    asked: list[dict[str, Any]] = []

    def dying(model: str, parameters: dict[str, Any], task: str) -> tuple[float, float]:
        asked.append(parameters)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return judge(model, parameters, task)

    with pytest.raises(KeyboardInterrupt):
        search(dying, 6, storage=storage)
    found, study = search(dying, 6, storage=storage)
    assert asked[4] == asked[3]
    assert (found.trials, found.failed, len(asked)) == (6, 1, 7)
    before = [one.params for one in study.trials]
    found, again = search(dying, 8, storage=storage)
    assert (found.trials, len(asked)) == (8, 9)
    assert [one.params for one in again.trials[:7]] == before


EVALUATOR = """
import os, signal
def judge(model, parameters, task):
    with open("calls", "a+") as file:
        file.write(task + chr(10))
        file.seek(0)
        if len(file.readlines()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    away = (parameters.get("temperature", 1.0) - (0.2 if task == "math" else 0.6)) ** 2
    return 0.9 - 0.3 * away, 0.001
"""


@pytest.mark.timeout(600)
def test_the_flow_is_killed_goes_on_and_drafts_the_winner(
    settings: Callable[..., Settings], flows: Any, mlflow_url: str, tmp_path: Any
) -> None:
    (tmp_path / "our_judge.py").write_text(EVALUATOR)
    point = {"name": "chat", "arms": [{"model": "small"}], "tasks": ["math", "code"]}
    tuning = {"evaluator": "our_judge:judge", "trials": 6, "top_p": None, "max_tokens": None}
    platform = settings(
        token_keys=["00" * 16], decision_points=[point], mlflow_url=mlflow_url, tuning=tuning
    )
    call = "from flows.tune import tune; print(tune())"
    killed = subprocess.run(
        [sys.executable, "-c", call], env=flows.environment(platform), cwd=tmp_path, timeout=280,
        capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -9
    assert "parameters of small are worth an experiment" in flows.run(platform, "tune()")
    calls = (tmp_path / "calls").read_text().split()
    assert (calls.count("math"), calls.count("code")) == (7, 6)

    page = flows.artifacts("tune-chat-parameters")[0]
    with connect(platform.postgres_dsn()) as connection:
        (draft,) = experiments.list_experiments(connection, "chat")
        assert [one.action for one in audit.trail(connection, "chat")] == ["experiment.create"]
        with pytest.raises(InvalidInput, match="no arm of chat is like that"):
            experiments.start(connection, platform, draft.id, actor="http", now=time.time())
    assert (draft.state, draft.made_by) == ("draft", "tune small")
    assert draft.design.variants[0].arms[0].model == "small" and draft.design.share == 0.2
    wanted = draft.design.variants[1].arms[0].parameters
    assert wanted is not None and abs(wanted["temperature"] - 0.2) < 0.3
    assert f'parameters: {{"temperature": {wanted["temperature"]}}}' in page
    assert f"llmopt experiments start {draft.id}" in page
    assert "winner" in flows.artifacts("tune-chat-parameters-front")[0]

    found = httpx.get(
        f"{mlflow_url}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": "parameter-tuning"},
    ).json()["experiment"]["experiment_id"]
    runs = httpx.post(
        f"{mlflow_url}/api/2.0/mlflow/runs/search", json={"experiment_ids": [found]}
    ).json()["runs"]
    assert len(runs) == 2
    files = httpx.get(
        f"{mlflow_url}/api/2.0/mlflow/artifacts/list",
        params={"run_id": runs[0]["info"]["run_id"]},
    ).json()["files"]
    assert {one["path"] for one in files} == {"history.png", "importance.png", "pareto.png"}

    # What the page says is what makes the draft start.
    arms = [{"model": "small"}, {"model": "small", "parameters": dict(wanted)}]
    arms += [
        {"model": "small", "parameters": dict(one.arms[0].parameters or {})}
        for one in draft.design.variants[2:]
    ]
    wider = settings(decision_points=[point | {"arms": arms}])
    with connect(wider.postgres_dsn()) as connection:
        from feature_repo.embedding import Embedder
        from serving import plans
        from serving.live_point import make_encoder

        live = wider.decision_point("chat")
        plans.ensure(connection, live, make_encoder(live, Embedder()).schema, 1.0)
        started = experiments.start(connection, wider, draft.id, actor="http", now=time.time())
    assert started.state == "running"
