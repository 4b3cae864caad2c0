"""What a pass goes through: late and lost rewards, a world that changes half-way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.records import Indices, Vector

__all__ = ["AT_ONCE", "NEVER", "Conditions", "Course", "Delay", "course", "parse_delay"]

NEVER = -1
"""Arrival of a reward that never comes."""


@dataclass(frozen=True)
class Delay:
    """How many requests are decided between a decision and its reward.

    Attributes
    ----------
    mean
        In requests, finite and 0 or more; whole where it is constant.
    spread
        ``constant``: always the mean. ``exp``: exponential, in whole requests (the geometric
        distribution from 0 on, whose mean is exactly this).
    """

    mean: float = 0.0
    spread: Literal["constant", "exp"] = "constant"

    def draw(self, number: int, random: np.random.Generator) -> Indices:
        """Shape (number,): the delay of each reward, in requests."""
        if self.spread == "constant" or not self.mean:
            return np.full(number, int(self.mean))
        return random.geometric(1.0 / (1.0 + self.mean), number) - 1


AT_ONCE = Delay()


def parse_delay(text: str | None) -> Delay:
    """Read ``200`` (always 200 requests) or ``exp:200`` (exponential, mean 200 requests).

    Raises
    ------
    InvalidInput
        If it is neither.

    Examples
    --------
    >>> parse_delay("exp:200")
    Delay(mean=200.0, spread='exp')
    """
    if text is None:
        return AT_ONCE
    spread, _, number = text.rpartition(":")
    try:
        mean = float(number)
    except ValueError:
        mean = math.nan
    if spread == "" and ":" not in text and mean >= 0 and mean.is_integer():
        return Delay(mean)
    if spread == "exp" and 0 <= mean < math.inf:
        return Delay(mean, "exp")
    raise InvalidInput(
        "delay", text, "a whole number of requests, or exp:MEAN for exponential delays; 0 or more"
    )


@dataclass(frozen=True)
class Conditions:
    """What makes a pass harder than a world that stays as it is and answers at once.

    Attributes
    ----------
    delay
        Of each reward.
    missing
        Share of rewards that never come, in [0, 1]; each is lost or not by chance.
    shift_at
        Requests of the recording from this row on belong to the world after half-way, those before
        it to the world before; None for one world.
    new_arm
        Whether the recording's last model arrives half-way; it needs another one.
    frozen_after
        The policy learns nothing more, and gets no new arm, after so many requests; None for never.
    budget_usd
        What the whole pass may cost, or None. See `optimizer.replay_budget`.
    """

    delay: Delay = AT_ONCE
    missing: float = 0.0
    shift_at: int | None = None
    new_arm: bool = False
    frozen_after: int | None = None
    budget_usd: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.missing <= 1:
            raise InvalidInput("missing", self.missing, "a share in [0, 1]")
        if self.frozen_after is not None and self.frozen_after < 0:
            raise InvalidInput("frozen_after", self.frozen_after, "a number of requests, 0 or more")
        if self.budget_usd is not None and not 0 < self.budget_usd < math.inf:
            raise InvalidInput("budget", self.budget_usd, "US dollars for the pass, above 0")

    @property
    def changing(self) -> bool:
        """Whether anything happens half-way."""
        return self.shift_at is not None or self.new_arm


@dataclass(frozen=True)
class Course:
    """All that chance decides in a pass, drawn before it: the same for every policy.

    Attributes
    ----------
    order
        Shape (n,): row of the request at each step.
    uniform
        Shape (n,), in [0, 1): draws the arm.
    arrival
        Shape (n,): the step after whose decision the reward is learned, or `NEVER`.
    change
        The step from which on the world is another one; None where it stays.
    """

    order: Indices
    uniform: Vector
    arrival: Indices
    change: int | None

    def due(self) -> list[int]:
        """The steps whose rewards come, in the order of their coming."""
        by_arrival = self.arrival.argsort(kind="stable")
        steps: list[int] = by_arrival[self.arrival[by_arrival] != NEVER].tolist()
        return steps


def course(rows: int, seed: int, conditions: Conditions) -> Course:
    """Draw the course of a pass.

    Before half-way come half of the requests of the first world, after it half of those of the
    second. The order of each is drawn from the same seed: two recordings of the same requests make
    one stream of requests, none of them twice.

    Parameters
    ----------
    rows
        Number of requests in the recording, of both worlds.
    seed
        Of the order, the draws, the lost rewards and the delays, drawn one after the other: what
        is asked for later changes nothing of what was drawn before.
    conditions
        Of the pass.
    """
    random = np.random.default_rng(seed)
    first = rows if conditions.shift_at is None else conditions.shift_at
    order = random.permutation(first)
    change = first // 2 if conditions.changing else None
    if conditions.shift_at is not None:
        second = np.random.default_rng(seed).permutation(rows - first)
        order = np.concatenate([order[:change], first + second[len(second) // 2 :]])
    steps = len(order)
    uniform = random.random(steps)
    lost = random.random(steps) < conditions.missing
    arrival = np.arange(steps) + conditions.delay.draw(steps, random)
    return Course(order, uniform, np.where(lost, NEVER, arrival), change)
