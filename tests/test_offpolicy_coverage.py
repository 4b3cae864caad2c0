"""Off-policy estimates against the truth, which recorded outcomes give: every arm's is known.

Three target policies on two logging policies, one of each learning. Logs are made for all repeats
at once; the truth of a row is the mean of its recorded rewards under the target's probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from infra.recordings import load_recording
from optimizer.offpolicy import ESTIMATORS, LoggedDecisions, targets
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.estimators import Rows
from optimizer.offpolicy.evaluation import default_clip, estimate
from optimizer.offpolicy.outcome_model import predict
from optimizer.policies import PolicySettings, make_policy
from optimizer.policies.base import draw
from optimizer.records import Arm, Indices, Matrix, Observation, Outcome, Vector
from optimizer.reward import Weights

REPEATS = 100
ROWS = 1200
LOOKS = (400, 1200)
EXPLORED = 0.3
ENOUGH_COVERED = 93

RECORDED = load_recording("paretobandit")
OBJECTIVE = RECORDED.objective(Weights())
REWARDS = OBJECTIVE.rewards(RECORDED.quality, RECORDED.cost_usd, None)
TASKS = sorted(set(RECORDED.tasks))
TASK = np.array([TASKS.index(task) for task in RECORDED.tasks])
FEATURES = np.column_stack([np.ones(len(TASK)), np.eye(len(TASKS))[TASK]])
ARMS = len(RECORDED.models)
REPEAT = np.arange(REPEATS)


@dataclass(frozen=True)
class Logs:
    """A log for each repeat; arrays of shape (repeats, rows)."""

    requests: Indices
    arms: Indices
    propensities: Vector

    def outcomes(self) -> Matrix:
        return REWARDS[self.requests, self.arms]


def logged_by(policy: str) -> Logs:
    """Requests in another order for each repeat; the arms drawn uniformly, or by a learner."""
    random = np.random.default_rng(20)
    requests = np.array([random.permutation(len(TASK))[:ROWS] for _ in range(REPEATS)])
    uniform = random.random((REPEATS, ROWS))
    if policy == "uniform":
        return Logs(requests, (uniform * ARMS).astype(int), np.full(uniform.shape, 1 / ARMS))
    arms, propensities = np.zeros((REPEATS, ROWS), dtype=int), np.zeros((REPEATS, ROWS))
    total, count = np.ones((REPEATS, ARMS)), np.ones((REPEATS, ARMS))
    for row in range(ROWS):
        chances = np.full((REPEATS, ARMS), EXPLORED / ARMS)
        chances[REPEAT, (total / count).argmax(axis=1)] += 1 - EXPLORED
        drawn = (chances.cumsum(axis=1) < uniform[:, row, None]).sum(axis=1).clip(0, ARMS - 1)
        arms[:, row], propensities[:, row] = drawn, chances[REPEAT, drawn]
        total[REPEAT, drawn] += REWARDS[requests[:, row], drawn]
        count[REPEAT, drawn] += 1
    return Logs(requests, arms, propensities)


def target(name: str, logs: Logs) -> Matrix:
    """Probabilities of shape (repeats, rows, arms)."""
    if name == "one model":
        return np.broadcast_to(np.eye(ARMS)[ARMS - 1], (REPEATS, ROWS, ARMS))
    tasks = TASK[logs.requests]
    if name == "by task":
        return 0.8 * np.eye(ARMS)[(tasks * 7 + 3) % ARMS] + 0.2 / ARMS
    chances = np.full((REPEATS, ROWS, ARMS), 0.1 / ARMS)
    total = np.ones((REPEATS, len(TASKS), ARMS))
    count = np.ones((REPEATS, len(TASKS), ARMS))
    for row in range(ROWS):
        task, arm = tasks[:, row], logs.arms[:, row]
        chances[REPEAT, row, (total / count)[REPEAT, task].argmax(axis=1)] += 0.9
        total[REPEAT, task, arm] += REWARDS[logs.requests[:, row], arm]
        count[REPEAT, task, arm] += 1
    return chances


@pytest.mark.parametrize("policy", ["one model", "by task", "learning"])
@pytest.mark.parametrize("logger", ["uniform", "learning"])
def test_intervals_cover_the_truth_and_doubly_robust_errs_least(logger: str, policy: str) -> None:
    logs = logged_by(logger)
    chances, outcomes = target(policy, logs), logs.outcomes()
    truth = (chances * REWARDS[logs.requests]).sum(axis=2)
    covered = dict.fromkeys(ESTIMATORS, 0)
    covered_difference = dict.fromkeys(ESTIMATORS, 0)
    squares = dict.fromkeys(ESTIMATORS, 0.0)
    widths = dict.fromkeys(ESTIMATORS, 0.0)
    for repeat in range(REPEATS):
        of_drawn = chances[repeat, np.arange(ROWS), logs.arms[repeat]]
        features, arms, seen = FEATURES[logs.requests[repeat]], logs.arms[repeat], outcomes[repeat]
        model = predict(features, arms, seen, chances[repeat])
        draws = Draws(of_drawn, logs.propensities[repeat])
        rows = Rows(draws, seen, model, default_clip(ARMS))
        for name in ESTIMATORS:
            always = True
            for look in LOOKS:
                found = estimate(name, rows[:look])
                always &= found.low <= truth[repeat, :look].mean() <= found.high
            covered[name] += always
            widths[name] += found.high - found.low
            squares[name] += (found.value - truth[repeat].mean()) ** 2
            gained = estimate(name, rows, against_logged=True)
            real = truth[repeat].mean() - seen.mean()
            covered_difference[name] += gained.low <= real <= gained.high
    assert min(covered.values()) >= ENOUGH_COVERED, covered
    assert min(covered_difference.values()) >= ENOUGH_COVERED, covered_difference
    assert widths["dr"] < widths["ips"], widths
    assert squares["dr"] < squares["ips"] / 4, squares
    assert squares["dr"] < squares["dm"], squares


def test_costs_are_covered_as_well() -> None:
    logs = logged_by("learning")
    chances = target("by task", logs)
    costs = RECORDED.cost_usd[logs.requests]
    covered = dict.fromkeys(ESTIMATORS, 0)
    for repeat in range(REPEATS):
        row = np.arange(ROWS)
        seen = costs[repeat, row, logs.arms[repeat]]
        model = predict(FEATURES[logs.requests[repeat]], logs.arms[repeat], seen, chances[repeat])
        draws = Draws(chances[repeat, row, logs.arms[repeat]], logs.propensities[repeat])
        rows = Rows(draws, seen, model, default_clip(ARMS))
        truth = (chances[repeat] * costs[repeat]).sum(axis=1).mean()
        for name in ESTIMATORS:
            found = estimate(name, rows, bounded=False)
            covered[name] += found.low <= truth <= found.high
    assert min(covered.values()) >= ENOUGH_COVERED, covered


def test_policies_of_ours_on_logs_of_ours() -> None:
    """Thompson draws the log and learns; LinUCB learns along it."""
    rows, covered = 300, 0
    arms = [Arm(model) for model in RECORDED.models]
    for repeat in range(6):
        random = np.random.default_rng((30, repeat))
        requests = random.permutation(len(TASK))[:rows]
        settings = PolicySettings(name="thompson", uniform_share=0.3)
        drawing = make_policy(settings, arms, FEATURES.shape[1], OBJECTIVE)
        drawn, propensities = np.zeros(rows, dtype=int), np.zeros(rows)
        for row, request in enumerate(requests):
            chances = drawing.probabilities(FEATURES[request])
            drawn[row] = draw(chances, random.random())
            propensities[row] = chances[drawn[row]]
            outcome = RECORDED.outcome(request, drawn[row])
            drawing.learn([Observation(drawn[row], FEATURES[request], Outcome(), outcome)])
        unknown = np.full(rows, np.nan)
        log = LoggedDecisions(
            FEATURES[requests],
            drawn,
            propensities,
            np.arange(rows, dtype=float),
            RECORDED.quality[requests, drawn],
            RECORDED.cost_usd[requests, drawn],
            unknown,
            unknown,
            RECORDED.models,
        )
        learner = make_policy(PolicySettings(name="linucb"), arms, FEATURES.shape[1], OBJECTIVE)
        wanted = targets.learning(log, learner)
        seen = log.rewards(OBJECTIVE)
        model = predict(log.features, log.arms, seen, wanted)
        of_drawn = wanted[np.arange(rows), log.arms]
        found = estimate("dr", Rows(Draws(of_drawn, log.propensities), seen, model, 30.0))
        covered += found.low <= (wanted * REWARDS[requests]).sum(axis=1).mean() <= found.high
    assert covered == 6
