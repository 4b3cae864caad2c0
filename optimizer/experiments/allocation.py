"""How an experiment's units are divided over its variants now."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from optimizer.confidence import ENOUGH, PSEUDO_ROWS
from optimizer.errors import InvalidInput
from optimizer.experiments.experiment import Design
from optimizer.experiments.moments import Moments
from optimizer.policies.exploration import Thompson
from optimizer.records import Matrix

__all__ = ["FLOOR", "first_weights", "least_weight", "thompson_weights", "with_floor"]

FLOOR = 0.05
"""Smallest weight of a variant where the allocation is adaptive (half of an equal share, if that is
less): what the analysis divides by never comes near 0."""


def first_weights(design: Design) -> tuple[float, ...]:
    """At the start: as given, or equal."""
    given = [variant.weight or 1.0 for variant in design.variants]
    total = sum(given)
    return tuple(weight / total for weight in given)


def least_weight(number: int) -> float:
    """The floor with so many variants."""
    return min(FLOOR, 0.5 / number)


def with_floor(probabilities: Matrix) -> Matrix:
    """Mixed with equal shares, so that none is below `least_weight`.

    A contextual experiment uses it on what the champion's policy says of its arms.

    Parameters
    ----------
    probabilities
        Shape (..., k), each row of sum 1.

    Examples
    --------
    >>> with_floor(np.array([1.0, 0.0])).round(3).tolist()
    [0.95, 0.05]
    """
    number = probabilities.shape[-1]
    least = least_weight(number)
    mixed: Matrix = least + (1.0 - number * least) * probabilities
    return mixed


def thompson_weights(rewards: Sequence[Moments], *, span: float) -> tuple[float, ...]:
    r"""The probability that each variant is the best (Thompson 1933), mixed with a floor.

    A variant's mean is taken as Gaussian around the observed mean with variance
    :math:`(s^2 + 2 \, span^2 / n) / n`, where the second term is that of two pseudo-rows at the
    distance of the whole range (as in `optimizer.confidence`): a lucky start is no certainty. The
    probability is in closed form, so the same moments always give the same weights.

    Parameters
    ----------
    rewards
        One a variant, at least two; more is better (negate costs).
    span
        Width of the range a reward can lie in, above 0.

    Returns
    -------
    Sum 1; equal while a variant has fewer than `optimizer.confidence.ENOUGH` rewards.

    Examples
    --------
    >>> good, bad = Moments(100, 80.0, 80.0), Moments(100, 40.0, 40.0)
    >>> [round(weight, 3) for weight in thompson_weights([bad, good], span=1.0)]
    [0.05, 0.95]
    """
    if not span > 0:
        raise InvalidInput("span", span, "the width of a range, above 0")
    number = len(rewards)
    if min(one.count for one in rewards) < ENOUGH:
        return (1.0 / number,) * number
    mean = np.array([one.mean for one in rewards])
    std = np.array(
        [
            math.sqrt((one.variance + PSEUDO_ROWS * span**2 / one.count) / one.count)
            for one in rewards
        ]
    )
    best = Thompson().probabilities(mean, std, sum(one.count for one in rewards))
    weights = with_floor(best)
    return tuple((weights / weights.sum()).tolist())
