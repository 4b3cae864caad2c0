"""The search for policy settings, on a log whose answer is known, and resumed from PostgreSQL."""

import numpy as np
import pytest

from optimizer.errors import InvalidInput
from optimizer.offpolicy import LoggedDecisions
from optimizer.offpolicy.logged import LoggedRow
from optimizer.policies import Policy, PolicySettings, make_policy
from optimizer.policy_tuning import search
from optimizer.records import Arm, Outcome
from optimizer.reward import Objective, Weights
from optimizer.study_plots import draw_study
from serving.tuning_store import study_storage

ARMS = (Arm("small"), Arm("middle"), Arm("large"))
OBJECTIVE = Objective(Weights(quality=1, cost=0, latency=0))
STATIC = PolicySettings(name="static")


def make(settings: PolicySettings) -> Policy:
    return make_policy(settings, ARMS, 3, OBJECTIVE)


def logged(rows: int, seed: int = 0) -> LoggedDecisions:
    """Drawn uniformly; the second arm is right for one kind of request, the third for the other."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        kind = int(random.integers(2))
        arm = int(random.integers(3))
        chance = 0.9 if arm == 1 + kind else 0.3
        outcome = Outcome(quality=float(random.random() < chance))
        vector = np.array([1.0, float(kind), 1.0 - kind])
        made.append(LoggedRow(vector, arm, 1 / 3, float(row), outcome, "control"))
    return LoggedDecisions.from_rows(made, tuple(arm.model for arm in ARMS))


def test_what_learns_is_found_better_than_what_is_fixed() -> None:
    found, _ = search(logged(1500), OBJECTIVE, STATIC, make, "chat", trials=6)
    assert found.better and found.best.name != "static"
    assert found.present_reward == pytest.approx(0.3, abs=0.08)
    assert found.best_reward == pytest.approx(0.9, abs=0.08)


def test_a_search_goes_on_where_another_stopped(settings, tmp_path) -> None:
    storage = study_storage(settings().postgres_dsn())
    log = logged(600)
    first, _ = search(log, OBJECTIVE, STATIC, make, "chat", trials=3, storage=storage)
    assert first.trials == 3
    again, study = search(log, OBJECTIVE, STATIC, make, "chat", trials=9, storage=storage)
    assert again.trials == 9
    done, _ = search(log, OBJECTIVE, STATIC, make, "chat", trials=9, storage=storage)
    assert (done.trials, done.best) == (9, again.best)
    assert study.trials[0].params["name"] == "static"
    files = draw_study(study, tmp_path)
    assert [file.name for file in files] == ["history.png", "importance.png"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_too_short_a_log_is_refused() -> None:
    with pytest.raises(InvalidInput, match="400 decisions"):
        search(logged(100), OBJECTIVE, STATIC, make, "chat", trials=1)
