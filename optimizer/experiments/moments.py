"""Count, sum and sum of squares: all that a comparison of means needs, and it can take back."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the numbers seen so far.

    Attributes
    ----------
    count
        How many.
    total, squares
        Their sum, and the sum of their squares.

    Examples
    --------
    >>> seen = Moments().add(0.2).add(0.6)
    >>> seen.mean, round(seen.variance, 3)
    (0.4, 0.08)
    >>> seen.add(0.7).remove(0.7).count
    2
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> Moments:
        """With one number more."""
        return Moments(self.count + 1, self.total + value, self.squares + value * value)

    def remove(self, value: float) -> Moments:
        """With one number less, that was added before."""
        return Moments(self.count - 1, self.total - value, self.squares - value * value)

    def merge(self, other: Moments) -> Moments:
        """Of both."""
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """The unbiased one; NaN of fewer than two."""
        if self.count < 2:
            return math.nan
        return max(self.squares - self.total * self.total / self.count, 0.0) / (self.count - 1)
