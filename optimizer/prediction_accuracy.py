"""How well a policy predicts what it is about to learn: each outcome is foreseen, then learned.

Testing on a row before training on it (prequential evaluation; Dawid, Statistical theory: the
prequential approach, JRSS A 147, 1984) needs no rows set aside. Beside each error stands that of
the mean of all rows before: who does not beat it has learned nothing about requests.

All sums are added one row after the other, so that they are the same bytes however rows are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.records import Matrix
from optimizer.running_sums import running_sums

__all__ = ["HEADS", "PredictionAccuracy"]

HEADS = ("quality", "cost", "latency", "feedback", "reward")
"""What is predicted. Cost and latency are shares of the decision point's caps."""

_BINS = 10
_PRIOR_MEAN = 0.5


class PredictionAccuracy:
    """Errors and calibration of the predictions so far.

    Examples
    --------
    >>> accuracy = PredictionAccuracy()
    >>> seen = np.full((2, 5), np.nan)
    >>> seen[:, 0] = 1.0, 0.0
    >>> accuracy.add(np.full((2, 5), 0.9), seen)
    >>> figures = accuracy.figures()["quality"]
    >>> figures["count"], round(figures["mean_absolute_error"], 3), round(figures["brier"], 3)
    (2, 0.5, 0.41)
    """

    def __init__(self) -> None:
        self._sums = np.zeros((6, len(HEADS)))
        self._bins = np.zeros((3, len(HEADS), _BINS))

    def add(self, expected: Matrix, seen: Matrix) -> None:
        """Take rows in.

        Parameters
        ----------
        expected
            Shape (n, len(HEADS)), NaN where nothing was foreseen.
        seen
            The same, NaN where nothing became known.
        """
        known = ~(np.isnan(expected) | np.isnan(seen))
        there: Matrix = known.astype(float)
        truth, guess = np.where(known, seen, 0.0), np.where(known, expected, 0.0)
        count = running_sums(self._sums[0], there)
        total = running_sums(self._sums[1], truth)
        mean = np.where(count[:-1] > 0, total[:-1] / np.maximum(count[:-1], 1.0), _PRIOR_MEAN)
        error, of_mean = (guess - truth) * there, (mean - truth) * there
        columns = (np.abs(error), error * error, np.abs(of_mean), of_mean * of_mean)
        self._sums[0], self._sums[1] = count[-1], total[-1]
        for index, column in enumerate(columns, 2):
            self._sums[index] = running_sums(self._sums[index], column)[-1]
        row, head = np.nonzero(known)
        place = np.clip((guess[row, head] * _BINS).astype(int), 0, _BINS - 1)
        for index, values in enumerate((there, guess, truth)):
            np.add.at(self._bins[index], (head, place), values[row, head])

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each head that was ever seen: count, errors, skill, and calibration.

        ``skill`` is 1 minus the squared error over that of the mean of earlier rows: 0 says that
        nothing about requests was learned, below 0 that the mean would have been better.
        ``brier`` is the mean squared error, which is Brier's score where outcomes are 0 or 1.
        ``calibration_error`` is the expected calibration error over ten bins of equal width.
        """
        found = {}
        for index, name in enumerate(HEADS):
            count, _, absolute, squared, of_mean, squared_of_mean = self._sums[:, index].tolist()
            if not count:
                continue
            number, guess, truth = self._bins[:, index]
            found[name] = {
                "count": int(count),
                "mean_absolute_error": absolute / count,
                "mean_absolute_error_of_mean": of_mean / count,
                "brier": squared / count,
                "brier_of_mean": squared_of_mean / count,
                "skill": 1.0 - squared / squared_of_mean if squared_of_mean else None,
                "calibration_error": float(np.abs(guess - truth).sum() / count),
                "calibration": [
                    {"count": int(n), "expected": e / n, "seen": s / n}
                    for n, e, s in zip(number.tolist(), guess.tolist(), truth.tolist(), strict=True)
                    if n
                ],
            }
        return found

    def state(self) -> list[bytes]:
        """Everything counted."""
        return [self._sums.tobytes(), self._bins.tobytes()]

    def restore(self, state: list[bytes]) -> None:
        """Take what `state` gave."""
        sums, bins = state
        self._sums = np.frombuffer(sums).reshape(self._sums.shape).copy()
        self._bins = np.frombuffer(bins).reshape(self._bins.shape).copy()
