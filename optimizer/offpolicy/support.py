"""Whether a log can answer for a policy at all."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.confidence import ENOUGH, Estimate
from optimizer.errors import InvalidInput
from optimizer.offpolicy.draws import Draws
from optimizer.offpolicy.intervals import asymptotic, lower_bound

__all__ = ["ENOUGH_EFFECTIVE", "Support", "support"]

ENOUGH_EFFECTIVE = 100.0
"""Effective sample size below which no verdict is given."""


@dataclass(frozen=True, slots=True)
class Support:
    """What the weights say.

    Attributes
    ----------
    rows
        Number of rows.
    effective_sample_size, expected_sample_size
        From the weights that were seen, and from the propensities alone; see `Draws`.
    mean_weight
        Of expectation 1 if the log can draw whatever the target takes, its propensities are true
        and outcomes are missing regardless of the arm. Its interval is anytime-valid.
    largest_weight
        0 or more.
    clip
        The weight above which SWITCH goes by the model.
    clipped_share
        Share of rows above it, in [0, 1].
    """

    rows: int
    effective_sample_size: float
    expected_sample_size: float
    mean_weight: Estimate
    largest_weight: float
    clip: float
    clipped_share: float

    @property
    def enough(self) -> bool:
        """Whether there are enough effective rows, by both counts."""
        return min(self.effective_sample_size, self.expected_sample_size) >= ENOUGH_EFFECTIVE

    @property
    def balanced(self) -> bool:
        """False if the mean weight contradicts 1."""
        low, high = self.mean_weight.low, self.mean_weight.high
        return low is None or high is None or low <= 1.0 <= high


def support(draws: Draws, clip: float, alpha: float = 0.05) -> Support:
    """Sum the weights up.

    Parameters
    ----------
    draws
        One or more, in time order.
    clip
        Above 0.
    alpha
        In (0, 1): the probability that the interval of the mean weight ever misses.
    """
    if not clip > 0:
        raise InvalidInput("clip", clip, "a weight above 0")
    weights = draws.weights
    low = high = None
    if weights.size >= ENOUGH:
        low = lower_bound(weights, alpha / 2)
        largest = max(1.0, float(weights.max()))
        unseen = float(draws.second_moments().mean()) - 1.0
        high = asymptotic(weights, alpha, largest, unseen).high
    return Support(
        weights.size,
        draws.effective_sample_size,
        draws.expected_sample_size,
        Estimate(float(weights.mean()), low, high, weights.size),
        float(weights.max()),
        clip,
        float(draws.above(clip).mean()),
    )
