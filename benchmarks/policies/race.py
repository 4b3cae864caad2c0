"""One pass of one policy, ours or another's, over a problem in an order that a seed gives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

import numpy as np

from optimizer.recorded import RecordedOutcomes
from optimizer.records import Indices, Matrix, Vector
from optimizer.replay import reward_table
from optimizer.reward import Objective

__all__ = ["Contestant", "Course", "Entry", "Lap", "Problem", "course", "run"]


@dataclass(frozen=True)
class Problem:
    """What is to be learned.

    Attributes
    ----------
    name
        Of the recording, for people.
    recorded
        The truth, n requests and k models.
    objective
        Turns an outcome into the reward.
    features
        Shape (n, d).
    rewards
        Shape (n, k).
    """

    name: str
    recorded: RecordedOutcomes
    objective: Objective
    features: Matrix
    rewards: Matrix

    @classmethod
    def of(
        cls, name: str, recorded: RecordedOutcomes, objective: Objective, features: Matrix
    ) -> Problem:
        """The problem with the rewards that ``objective`` makes of the recording."""
        return cls(name, recorded, objective, features, reward_table(recorded, objective))

    @property
    def arms(self) -> int:
        """Number of models, k."""
        return int(self.rewards.shape[1])


class Contestant(Protocol):
    """A policy at work; requests are indices into the problem it was started with."""

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        """The arm for ``request`` and the probability with which it was drawn.

        A library that gives probabilities draws at ``uniform`` in [0, 1). One that draws by
        itself has the seed it was started with, and its probability is 1, which it never reads.
        """

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        """Learn what ``arm`` gave on ``request``."""


@dataclass(frozen=True)
class Entry:
    """A policy that takes part.

    Attributes
    ----------
    name
        Library and algorithm.
    package
        The distribution it comes from; empty for our own.
    setting
        The one setting it runs with, on every recording.
    start
        Makes the policy, knowing nothing yet, from a problem and a seed.
    """

    name: str
    package: str
    setting: str
    start: Callable[[Problem, int], Contestant]


@dataclass(frozen=True)
class Course:
    """What chance and time do to every policy alike.

    Attributes
    ----------
    order
        Shape (n,): the request of each step.
    uniform
        Shape (n,), in [0, 1): where each decision is drawn.
    lost
        Shape (n,): True where the reward never comes.
    delay
        A reward is learned this many decisions late; 0 is before the next one.
    """

    order: Indices
    uniform: Vector
    lost: np.ndarray[tuple[int], np.dtype[np.bool_]]
    delay: int


@dataclass(frozen=True)
class Lap:
    """What one pass gave: shapes (n,), updates only of the rewards that came.

    Attributes
    ----------
    rewards
        In the order of the pass.
    decide_us, learn_us
        Microseconds of each decision and of each update.
    """

    rewards: Vector
    decide_us: Vector
    learn_us: Vector


def course(requests: int, seed: int, delay: int = 0, missing: float = 0.0) -> Course:
    """The course of a seed; order and draws are those of `optimizer.replay.replay`.

    Parameters
    ----------
    requests
        Number of requests, n.
    seed
        Of the order, the draws and the lost rewards.
    delay
        In decisions, 0 or more.
    missing
        Share of rewards that never come, in [0, 1).
    """
    random = np.random.default_rng(seed)
    order = random.permutation(requests)
    uniform = random.random(requests)
    return Course(order, uniform, random.random(requests) < missing, delay)


def run(contestant: Contestant, problem: Problem, over: Course) -> Lap:
    """Let ``contestant`` decide and learn once over the course; it is taught in place."""
    requests = len(over.order)
    rewards = np.zeros(requests)
    decide_us = np.zeros(requests)
    learn_us: list[float] = []
    waiting: deque[tuple[int, int, int, float]] = deque()
    for step, (request, uniform) in enumerate(
        zip(over.order.tolist(), over.uniform.tolist(), strict=True)
    ):
        started = perf_counter_ns()
        arm, propensity = contestant.decide(request, uniform)
        decide_us[step] = (perf_counter_ns() - started) / 1000
        rewards[step] = problem.rewards[request, arm]
        waiting.append((step, request, arm, propensity))
        if len(waiting) <= over.delay:
            continue
        then, request, arm, propensity = waiting.popleft()
        if over.lost[then]:
            continue
        reward = float(rewards[then])
        started = perf_counter_ns()
        contestant.learn(request, arm, propensity, reward)
        learn_us.append((perf_counter_ns() - started) / 1000)
    return Lap(rewards, decide_us, np.array(learn_us))
