"""One stream of numbers, watched for a change of its mean by ADWIN and by Page-Hinkley.

Both come from River. Their inner state cannot be written down, so what is kept is the numbers since
the last start, from which they are made anew: the same numbers give the same detectors. The numbers
are on a grid and their count is bounded, so that what is kept is a few kilobytes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from river.drift import ADWIN, PageHinkley

__all__ = ["GRID", "DriftStream", "Side"]

Side = Literal["down", "both"]
"""Which change is told: a fall only, or a rise as well."""

GRID = 2.0**-10
"""The unit of numbers."""

_GROUP = 8
_KEPT, _DROPPED = 1000, 750
_CONFIDENCE = 1e-6
"""ADWIN's delta. Its own bound is wide: see `tests/test_learner_watch.py` for what shuffled traffic
really does."""
_SLACK, _THRESHOLD = 0.025, 5.0
"""Page-Hinkley's. For 0/1 numbers, the noisiest there are, a false alarm comes about once in
600,000 (of means over n numbers: ``variance / (2 slack^2) * exp(2 slack threshold n / variance)``);
a fall by 0.2 is seen after 230."""


class DriftStream:
    """Tells when the mean of a stream has changed.

    Detectors see means over eight numbers: that costs an eighth, and eight numbers of delay.

    Parameters
    ----------
    side
        Which changes count.

    References
    ----------
    Bifet, Gavalda: Learning from time-changing data with adaptive windowing, SDM 2007.
    Page: Continuous inspection schemes, Biometrika 41 (1954).

    Examples
    --------
    >>> stream = DriftStream("down")
    >>> any(stream.update(900) for _ in range(1000))
    False
    >>> next(number for number in range(1000) if stream.update(300)) < 100
    True
    """

    def __init__(self, side: Side) -> None:
        self._side: Side = side
        self._open = self._number = 0
        self._again([])

    def update(self, units: int) -> str:
        """Take the next number; the name of the detector that sees a change, or "".

        Parameters
        ----------
        units
            The number, in [-1, 1], divided by `GRID`.
        """
        self._open += units
        self._number += 1
        if self._number < _GROUP:
            return ""
        total, self._open, self._number = self._open, 0, 0
        found = self._take(total)
        if len(self._totals) >= _KEPT:
            self._again(self._totals[_DROPPED:])
        return found

    def means(self) -> tuple[float, float] | None:
        """Mean before the last hundred numbers, and mean of them; None before there are so many."""
        cut = len(self._totals) - 100 // _GROUP
        if cut <= 0:
            return None
        before, after = self._totals[:cut], self._totals[cut:]
        unit = GRID / _GROUP
        return sum(before) / len(before) * unit, sum(after) / len(after) * unit

    def reset(self) -> None:
        """Start anew, with no number seen."""
        self._open = self._number = 0
        self._again([])

    def state(self) -> bytes:
        """The numbers since the start, as sums over eight, and the sum that is open."""
        held = [self._number, self._open, *self._totals]
        return np.array(held, dtype="<i2").tobytes()

    def restore(self, state: bytes) -> None:
        """Take what `state` gave; ValueError if it is cut off."""
        self._number, self._open, *totals = np.frombuffer(state, dtype="<i2").tolist()
        self._again(totals)

    def _again(self, totals: list[int]) -> None:
        self._totals: list[int] = []
        detector: Any = ADWIN  # River has no types
        self._window = detector(delta=_CONFIDENCE, clock=4)
        self._sums: Any = PageHinkley(
            min_instances=10, delta=_SLACK, threshold=_THRESHOLD, mode=self._side
        )
        for total in totals:
            self._take(total)

    def _take(self, total: int) -> str:
        self._totals.append(total)
        value = total * (GRID / _GROUP)
        before = self._window.estimation
        self._window.update(value)
        self._sums.update(value)
        if self._window.drift_detected and (
            self._side == "both" or self._window.estimation < before
        ):
            return "adwin"
        return "page_hinkley" if self._sums.drift_detected else ""
