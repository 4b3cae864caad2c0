"""Outcome models: what each arm's outcome will be, part by part, and how sure that is.

Every model keeps sums over the decisions it was told of, so that a correction or a retraction
is the difference of two sums, and the state does not depend on the order of signals (up to
rounding; the ledger's fixed order makes it exact).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector
from optimizer.reward import PART_OF_TARGET, PARTS, TARGETS

__all__ = ["LinearHeads", "MeanHeads", "OutcomeModel", "Targets"]

Targets = tuple[float | None, ...]

_PART = np.array(PART_OF_TARGET)
_PRIOR_MEAN = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
"""Before data, every arm is expected to be as good as can be (optimism): each is tried a few times
in each context. With a mean of 0, an arm that was tried and is fair is never left again."""

_PRIOR_NOISE = 0.25
_PRIOR_NOISE_WEIGHT = 5.0
"""Before data, the noise of a target is that of a fair coin, worth five observations."""


class OutcomeModel(Protocol):
    """Predicts the score of every arm under a linear objective."""

    size: int
    arms: int

    def learn(self, arm: int, features: Vector, before: Targets, after: Targets) -> None:
        """Apply one decision's change of targets, in the order of TARGETS."""

    def refresh(self, target_weights: Vector) -> None:
        """Bring `score` up to date with what was learned, for this objective."""

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error, each of shape (arms,), of ``target_weights @ targets``.

        The targets are taken as independent of each other.
        """

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """The sums that make up everything learned."""

    def restore(self, state: dict[str, npt.NDArray[np.float64]]) -> None:
        """Take the sums that `state` gave; `score` follows at the next `refresh`."""


class LinearHeads:
    """One Bayesian linear regression for each arm and target, over the same features.

    Targets of the same part share a design matrix, since they are revealed together. The prior of
    a coefficient is a Gaussian with variance ``noise / ridge``; the noise of a target is estimated
    from its residuals, pooled over arms (empirical Bayes), so that the uncertainty is in the
    units of the score and no scale needs to be tuned.

    Parameters
    ----------
    arms, size
        Number of arms and of features.
    ridge
        Prior precision of each coefficient in observations, above 0.
    """

    def __init__(self, arms: int, size: int, ridge: float = 1.0) -> None:
        if not ridge > 0:
            raise InvalidInput("ridge", ridge, "a number above 0")
        self.arms = arms
        self.size = size
        self.ridge = ridge
        parts, targets = len(PARTS), len(TARGETS)
        self._gram = np.zeros((parts, arms, size, size))
        self._moment = np.zeros((targets, arms, size))
        self._squares = np.zeros((targets, arms))
        self._count = np.zeros((parts, arms))
        self._covariance = np.tile(np.eye(size) / ridge, (parts, arms, 1, 1))
        self._coefficients = np.zeros((targets, arms, size))
        self._coefficients[:, :, 0] = _PRIOR_MEAN[:, None]
        self._stale: set[tuple[int, int]] = set()
        self._score_matrix: Matrix = np.zeros((arms + arms * size, size))
        """Row by row: the score's coefficients of each arm, then the covariance of each arm."""

    def learn(self, arm: int, features: Vector, before: Targets, after: Targets) -> None:
        """Apply the change of one decision; predictions follow at the next `refresh`."""
        for part in range(len(PARTS)):
            known = before[part] is not None
            if known is (after[part] is not None):
                continue
            sign = -1.0 if known else 1.0
            self._gram[part, arm] += np.multiply.outer(sign * features, features)
            self._count[part, arm] += sign
            self._stale.add((part, arm))
        for target, (old, new) in enumerate(zip(before, after, strict=True)):
            if old == new:
                continue
            old_value, new_value = old or 0.0, new or 0.0
            self._moment[target, arm] += (new_value - old_value) * features
            self._squares[target, arm] += new_value**2 - old_value**2
            self._stale.add((PART_OF_TARGET[target], arm))

    def refresh(self, target_weights: Vector) -> None:
        """Solve anew for every arm and part that changed, then fold the objective in."""
        if self._stale:
            self._solve(sorted(self._stale))
            self._stale.clear()
        coefficients = np.tensordot(target_weights, self._coefficients, axes=1)
        share = np.bincount(_PART, target_weights**2 * self.noise(), minlength=len(PARTS))
        used = np.flatnonzero(share)
        covariance = np.tensordot(share[used], self._covariance[used], axes=1)
        self._score_matrix = np.vstack([coefficients, covariance.reshape(-1, self.size)])

    def _solve(self, stale: list[tuple[int, int]]) -> None:
        rows = tuple(np.array(stale).T)
        prior = self.ridge * np.eye(self.size)
        self._covariance[rows] = np.linalg.inv(self._gram[rows] + prior)
        for part, arm in stale:
            targets = np.flatnonzero(part == _PART)
            moment = self._moment[targets, arm].copy()
            moment[:, 0] += self.ridge * _PRIOR_MEAN[targets]
            self._coefficients[targets, arm] = moment @ self._covariance[part, arm]

    def noise(self) -> Vector:
        """Shape (len(TARGETS),): estimated variance of each target around its prediction.

        It is the scale of the normal-inverse-gamma posterior, pooled over arms:
        ``sum(y^2) + ridge m^2 - theta . (sum(y x) + ridge m e)`` for a prior mean ``m`` of the
        coefficient of the constant ``e`` (Gelman et al., Bayesian Data Analysis, 14.8).
        """
        pull = self.ridge * _PRIOR_MEAN
        explained = (self._moment * self._coefficients).sum(axis=(1, 2))
        explained += pull * self._coefficients[:, :, 0].sum(axis=1)
        total = self._squares.sum(axis=1) + self.arms * pull * _PRIOR_MEAN
        residual = np.maximum(total - explained, 0.0)
        count = self._count.sum(axis=1)[_PART]
        noise: Vector = (residual + _PRIOR_NOISE * _PRIOR_NOISE_WEIGHT) / (
            count + _PRIOR_NOISE_WEIGHT
        )
        return noise

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error of the weighted sum of targets."""
        # One product for everything: at these sizes a call costs more than its arithmetic.
        product = self._score_matrix.dot(features)
        spread = product[self.arms :].reshape(self.arms, self.size).dot(features)
        return product[: self.arms], np.sqrt(spread)

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """Sums of outer products, of target x features, of squares, and counts."""
        return {
            "gram": self._gram,
            "moment": self._moment,
            "squares": self._squares,
            "count": self._count,
        }

    def restore(self, state: dict[str, npt.NDArray[np.float64]]) -> None:
        """Take the sums that `state` gave."""
        self._gram[:] = state["gram"]
        self._moment[:] = state["moment"]
        self._squares[:] = state["squares"]
        self._count[:] = state["count"]
        self._stale = {(part, arm) for part in range(len(PARTS)) for arm in range(self.arms)}


class MeanHeads:
    """The mean of each arm's targets, without context.

    Quality and feedback lie in [0, 1] and have a Beta(1, 1) prior (a value between 0 and 1 counts
    as that share of a success); the other targets are Gaussian with a pooled noise and a prior
    worth one observation of 0.5. For scoring, each posterior stands by its mean and variance.
    """

    size = 0

    def __init__(self, arms: int) -> None:
        self.arms = arms
        self._sum = np.zeros((len(TARGETS), arms))
        self._squares = np.zeros((len(TARGETS), arms))
        self._count = np.zeros((len(PARTS), arms))
        self._is_beta = np.array([name in ("quality", "feedback") for name in TARGETS])[:, None]
        self._score = (np.zeros(arms), np.zeros(arms))

    def learn(self, arm: int, features: Vector, before: Targets, after: Targets) -> None:
        """Apply the change of one decision; features are not looked at."""
        for part in range(len(PARTS)):
            self._count[part, arm] += (after[part] is not None) - (before[part] is not None)
        for target, (old, new) in enumerate(zip(before, after, strict=True)):
            old_value, new_value = old or 0.0, new or 0.0
            self._sum[target, arm] += new_value - old_value
            self._squares[target, arm] += new_value**2 - old_value**2

    def refresh(self, target_weights: Vector) -> None:
        """Posterior mean and variance of every target and arm, weighted."""
        count = self._count[_PART]
        beta_mean = (1.0 + self._sum) / (2.0 + count)
        beta_variance = beta_mean * (1.0 - beta_mean) / (3.0 + count)
        mean = (0.5 + self._sum) / (1.0 + count)
        spread = self._squares - self._sum**2 / np.maximum(count, 1.0)
        pooled = (spread.sum(axis=1, keepdims=True) + _PRIOR_NOISE * _PRIOR_NOISE_WEIGHT) / (
            count.sum(axis=1, keepdims=True) + _PRIOR_NOISE_WEIGHT
        )
        variance = np.where(self._is_beta, beta_variance, pooled / (1.0 + count))
        score = target_weights @ np.where(self._is_beta, beta_mean, mean)
        self._score = (score, np.sqrt(target_weights**2 @ variance))

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and standard error of the weighted sum of targets, whatever the features."""
        return self._score

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """Sums of targets, of their squares, and counts."""
        return {"sum": self._sum, "squares": self._squares, "count": self._count}

    def restore(self, state: dict[str, npt.NDArray[np.float64]]) -> None:
        """Take the sums that `state` gave."""
        self._sum[:] = state["sum"]
        self._squares[:] = state["squares"]
        self._count[:] = state["count"]
