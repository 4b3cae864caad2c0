"""From scores and their uncertainties to a probability for each arm."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from optimizer.errors import InvalidInput
from optimizer.records import Vector

__all__ = ["Exploration", "Greedy", "Static", "Thompson", "Ucb", "Uniform"]

_STRATA = 32


class Exploration(Protocol):
    """A rule that maps predicted scores to probabilities; pure, with no memory."""

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """Probability of each arm.

        Parameters
        ----------
        mean, std
            Shape (k,): expected score of each arm and its standard error, 0 or more.

        Returns
        -------
        Shape (k,), non-negative, sum 1.
        """


class Greedy:
    """All on the highest expected score; ties go to the earlier arm."""

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """All on the highest mean."""
        return _one_hot(int(mean.argmax()), mean.size)


class Static:
    """All on one arm, whatever was learned.

    Parameters
    ----------
    arm
        Index of the arm; where it is no candidate, the first candidate takes its place.
    """

    def __init__(self, arm: int) -> None:
        if arm < 0:
            raise InvalidInput("arm", arm, "the index of an arm, 0 or more")
        self.arm = arm

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """All on the fixed arm; arms that are no candidates have mean -inf."""
        arm = self.arm if np.isfinite(mean[self.arm]) else int(np.isfinite(mean).argmax())
        return _one_hot(arm, mean.size)


class Uniform:
    """The same probability for every candidate."""

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """Equal shares of the arms whose mean is finite."""
        there = np.isfinite(mean)
        shares: Vector = there / there.sum()
        return shares


class Ucb:
    """All on the highest ``mean + alpha * std`` (Auer 2002; Li et al. 2010 for linear models).

    Parameters
    ----------
    alpha
        Width of the bonus in standard errors, 0 or more.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha >= 0:
            raise InvalidInput("alpha", alpha, "a number of standard errors, 0 or more")
        self.alpha = alpha

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """All on the highest upper confidence bound."""
        return _one_hot(int((mean + self.alpha * std).argmax()), mean.size)


class Thompson:
    """The probability that each arm is the best (Thompson 1933), in closed form.

    Scores are taken as independent Gaussians. For arm ``a``, ``P(a best) = E[prod_b
    Phi((s - mean_b) / std_b)]`` over ``s ~ N(mean_a, std_a)``, where the expectation is a mean over
    32 equally likely strata of ``s``, so that no random draw is needed and the probability that is
    logged is the one used.
    """

    _strata = ndtri((np.arange(_STRATA) + 0.5) / _STRATA)

    def probabilities(self, mean: Vector, std: Vector) -> Vector:
        """Probability that each arm has the highest score."""
        there = np.flatnonzero(np.isfinite(mean))
        centre = mean[there]
        width = np.maximum(std[there], 1e-12)
        score = centre[:, None] + width[:, None] * self._strata
        beats = ndtr((score[:, :, None] - centre) / width)
        own = np.arange(there.size)
        beats[own, :, own] = 1.0
        best = beats.prod(axis=2).mean(axis=1)
        result = np.zeros(mean.size)
        result[there] = best / best.sum()
        return result


def _one_hot(index: int, size: int) -> Vector:
    result = np.zeros(size)
    result[index] = 1.0
    return result
