"""Ways to forget that `benchmarks.forgetting` compares."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from optimizer.policies.drift import DriftAware
from optimizer.policies.forgetting import Forgetful, Forgetting, Never
from optimizer.policies.sums import Rows, State
from optimizer.reward import TARGETS

__all__ = ["VARIANTS"]


class _Fixed(DriftAware):
    """Fixed shares are kept, whatever was measured: of the arm that raised the alarm, of others."""

    def __init__(self, arms: int, own: float, others: float) -> None:
        super().__init__(arms, len(TARGETS))
        self._OWN, self._OTHERS = own, others


class _Tied(DriftAware):
    """The arm that raised the alarm keeps what its measured change leaves; others a fixed share.

    Where the mean of outcomes is off by ``size`` standard deviations, old rewards of the arm tell
    as much of the new world as ``1 / size ** 2`` rewards of its own would, however many they are.
    """

    _KEPT = 8.0

    def __init__(self, arms: int, others: float) -> None:
        super().__init__(arms, len(TARGETS))
        self._OTHERS = others
        self._run = np.zeros((2, arms, len(TARGETS)))

    def watch(self, model: Forgetful, rows: Rows) -> int:
        """As `DriftAware`, and count the rewards since each CUSUM was last at 0."""
        stop = 0
        while stop < len(rows.arm):
            one = rows.cut(stop, stop + 1)
            super().watch(model, one)
            stop += 1
            arm = int(one.arm[0])
            self._run[:, arm] = np.where(self._sums[:, arm] > 0.0, self._run[:, arm] + 1.0, 0.0)
            if self._alarm >= 0:
                break
        return stop

    def after(self, model: Forgetful, rows: int, position: int, block_ends: bool) -> bool:
        """As `DriftAware`."""
        if self._alarm >= 0:
            self._OWN = self._share(model, self._alarm)
        forgot = super().after(model, rows, position, block_ends)
        if forgot:
            self._run[:] = 0.0
        return forgot

    def _share(self, model: Forgetful, arm: int) -> float:
        """A power of two, so that sums stay exact.

        The mean surprise since the CUSUM was last at 0 is its height over the rewards since, plus
        what was taken off each (Page's estimate).
        """
        height = self._sums[:, arm]
        side, target = divmod(int(height.argmax()), height.shape[1])
        size = height[side, target] / self._run[side, arm, target] + self._DRIFT
        known = max(float(model.sums.part_count()[target, arm]), 1.0)
        return min(2.0 ** round(math.log2(self._KEPT / (size**2 * known))), 1.0)

    def state(self) -> State:
        """With the counts."""
        return {**super().state(), "cusum_run": self._run}

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        super().restore(state)
        self._run[:] = state["cusum_run"]


VARIANTS: dict[str, Callable[[int], Forgetting]] = {
    "never": lambda arms: Never(),
    "fixed": lambda arms: DriftAware(arms, len(TARGETS)),
    "fixed, more": lambda arms: _Fixed(arms, 2.0**-10, 2.0**-6),
    "tied": lambda arms: _Tied(arms, 2.0**-6),
    "tied, own": lambda arms: _Tied(arms, 2.0**-3),
}
"""``fixed`` is what ships; ``fixed, more`` is two of its alarms at once."""
