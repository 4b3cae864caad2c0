"""From scores and their uncertainties to a probability for each arm."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.special import ndtr, ndtri

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = [
    "Epsilon",
    "Exploration",
    "Greedy",
    "InverseGap",
    "RandomUcb",
    "Static",
    "Thompson",
    "Ucb",
    "Uniform",
]

_STRATA = 32
_WIDTHS = 8


class Exploration(Protocol):
    """A rule that maps predicted scores to probabilities; pure, with no memory."""

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """Probability of each arm, for one request or for many.

        Parameters
        ----------
        mean, std
            Shape (k,) or (n, k): expected score of each arm, -inf where an arm is no candidate,
            and its standard error, 0 or more.
        learned
            Number of observations that the scores rest on, 0 or more.

        Returns
        -------
        Of the same shape, non-negative, each row of sum 1.
        """


class Greedy:
    """All on the highest expected score; ties go to the earlier arm."""

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """All on the highest mean."""
        return _all_on_highest(mean)


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

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """All on the fixed arm."""
        wanted = np.isfinite(mean) * 1.0
        wanted[..., self.arm] *= 2.0
        return _all_on_highest(wanted)


class Uniform:
    """The same probability for every candidate."""

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """Equal shares of the arms whose mean is finite."""
        there = np.isfinite(mean)
        shares: Matrix = there / there.sum(axis=-1, keepdims=True)
        return shares


class Epsilon:
    """Most on the highest expected score, a share on all candidates evenly.

    Parameters
    ----------
    epsilon
        That share, in [0, 1].
    """

    def __init__(self, epsilon: float = 0.05) -> None:
        if not 0 <= epsilon <= 1:
            raise InvalidInput("epsilon", epsilon, "a share in [0, 1]")
        self.epsilon = epsilon

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """A mixture of greedy and uniform."""
        uniform = Uniform().probabilities(mean, std, learned)
        return (1.0 - self.epsilon) * _all_on_highest(mean) + self.epsilon * uniform


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

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """All on the highest upper confidence bound."""
        return _all_on_highest(mean + self.alpha * std)


class RandomUcb:
    """All on the highest ``mean + z * std`` for a width ``z`` that is drawn anew for each request.

    The same width holds for all arms (Vaswani et al., Old dog learns new tricks: randomized UCB,
    AISTATS 2020). Unlike a fixed width it does not repeat itself while rewards are under way: a
    doubtful arm gets a share. The widths are eight equally likely ones of a half-normal, so each
    arm's probability is exact.

    Parameters
    ----------
    alpha
        Scale of the half-normal, in standard errors, 0 or more.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not alpha >= 0:
            raise InvalidInput("alpha", alpha, "a number of standard errors, 0 or more")
        self.alpha = alpha
        self._widths = alpha * ndtri(0.5 + (np.arange(_WIDTHS) + 0.5) / (2 * _WIDTHS))[:, None]

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """The share of widths at which each arm is the highest; arms that are level share."""
        score = mean[..., None, :] + self._widths * std[..., None, :]
        best = score.argmax(axis=-1)
        widest = score[..., -1, :]
        level = widest == widest.max(axis=-1, keepdims=True)
        if np.count_nonzero(level) > best.size // _WIDTHS:
            return _share_of_highest(score)
        number = mean.shape[-1]
        first = number * np.arange(mean.size // number)[:, None] if mean.ndim > 1 else 0
        count = np.bincount((best + first).ravel(), minlength=mean.size)
        return count.reshape(mean.shape) / _WIDTHS


class InverseGap:
    r"""Less probable, the further a score is below the best (Abe and Long 1999; SquareCB).

    With :math:`k` candidates and gaps :math:`g_a` to the best, each other arm gets
    :math:`1 / (k + \gamma g_a)` and the best the rest, where :math:`\gamma = s \sqrt{k n}` grows
    with the number of observations (Foster and Rakhlin, Beyond UCB, ICML 2020).

    Parameters
    ----------
    scale
        s, above 0.
    """

    def __init__(self, scale: float = 10.0) -> None:
        if not scale > 0:
            raise InvalidInput("scale", scale, "a number above 0")
        self.scale = scale

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """Inverse-gap weights."""
        there = np.isfinite(mean)
        number = there.sum(axis=-1, keepdims=True)
        gap = np.where(there, mean.max(axis=-1, keepdims=True) - mean, 0.0)
        weight = np.where(there, 1.0 / (number + self.scale * np.sqrt(number * learned) * gap), 0.0)
        best = mean.argmax(axis=-1)[..., None]
        np.put_along_axis(weight, best, 0.0, axis=-1)
        np.put_along_axis(weight, best, 1.0 - weight.sum(axis=-1, keepdims=True), axis=-1)
        return weight


class Thompson:
    """The probability that each arm is the best (Thompson 1933), in closed form.

    Scores are taken as independent Gaussians. For arm ``a``, ``P(a best) = E[prod_b
    Phi((s - mean_b) / std_b)]`` over ``s ~ N(mean_a, std_a)``, where the expectation is a mean over
    32 equally likely strata of ``s``, so that no random draw is needed and the probability that is
    logged is the one used.
    """

    _strata = ndtri((np.arange(_STRATA) + 0.5) / _STRATA)

    def probabilities(self, mean: Matrix, std: Matrix, learned: int) -> Matrix:
        """Probability that each arm has the highest score."""
        there = np.isfinite(mean)
        centre = np.where(there, mean, -1e9)  # so far below that it never wins
        width = np.maximum(std, 1e-12)
        score = centre[..., None] + width[..., None] * self._strata
        beats = ndtr((score[..., None] - centre[..., None, None, :]) / width[..., None, None, :])
        own = np.arange(mean.shape[-1])
        beats[..., own, :, own] = 1.0
        best = np.where(there, beats.prod(axis=-1).mean(axis=-1), 0.0)
        result: Matrix = best / best.sum(axis=-1, keepdims=True)
        return result


def _share_of_highest(score: Matrix) -> Matrix:
    """Mean over widths, shape (..., widths, k), of equal shares of the highest."""
    highest = score >= score.max(axis=-1, keepdims=True)
    shares: Matrix = (highest / highest.sum(axis=-1, keepdims=True)).mean(axis=-2)
    return shares


def _all_on_highest(score: Vector | Matrix) -> Matrix:
    result = np.zeros(score.shape)
    if score.ndim == 1:
        result[score.argmax()] = 1.0
    else:
        result[np.arange(len(score)), score.argmax(axis=-1)] = 1.0
    return result
