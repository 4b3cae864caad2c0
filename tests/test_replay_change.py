"""After a shift, or with a better model from half-way on, the default policy is soon back.

"Back within 5 % of the regret before, in under 500 requests" is `excess_regret` of 0 or less, see
`optimizer.replay_summary.recovery`: regret from request 500 after the change on, beside 1.05 times
the regret before it, each set right by what even the best single model of its time loses to an
oracle that sees every outcome. The mean over four seeds is judged: of a single pass the difference
has a standard error of some thousandths, and that is as much as is to be seen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from infra.recordings import PARETOBANDIT, load_recording
from infra.replays import ReplayRequest, run_replay
from optimizer.policies import PolicySettings, make_policy
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm
from optimizer.replay import ReplayResult, replay
from optimizer.replay_conditions import Conditions
from optimizer.replay_summary import recovery
from optimizer.reward import Weights

BEST = "mistralai/mistral-large-2512"
SEEDS = 4
HALF = 3609 // 2


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The set in the wheel, with the quality of its best model at three tenths."""
    recorded = load_recording(PARETOBANDIT)
    quality = recorded.quality.copy()
    quality[:, recorded.models.index(BEST)] *= 0.3
    path = tmp_path_factory.mktemp("recording") / "collapsed.parquet"
    long(replace(recorded, quality=quality)).to_parquet(path)
    return str(path)


def long(recorded: RecordedOutcomes) -> pd.DataFrame:
    models = len(recorded.models)
    return pd.DataFrame(
        {
            "request_id": np.repeat(recorded.request_ids, models),
            "prompt": np.repeat(recorded.prompts, models),
            "task": np.repeat(recorded.tasks, models),
            "model": list(recorded.models) * len(recorded.prompts),
            "quality": recorded.quality.ravel(),
            "cost_usd": recorded.cost_usd.ravel(),
        }
    )


@pytest.fixture(params=["shift", "new arm"])
def changing(request: pytest.FixtureRequest, collapsed: str) -> ReplayRequest:
    if request.param == "shift":
        return ReplayRequest(PARETOBANDIT, shift=collapsed)
    return ReplayRequest(PARETOBANDIT, new_arm=BEST)


def test_default_policy_is_back_and_a_frozen_one_is_not(changing: ReplayRequest) -> None:
    live = run_replay(replace(changing, seeds=SEEDS)).result["change"]
    frozen = run_replay(replace(changing, frozen_after=HALF)).result["change"]

    assert live["at"] == frozen["at"] == HALF
    assert live["excess_regret"] <= 0, live
    assert frozen["excess_regret"] > 0.05, frozen
    assert frozen["regret_after"] > 3 * frozen["regret_before"]


def test_recovery_is_what_one_finds_by_hand() -> None:
    """A model of quality 1 that drops to 0.2; the policy stays with it."""
    steps, half = 4000, 2000
    quality = np.tile([1.0, 0.5], (steps, 1))
    later = np.tile([0.2, 0.5], (steps, 1))
    frame = long(world(quality)), long(world(later))
    both = RecordedOutcomes.from_frame(frame[0]).followed_by(RecordedOutcomes.from_frame(frame[1]))
    objective = both.objective(Weights(quality=1, cost=0, latency=0))
    policy = make_policy(
        PolicySettings(name="static", uniform_share=1e-9), [Arm("a"), Arm("b")], 1, objective
    )
    features = np.ones((2 * steps, 1))
    result = replay(both, features, policy, 0, conditions=Conditions(shift_at=steps))
    told = recovery(result, both.quality[result.order])

    assert told == pytest.approx(
        {
            "at": half,
            "regret_before": 0.0,
            "best_single_regret_before": 0.0,
            "regret_after": 0.3,
            "best_single_regret_after": 0.0,
            "excess_regret": 0.3,
        }
    )
    assert_windows(result, half)


def assert_windows(result: ReplayResult, half: int) -> None:
    """Only the 1,000 requests before the change and those from 500 to 1,500 after it count."""
    rewards = result.rewards.copy()
    rewards[: half - 1000] = rewards[half : half + 500] = rewards[half + 1500 :] = 0.0
    table = np.tile([0.0, 0.0], (len(rewards), 1))
    first, second = recovery(result, table), recovery(replace(result, rewards=rewards), table)
    assert first == second


def world(quality: np.ndarray) -> RecordedOutcomes:
    number = len(quality)
    names = tuple(f"r{i}" for i in range(number))
    return RecordedOutcomes(
        names, names, ("t",) * number, ("a", "b"), quality, np.ones((number, 2)), None
    )
