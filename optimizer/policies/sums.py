"""Sufficient statistics: all that linear models learn, as sums over decisions.

A correction or a retraction is the difference of two sums, so the state does not depend on the
order of signals. With features on the grid of `optimizer.features`, targets and their squares on
the ones below, every product and every sum is exact in a float64 up to some millions of rows: the
same bytes come out however the rows are ordered or cut into batches, and whichever way BLAS adds
them up. What is left after forgetting is put back on the grids, and so is what a decision of a
forgotten time still adds, each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimizer.records import Indices, Matrix, Vector
from optimizer.reward import PART_OF_TARGET, PARTS, TARGETS

__all__ = ["Rows", "State", "Sums", "on_grid"]

State = dict[str, npt.NDArray[np.float64]]

TARGET_GRID = 2.0**-20
_FEATURE_GRID = 2.0**-12
_SQUARE_GRID = 2.0**-26
"""Of squared targets; on their own grid, 2 ** -40, 8,000 rows would use up a float64."""
_GRIDS = {
    "gram": _FEATURE_GRID**2,
    "moment": TARGET_GRID * _FEATURE_GRID,
    "squares": _SQUARE_GRID,
    "count": TARGET_GRID,
}

_PART = np.array(PART_OF_TARGET)
_FIRST_TARGET = np.array([PART_OF_TARGET.index(part) for part in range(len(PARTS))])


def on_grid(targets: Matrix) -> Matrix:
    """Targets as the sums hold them, any shape."""
    return _rounded(targets, TARGET_GRID)


@dataclass(frozen=True, slots=True)
class Rows:
    """Observations as columns, what models learn from.

    Attributes
    ----------
    arm
        Shape (n,).
    features
        Shape (n, d).
    before, after
        Shape (n, len(TARGETS)), NaN where unknown.
    weight
        Shape (n,): 1, or less for decisions of a time that is forgotten by now.
    """

    arm: Indices
    features: Matrix
    before: Matrix
    after: Matrix
    weight: Vector

    def cut(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to ``stop``."""
        part = slice(start, stop)
        return Rows(
            self.arm[part],
            self.features[part],
            self.before[part],
            self.after[part],
            self.weight[part],
        )


class Sums:
    """Sums over decisions, for each arm.

    Attributes
    ----------
    gram
        Shape (parts, arms, d, d): outer products of the features of decisions whose part is known.
    moment
        Shape (targets, arms, d): target times features.
    squares
        Shape (targets, arms): squared targets.
    count
        Shape (parts, arms): decisions whose part is known.
    """

    def __init__(self, arms: int, size: int) -> None:
        parts, targets = len(PARTS), len(TARGETS)
        self.gram = np.zeros((parts, arms, size, size))
        self.moment = np.zeros((targets, arms, size))
        self.squares = np.zeros((targets, arms))
        self.count = np.zeros((parts, arms))

    def add(self, rows: Rows) -> None:
        """Apply what changed between ``before`` and ``after``."""
        before, after = np.isnan(rows.before), np.isnan(rows.after)
        old = np.where(before, 0.0, on_grid(rows.before))
        new = np.where(after, 0.0, on_grid(rows.after))
        arrived = before[:, _FIRST_TARGET] * 1.0 - after[:, _FIRST_TARGET]
        moved = new - old
        squared = _rounded(new * new, _SQUARE_GRID) - _rounded(old * old, _SQUARE_GRID)
        whole = rows.weight == 1.0
        for row in np.flatnonzero(~whole & (rows.weight != 0.0)):
            self._add_one(
                rows.arm[row],
                rows.features[row],
                rows.weight[row],
                moved[row],
                squared[row],
                arrived[row],
            )
        for arm in np.unique(rows.arm[whole]):
            mine = (rows.arm == arm) & whole
            features = rows.features[mine]
            self.moment[:, arm] += moved[mine].T @ features
            self.squares[:, arm] += squared[mine].sum(axis=0)
            known: Matrix = arrived[mine]
            self.count[:, arm] += known.sum(axis=0)
            done: dict[bytes, Matrix] = {}
            for part in range(len(PARTS)):
                share = known[:, part]
                if share.any():  # parts that arrive together share one product
                    key = share.tobytes()
                    if key not in done:
                        done[key] = (features.T * share) @ features
                    self.gram[part, arm] += done[key]

    def _add_one(
        self,
        arm: int,
        features: Vector,
        weight: float,
        moved: Vector,
        squared: Vector,
        arrived: Vector,
    ) -> None:
        changes = {
            "gram": np.multiply.outer(arrived, np.outer(features, features)),
            "moment": np.outer(moved, features),
            "squares": squared,
            "count": arrived,
        }
        for name, array in self.arrays().items():
            array[:, arm] += _rounded(weight * changes[name], _GRIDS[name])

    def scale(self, factor: float | Vector) -> None:
        """Multiply what was learned of each arm by ``factor``, one number or shape (arms,)."""
        share = np.broadcast_to(np.asarray(factor, dtype=float), self.count.shape[1:])
        shares = {"gram": share[:, None, None], "moment": share[:, None]}
        for name, array in self.arrays().items():
            array[:] = _rounded(array * shares.get(name, share), _GRIDS[name])

    def subtract(self, other: Sums) -> None:
        """Take out what ``other`` holds, of the same shape."""
        for mine, theirs in zip(self.arrays().values(), other.arrays().values(), strict=True):
            mine -= theirs

    def copy(self) -> Sums:
        """The same sums, in arrays of their own."""
        result = Sums(self.count.shape[1], self.moment.shape[2])
        result.restore(self.arrays())
        return result

    def choose(self, rows: Sequence[int | None]) -> Sums:
        """The sums of other arms: each the one that was at that index, None a new one."""
        result = Sums(len(rows), self.moment.shape[2])
        into = [index for index, row in enumerate(rows) if row is not None]
        source = [row for row in rows if row is not None]
        for mine, theirs in zip(result.arrays().values(), self.arrays().values(), strict=True):
            mine[:, into] = theirs[:, source]
        return result

    def part_count(self) -> Matrix:
        """Shape (targets, arms): decisions that revealed each target."""
        counts: Matrix = self.count[_PART]
        return counts

    def part_gram(self, target: int) -> Matrix:
        """Shape (arms, d, d): the outer products that belong to a target."""
        gram: Matrix = self.gram[PART_OF_TARGET[target]]
        return gram

    def arrays(self) -> State:
        """The arrays themselves, by name."""
        return {
            "gram": self.gram,
            "moment": self.moment,
            "squares": self.squares,
            "count": self.count,
        }

    def restore(self, state: State) -> None:
        """Take the arrays that `arrays` gave."""
        for name, array in self.arrays().items():
            array[:] = state[name]


def _rounded(values: Matrix, grid: float) -> Matrix:
    rounded: Matrix = np.round(values / grid) * grid
    return rounded
