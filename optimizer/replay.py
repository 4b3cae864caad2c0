"""Replay: one pass of a policy over recorded outcomes, where every arm's outcome is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

from optimizer.baselines import Flags, baselines, reward_table
from optimizer.policies.base import Policy, draw
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Arm, Indices, Matrix, Observation, Outcome, Vector
from optimizer.replay_budget import Purse
from optimizer.replay_conditions import Conditions, Course, course
from optimizer.replay_history import PassHistory

__all__ = [
    "ReplayResult",
    "baselines",
    "replay",
    "reward_table",
]


@dataclass(frozen=True)
class ReplayResult:
    """What one pass gave.

    Attributes
    ----------
    order
        Shape (n,): row of the request at each step.
    arms, propensities, rewards, quality, cost_usd, latency_s
        Shape (n,), in the order of the pass.
    there
        Shape (n, k): whether a model could be had.
    best
        Shape (n,): the highest reward of those models.
    decide_us
        Shape (n,): time of each decision (features given) in microseconds.
    learned, lost
        Rewards the policy learned, and rewards that never come; the rest would come later, or came
        after the policy was frozen.
    change
        The step at which the world changed, or None.
    conditions
        Of the pass.
    """

    order: Indices
    arms: Indices
    propensities: Vector
    rewards: Vector
    quality: Vector
    cost_usd: Vector
    latency_s: Vector | None
    there: Flags
    best: Vector
    decide_us: Vector
    learned: int
    lost: int
    change: int | None
    conditions: Conditions


def replay(
    recorded: RecordedOutcomes,
    features: Matrix,
    policy: Policy,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
    conditions: Conditions = Conditions(),  # noqa: B008  immutable
    history: PassHistory | None = None,
) -> ReplayResult:
    """Run ``policy`` once over the requests in an order drawn from ``seed``.

    The outcome of the chosen model is revealed and learned before the next request, unless
    ``conditions`` say otherwise. As in a ledger, the position of a reward is its number, counted
    from 1, and the version of a decision the number of rewards learned by then.

    Parameters
    ----------
    recorded
        The truth, shape (n, k).
    features
        Shape (n, d).
    policy
        Arms in the order of ``recorded.models``, without the last where that arrives half-way; it
        is taught in place.
    seed
        See `optimizer.replay_conditions.course`.
    on_step
        Called after each request with its step, for a progress bar.
    conditions
        Late and lost rewards, changes of the world, a budget.
    history
        Fills the columns of past requests, new for each pass; None if there are no such columns.

    Raises
    ------
    InvalidInput
        If the budget does not pay for the cheapest model.
    """
    path = course(len(recorded.prompts), seed, conditions)
    there = _there(path, len(recorded.models), conditions)
    purse = None
    if conditions.budget_usd is not None:
        purse = Purse(conditions.budget_usd, recorded.take(path.order), there)
    requests, uniform, due = path.order.tolist(), path.uniform.tolist(), path.due()
    arrival = path.arrival.tolist()
    steps = len(requests)
    learns_until = steps if conditions.frozen_after is None else conditions.frozen_after
    arrives_at = path.change if conditions.new_arm else None
    arms = np.zeros(steps, dtype=np.int64)
    propensities, decide_us = np.zeros(steps), np.zeros(steps)
    versions = [0] * steps
    nothing = Outcome()
    learned = come = 0
    # With a history a request's features depend on the step: learned from is what was decided by.
    seen: list[Vector] = []
    for step, request in enumerate(requests):
        if step == arrives_at and step < learns_until:
            policy.set_arms([*policy.arm_ids, Arm(recorded.models[-1]).id])
        vector = features[request]
        if history is not None:
            vector = history.fill(request, vector)
            seen.append(vector)
        candidates = None if purse is None else purse.candidates(step, len(policy.arm_ids))
        started = perf_counter_ns()
        probabilities = policy.probabilities(vector, candidates)
        arm = draw(probabilities, uniform[step])
        decide_us[step] = (perf_counter_ns() - started) / 1000
        arms[step], propensities[step], versions[step] = arm, probabilities[arm], learned
        if purse is not None:
            purse.pay(float(recorded.cost_usd[request, arm]))
        news = []
        while step < learns_until and come < len(due) and arrival[due[come]] <= step:
            then = due[come]
            come += 1
            row, chosen = requests[then], int(arms[then])
            outcome = recorded.outcome(row, chosen)
            known = features[row] if history is None else seen[then]
            news.append(Observation(chosen, known, nothing, outcome, versions[then], come))
            if history is not None:
                history.learn(row, news[-1])
        if news:
            policy.learn(news)
            learned = come
        on_step(step)
    reward = reward_table(recorded, policy.objective)[path.order]
    rows = np.arange(steps)
    latency = recorded.latency_s
    return ReplayResult(
        path.order,
        arms,
        propensities,
        reward[rows, arms],
        recorded.quality[path.order, arms],
        recorded.cost_usd[path.order, arms],
        None if latency is None else latency[path.order, arms],
        there,
        np.where(there, reward, -np.inf).max(axis=1),
        decide_us,
        learned,
        steps - len(due),
        path.change,
        conditions,
    )


def _there(path: Course, models: int, conditions: Conditions) -> Flags:
    """Shape (n, models): whether a model can be had at each step."""
    there = np.ones((len(path.order), models), dtype=bool)
    if conditions.new_arm:
        there[: path.change, -1] = False
    return there
