"""Linear heads: one Bayesian regression for each arm and target, with strength shared over arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.policies.hierarchy import Posterior, Variances, estimate_variances, posterior
from optimizer.policies.sums import Rows, State, Sums, on_grid
from optimizer.records import Matrix, Vector
from optimizer.reward import TARGETS

__all__ = ["GROUPS", "LinearHeads"]

GROUPS = ("constant", "category", "detail")
"""What a feature is: the constant, a category of requests (a task), or a detail of one."""

_PRIOR = Variances(0.16, np.array([0.16]), np.array([0.25, 0.02, 0.0005]))
"""Before data: the noise of a coin that falls on one side in four of five cases; arms differ by 0.5
in general, by 0.14 in one task, and hardly by a detail."""
_PRIOR_WEIGHT = (20.0, 20.0, np.array([10.0, 20.0, 40.0]))
_SHARED_PRECISION = 0.6
_PRIOR_MEAN = 0.5
_TRAIT_PRECISION = 6.0
"""A trait moves an arm by 0.4 a unit, give or take; units are those of `optimizer.arm_traits`."""

_ABSORBED_AT_ONCE = 8
"""More observations than this are cheaper to learn by solving anew."""


class LinearHeads:
    """Predicts every target of every arm as a linear function of the features.

    How much arms differ, in general and by each group of features, and how noisy a target is,
    are estimated from the data themselves (see `optimizer.policies.hierarchy`): features that do
    not matter stop costing exploration, whatever their scale.

    Parameters
    ----------
    arms, size
        Number of arms and of features.
    groups
        For each feature its index in `GROUPS`; by default the first is the constant and all others
        are categories.
    """

    def __init__(self, arms: int, size: int, groups: Sequence[int] | None = None) -> None:
        chosen = [0, *[1] * (size - 1)] if groups is None else list(groups)
        if len(chosen) != size or not set(chosen) <= set(range(len(GROUPS))):
            raise InvalidInput("groups", chosen, f"{size} indices of {GROUPS}")
        self.arms = arms
        self.size = size
        self.sums = Sums(arms, size)
        self._group = np.array(chosen)
        self._membership = np.eye(len(GROUPS))[:, self._group]
        self._traits = np.zeros((arms, 0))
        self._noise = np.full(len(TARGETS), _PRIOR.noise)
        self._scatter = np.full((len(TARGETS), arms), _PRIOR.noise)
        self._deviation = np.tile(_PRIOR.deviation, (len(TARGETS), 1))
        self._reference = np.zeros((len(TARGETS), arms, size))
        self._posteriors: dict[int, Posterior] = {}
        self._fresh: list[Rows] = []
        self._scoring = _Scoring(np.zeros((arms, size)), np.zeros((arms, size, size)))

    def learn(self, rows: Rows) -> None:
        """Add to the sums; predictions follow at the next `refresh`."""
        self.sums.add(rows)
        self._fresh.append(rows)

    def scale(self, factor: float | Vector) -> None:
        """Forget a part of what was learned, one factor or shape (arms,)."""
        self.sums.scale(factor)
        self._outdated()

    def settle(self) -> None:
        """Estimate the variances anew, and keep predictions to compare the next block with."""
        for target in range(len(TARGETS)):
            count = self.sums.part_count()[target]
            if not count.any():
                continue
            found = self._solve(target)
            gram, moment = self.sums.part_gram(target), self.sums.moment[target]
            better = estimate_variances(
                found,
                gram,
                moment,
                self.sums.squares[target],
                count,
                self._membership,
                self._variances(target),
                _PRIOR,
                _PRIOR_WEIGHT,
            )
            self._noise[target], self._scatter[target] = better.noise, better.scatter
            self._deviation[target] = better.deviation
            self._reference[target] = found.coefficients
        self._outdated()

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was seen minus what was expected at the last `settle`.

        In standard deviations of the noise; NaN where a target is unknown or was known before.
        """
        expected = self.foreseen(rows)
        first = np.where(np.isnan(rows.before), rows.after, np.nan)
        surprise: Matrix = (first - expected) / np.sqrt(self._scatter[:, rows.arm].T)
        return surprise

    def foreseen(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was expected at the last `settle`."""
        expected: Matrix = np.einsum("tnd,nd->nt", self._reference[:, rows.arm], rows.features)
        return expected

    def refresh(self, target_weights: Vector) -> None:
        """Bring predictions up to date with the sums, for this linear form of targets."""
        coefficients = np.zeros((self.arms, self.size))
        covariance = np.zeros((self.arms, self.size, self.size))
        for target in np.flatnonzero(target_weights).tolist():
            weight, found = target_weights[target], self._found(target)
            coefficients += weight * found.coefficients
            covariance += weight**2 * found.covariance
        self._scoring = _Scoring(coefficients, covariance)

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error of the weighted sum of targets, each of shape (arms,)."""
        return self._scoring.one(features)

    def score_many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        """`score` of many requests at once, each of shape (n, arms)."""
        return self._scoring.many(features)

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the mean of one target."""
        expected: Matrix = features @ self._found(target).coefficients.T
        return expected

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""
        covariance = self._found(target).covariance
        doubt: Matrix = np.sqrt(np.einsum("ni,kij,nj->nk", features, covariance, features))
        return doubt

    def state(self) -> State:
        """The sums, the variances, and the predictions of the last `settle`."""
        return {
            **self.sums.arrays(),
            "noise": self._noise,
            "scatter": self._scatter,
            "deviation": self._deviation,
            "reference": self._reference,
        }

    def restore(self, state: State) -> None:
        """Take the arrays that `state` gave."""
        self.sums.restore(state)
        self._noise[:] = state["noise"]
        self._scatter[:] = state["scatter"]
        self._deviation[:] = state["deviation"]
        self._reference[:] = state["reference"]
        self._outdated()

    def scoring(self) -> State:
        """What `score` needs and nothing else, small enough to send to every replica."""
        return self._scoring.arrays()

    def use(self, scoring: State) -> None:
        """Score by what `scoring` gave; learning needs `restore`."""
        self._scoring = _Scoring.of(scoring)

    def describe(self, traits: Matrix) -> None:
        """What is known of the arms beforehand; a trait of none of them costs nothing."""
        self._traits = traits[:, traits.any(axis=0)]
        self._outdated()

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms: each is the one that was at that index, None a new one."""
        self.sums = self.sums.choose(rows)
        reference = np.zeros((len(TARGETS), len(rows), self.size))
        scatter = np.tile(self._noise[:, None], len(rows))
        for index, row in enumerate(rows):
            if row is not None:
                reference[:, index] = self._reference[:, row]
                scatter[:, index] = self._scatter[:, row]
        self._reference, self._scatter = reference, scatter
        self._traits = np.zeros((len(rows), 0))
        self.arms = len(rows)
        self._outdated()

    def _outdated(self) -> None:
        self._posteriors.clear()
        self._fresh.clear()

    def _variances(self, target: int) -> Variances:
        return Variances(float(self._noise[target]), self._scatter[target], self._deviation[target])

    def _solve(self, target: int) -> Posterior:
        noise, traits = self._noise[target], self._traits.shape[1]
        precision = np.repeat([_SHARED_PRECISION, _TRAIT_PRECISION], [self.size, traits])
        mean = np.zeros(self.size + traits)
        mean[0] = _PRIOR_MEAN
        return posterior(
            self.sums.part_gram(target) / noise,
            self.sums.moment[target] / noise,
            1.0 / self._deviation[target][self._group],
            precision,
            mean,
            self._traits,
        )

    def _found(self, target: int) -> Posterior:
        """The posterior of a target, up to date."""
        fresh, self._fresh = self._fresh, []
        if sum(len(rows.arm) for rows in fresh) > _ABSORBED_AT_ONCE or not all(
            np.isnan(rows.before).all() and (rows.weight == 1.0).all() for rows in fresh
        ):
            self._posteriors.clear()
        for held, found in self._posteriors.items():
            deviation = math.sqrt(self._noise[held])
            for rows in fresh:
                after = on_grid(rows.after[:, held])  # what the sums hold, or the two would differ
                for row in np.flatnonzero(~np.isnan(after)):
                    found.absorb(
                        int(rows.arm[row]),
                        rows.features[row] / deviation,
                        float(after[row]) / deviation,
                    )
        if target not in self._posteriors:
            self._posteriors[target] = self._solve(target)
        return self._posteriors[target]


@dataclass(slots=True)
class _Scoring:
    """Scores all arms in one matrix product."""

    coefficients: Matrix
    covariance: Matrix
    _stacked: Matrix | None = None
    _columns: Matrix | None = None

    def one(self, features: Vector) -> tuple[Vector, Vector]:
        if self._stacked is None:
            arms, size = self.coefficients.shape
            self._stacked = np.vstack([self.coefficients, self.covariance.reshape(-1, size)])
        # One product for everything: at these sizes a call costs more than its arithmetic.
        product = self._stacked.dot(features)
        arms = len(self.coefficients)
        spread = product[arms:].reshape(arms, -1).dot(features)
        return product[:arms], np.sqrt(spread)

    def many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        arms, size = self.coefficients.shape
        if self._columns is None:
            self._columns = np.ascontiguousarray(self.covariance.reshape(-1, size).T)
        product = (features @ self._columns).reshape(-1, arms, size)
        spread = np.einsum("nki,ni->nk", product, features)
        return features @ self.coefficients.T, np.sqrt(spread)

    def arrays(self) -> State:
        rows, columns = np.tril_indices(self.coefficients.shape[1])
        return {"coefficients": self.coefficients, "covariance": self.covariance[:, rows, columns]}

    @classmethod
    def of(cls, arrays: State) -> _Scoring:
        coefficients = arrays["coefficients"]
        arms, size = coefficients.shape
        rows, columns = np.tril_indices(size)
        covariance = np.zeros((arms, size, size))
        covariance[:, rows, columns] = covariance[:, columns, rows] = arrays["covariance"]
        return cls(coefficients, covariance)
