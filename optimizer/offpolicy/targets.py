"""Target policies: the probability of every arm at every logged decision, had they decided.

What is evaluated at a row may depend on that row's features and on earlier rows, on nothing else:
this is what keeps the estimates unbiased, also for a policy that learns along the log.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.policies import Policy
from optimizer.records import Matrix, Observation, Outcome

__all__ = ["always", "frozen", "learning", "uniform"]

OnStep = Callable[[int, int], None]


def always(log: LoggedDecisions, arm_names: tuple[str, ...]) -> Matrix:
    """Shape (n, k): all on the named arms, evenly where there are several.

    Raises
    ------
    InvalidInput
        If none is named, or one is no arm of the log.
    """
    unknown = set(arm_names) - set(log.arm_names)
    if unknown or not arm_names:
        raise InvalidInput("policy", sorted(unknown), f"arms of the log: {list(log.arm_names)}")
    chosen = np.array([name in arm_names for name in log.arm_names], dtype=np.float64)
    return np.tile(chosen / chosen.sum(), (len(log), 1))


def uniform(log: LoggedDecisions) -> Matrix:
    """Shape (n, k): the same probability for every arm."""
    return np.full((len(log), log.arm_count), 1.0 / log.arm_count)


def frozen(
    log: LoggedDecisions, policy: Policy, on_step: OnStep = lambda done, total: None
) -> Matrix:
    """Shape (n, k): a policy that does not learn any more.

    Parameters
    ----------
    log
        Rows that it has not learned from; else the estimate flatters it.
    policy
        Arms in the order of ``log.arm_names``; it is not changed.
    on_step
        Called with the number of rows done and of all.
    """
    _check(log, policy)
    result = np.empty((len(log), log.arm_count))
    for row, vector in enumerate(log.features):
        result[row] = policy.probabilities(vector)
        on_step(row + 1, len(log))
    return result


def learning(
    log: LoggedDecisions,
    policy: Policy,
    batch: int = 1,
    on_step: OnStep = lambda done, total: None,
) -> Matrix:
    """Shape (n, k): a policy that learns along the log.

    It decides each row knowing only strictly earlier rows: what the log drew there, and what came
    of it. So this is the policy taught by the log's choices, where by itself it would partly have
    chosen otherwise; and rewards reach it without delay.

    Parameters
    ----------
    log
        In time order; rows without any outcome teach nothing.
    policy
        Arms in the order of ``log.arm_names``; it is taught in place.
    batch
        Rows between updates, 1 or more: learning after each is slow on long logs.
    on_step
        Called with the number of rows done and of all.
    """
    _check(log, policy)
    if batch < 1:
        raise InvalidInput("batch", batch, "a number of rows, 1 or more")
    result = np.empty((len(log), log.arm_count))
    nothing = Outcome()
    waiting: list[Observation] = []
    learned = told = 0
    for row, vector in enumerate(log.features):
        if row % batch == 0 and waiting:
            policy.learn(waiting)
            waiting.clear()
            learned = told
        result[row] = policy.probabilities(vector)
        outcome = log.outcome(row)
        if outcome != nothing:
            told += 1
            arm = int(log.arms[row])
            waiting.append(Observation(arm, vector, nothing, outcome, learned, told))
        on_step(row + 1, len(log))
    return result


def _check(log: LoggedDecisions, policy: Policy) -> None:
    if len(policy.arm_ids) != log.arm_count:
        raise InvalidInput("policy", len(policy.arm_ids), f"{log.arm_count} arms, as in the log")
