"""Forgetting when the world has changed, and only then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.policies.forgetting import Forgetful, Moments
from optimizer.policies.sums import Rows, State
from optimizer.records import Indices, Vector

__all__ = ["DriftAware"]


class DriftAware:
    """Nothing is forgotten until outcomes contradict what was learned; then nearly everything is.

    The shares that are kept are fixed. Shares that follow from how far outcomes have moved were not
    better on a recording they were not made for, see benchmarks/results/forgetting.md.

    Watches the standardised surprises of each arm and target by a two-sided CUSUM (Page,
    Continuous inspection schemes, Biometrika 1954). A change of two standard deviations is seen
    within a dozen rewards of the arm; for Gaussian surprises an alarm without any change comes
    about once in 28 million of them (Siegmund's approximation of the average run length).

    Parameters
    ----------
    arms
        Number of arms.
    targets
        Number of targets.
    """

    sees_change = True
    _DRIFT = 0.5
    _THRESHOLD = 16.0
    _CLIP = 3.0
    _GRID = 2.0**-10
    _ENOUGH = 60.0
    _OWN, _OTHERS = 2.0**-5, 2.0**-3

    def __init__(self, arms: int, targets: int) -> None:
        self._moments = Moments(arms)
        self._sums = np.zeros((2, arms, targets))
        self._trusted = np.zeros((arms, targets))
        self._alarm = -1

    def weights(self, arm: Indices, version: Vector) -> Vector:
        """By what was forgotten since."""
        return self._moments.weights(arm, version)

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """Rows up to and including the one that raises an alarm."""
        surprises = np.clip(np.nan_to_num(model.surprises(rows)), -self._CLIP, self._CLIP)
        surprises = np.round(surprises / self._GRID) * self._GRID
        surprises *= self._trusted[rows.arm]
        stop, levels = len(rows.arm), {}
        for arm in np.unique(rows.arm).tolist():
            at = np.flatnonzero(rows.arm == arm)
            steps = np.stack([surprises[at], -surprises[at]]) - self._DRIFT
            path = self._sums[:, arm, None] + steps.cumsum(axis=1)
            lowest = np.minimum(np.minimum.accumulate(path, axis=1), 0.0)
            levels[arm] = (at, path - lowest)
            over = (levels[arm][1] > self._THRESHOLD).any(axis=(0, 2))
            if over.any() and at[over.argmax()] < stop:
                stop, self._alarm = int(at[over.argmax()]) + 1, arm
        for arm, (at, level) in levels.items():
            seen = int(np.searchsorted(at, stop))
            if seen:
                self._sums[:, arm] = level[:, seen - 1]
        return stop

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """After an alarm: forget most, of the arm that raised it nearly all."""
        if block_ends or self._alarm >= 0:
            self._trusted = np.where(model.sums.part_count().T >= self._ENOUGH, 1.0, 0.0)
        if self._alarm < 0:
            return False
        factor = np.full(model.arms, self._OTHERS)
        factor[self._alarm] = self._OWN
        model.scale(factor)
        self._moments.add(position, factor)
        self._sums[:] = 0.0
        self._alarm = -1
        return True

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms; a new one starts without suspicion."""
        self._moments.choose(rows)
        targets = self._sums.shape[2]
        sums, trusted = np.zeros((2, len(rows), targets)), np.zeros((len(rows), targets))
        for index, row in enumerate(rows):
            if row is not None:
                sums[:, index], trusted[index] = self._sums[:, row], self._trusted[row]
        self._sums, self._trusted = sums, trusted

    def state(self) -> State:
        """The CUSUM of each arm and target, and moments of forgetting."""
        return {**self._moments.state(), "cusum": self._sums, "trusted": self._trusted}

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self._moments.restore(state)
        self._sums[:] = state["cusum"]
        self._trusted[:] = state["trusted"]
