"""Choosing how much to explore: a bandit over the widths of the bonus.

Time is cut into epochs, each decided with one width from a ladder, and what an epoch earned tells
how good its width is (bandit over bandits: Cheung, Simchi-Levi, Zhu, AISTATS 2019). All epochs
teach the same outcome model; only the width is chosen. What is expected of a width is a Gaussian
over discounted rewards, and the next one is drawn by Thompson sampling, with a generator that is
seeded by the epoch's number: the choice is a pure function of the rewards, like all other state.
"""

from __future__ import annotations

import numpy as np

from optimizer.policies.sums import State
from optimizer.records import Vector

__all__ = ["LADDER", "WidthTuner"]

LADDER = (0.25, 0.5, 1.0, 2.0)
_FIRST = 2
_EPOCH = 200
_EPOCHS = 64
"""Epochs that are remembered: a reward that comes later than that counts for the oldest."""
_DISCOUNT = 0.97
_PRIOR_ROWS = 100.0
_GRID = 2.0**-20


class WidthTuner:
    """Chooses the width for the next epoch.

    Attributes
    ----------
    width
        The width in use, in standard errors.
    """

    def __init__(self) -> None:
        self._epoch = np.zeros(2)  # number of the epoch, rewards learned in it
        self._start = np.zeros(1)
        self._pick = np.full(1, float(_FIRST))
        self._earned = np.zeros((3, 1))  # rewards, their squares, their number

    @property
    def width(self) -> float:
        """The width in use."""
        return LADDER[int(self._pick[-1])]

    def credit(self, version: Vector, before: Vector, after: Vector) -> None:
        """Rewards count for the epoch that made the decision.

        Parameters
        ----------
        version
            Shape (n,): policy versions that decided, which are ledger positions.
        before, after
            Shape (n,): the reward as known before and now, NaN where a part is missing.
        """
        epoch = np.maximum(np.searchsorted(self._start, version, side="right") - 1, 0)
        for value, sign in ((before, -1.0), (after, 1.0)):
            known = ~np.isnan(value)
            reward = np.round(value[known] / _GRID) * _GRID
            for row, amount in enumerate((reward, reward**2, np.ones_like(reward))):
                np.add.at(self._earned[row], epoch[known], sign * amount)
        self._epoch[1] += len(version)

    def advance(self, position: int) -> bool:
        """At the end of a block: begin a new epoch where it is time; True if the width changed."""
        if self._epoch[1] < _EPOCH:
            return False
        before = self.width
        self._epoch += (1.0, -self._epoch[1])
        random = np.random.default_rng(int(self._epoch[0]))
        pick = float(self._draw(random))
        keep = slice(-_EPOCHS, None)
        self._start = np.append(self._start, position)[keep]
        self._pick = np.append(self._pick, pick)[keep]
        self._earned = np.hstack([self._earned, np.zeros((3, 1))])[:, keep]
        return self.width != before

    def _draw(self, random: np.random.Generator) -> int:
        age = np.arange(len(self._pick))[::-1]
        earned = self._earned * _DISCOUNT**age
        total, squares, number = earned.sum(axis=1)
        if number < 1.0:
            return _FIRST
        overall = total / number
        noise = max(squares / number - overall**2, 1e-4)
        by_width = np.array([earned[:, self._pick == index].sum(axis=1) for index in range(4)])
        weight = by_width[:, 2] + _PRIOR_ROWS
        mean = (by_width[:, 0] + _PRIOR_ROWS * overall) / weight
        return int(random.normal(mean, np.sqrt(noise / weight)).argmax())

    def state(self) -> State:
        """All that was earned, and by which width."""
        return {
            "epoch": self._epoch,
            "epoch_start": self._start,
            "epoch_pick": self._pick,
            "epoch_earned": self._earned,
        }

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self._epoch, self._start = state["epoch"].copy(), state["epoch_start"].copy()
        self._pick, self._earned = state["epoch_pick"].copy(), state["epoch_earned"].copy()
