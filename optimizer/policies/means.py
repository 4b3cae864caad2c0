"""Mean heads: the mean of each arm's targets, whatever the request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Matrix, Vector
from optimizer.reward import TARGETS

__all__ = ["MeanHeads"]

_PRIOR_NOISE = 0.16
_PRIOR_NOISE_WEIGHT = 5.0


class MeanHeads:
    """The mean of each arm's targets, without context.

    Parameters
    ----------
    arms
        Number of arms.
    beta
        Quality and feedback, which lie in [0, 1], have a Beta(1, 1) prior (a value between 0 and 1
        counts as that share of a success). All other targets, and these too if False, are Gaussian
        with a pooled noise and a prior worth one observation of 0.5. For scoring, each posterior
        stands by its mean and variance.
    """

    size = 0

    def __init__(self, arms: int, beta: bool = True) -> None:
        self.arms = arms
        self.sums = Sums(arms, 1)
        self._is_beta = np.array([beta and name in ("quality", "feedback") for name in TARGETS])
        self._mean, self._variance = self._posterior()
        self._reference = np.zeros((len(TARGETS), arms))
        self._usual = np.full(len(TARGETS), _PRIOR_NOISE)
        self._score = (np.zeros(arms), np.zeros(arms))

    def learn(self, rows: Rows) -> None:
        """Add to the sums; features are not looked at."""
        constant = np.ones((len(rows.arm), 1))
        self.sums.add(Rows(rows.arm, constant, rows.before, rows.after, rows.weight))

    def scale(self, factor: float | Vector) -> None:
        """Forget a part of what was learned, one factor or shape (arms,)."""
        self.sums.scale(factor)

    def settle(self) -> None:
        """Keep predictions to compare the next block with."""
        self._reference = self._posterior()[0]
        self._usual = self._noise()[:, 0]

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was seen minus what was expected, in units of the noise."""
        first = np.where(np.isnan(rows.before), rows.after, np.nan)
        surprise: Matrix = (first - self.foreseen(rows)) / np.sqrt(self._usual)
        return surprise

    def foreseen(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was expected at the last `settle`."""
        expected: Matrix = self._reference[:, rows.arm].T
        return expected

    def refresh(self, target_weights: Vector) -> None:
        """Posterior mean and variance of every target and arm, weighted."""
        mean, variance = self._posterior()
        self._mean, self._variance = mean, variance
        self._score = (target_weights @ mean, np.sqrt(target_weights**2 @ variance))

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error of the weighted sum of targets, whatever the features."""
        return self._score

    def score_many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        """The same for every request, each of shape (n, arms)."""
        shape = (len(features), self.arms)
        return np.broadcast_to(self._score[0], shape), np.broadcast_to(self._score[1], shape)

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the mean of one target."""
        expected: Matrix = np.tile(self._mean[target], (len(features), 1))
        return expected

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""
        doubt: Matrix = np.tile(np.sqrt(self._variance[target]), (len(features), 1))
        return doubt

    def state(self) -> State:
        """The sums, and the predictions of the last `settle`."""
        return {**self.sums.arrays(), "reference": self._reference, "usual": self._usual}

    def restore(self, state: State) -> None:
        """Take the arrays that `state` gave."""
        self.sums.restore(state)
        self._reference[:] = state["reference"]
        self._usual[:] = state["usual"]

    def scoring(self) -> State:
        """What `score` needs."""
        return {"mean": self._score[0], "std": self._score[1]}

    def use(self, scoring: State) -> None:
        """Score by what `scoring` gave."""
        self._score = (scoring["mean"], scoring["std"])

    def describe(self, traits: Matrix) -> None:
        """Arms are strangers to each other here: traits tell nothing."""

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms: each is the one that was at that index, None a new one."""
        self.sums = self.sums.choose(rows)
        self.arms = len(rows)
        self._reference = self._posterior()[0]

    def _noise(self) -> Matrix:
        count = self.sums.part_count()
        spread = self.sums.squares - self.sums.moment[:, :, 0] ** 2 / np.maximum(count, 1.0)
        noise: Matrix = (spread.sum(axis=1, keepdims=True) + _PRIOR_NOISE * _PRIOR_NOISE_WEIGHT) / (
            count.sum(axis=1, keepdims=True) + _PRIOR_NOISE_WEIGHT
        )
        return noise

    def _posterior(self) -> tuple[Matrix, Matrix]:
        total, count = self.sums.moment[:, :, 0], self.sums.part_count()
        is_beta = self._is_beta[:, None]
        beta_mean = (1.0 + total) / (2.0 + count)
        mean = np.where(is_beta, beta_mean, (0.5 + total) / (1.0 + count))
        beta_variance = beta_mean * (1.0 - beta_mean) / (3.0 + count)
        return mean, np.where(is_beta, beta_variance, self._noise() / (1.0 + count))
