"""Transformations of features, each for one number of a live request or a column of past ones.

Online and offline run the same function, so that training sees what decisions saw.

What has to be fitted first (means, ranges, bin edges) is a small frozen record. Its ``version`` is
a digest of its numbers, which a feature service carries as a tag: features of different versions
don't mix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.records import Indices, Matrix, Vector

__all__ = [
    "HASH_COLUMNS_LIMIT",
    "Bins",
    "Fitted",
    "MinMax",
    "OneHot",
    "ZScore",
    "cyclical",
    "hashed",
    "interaction",
    "phase",
    "request_cost_usd",
    "versions",
]

HASH_COLUMNS_LIMIT = 256
"""`hashed` spends one byte of the digest on the column."""

_TOKENS_PRICED = 1e6
_DIGEST_BYTES = 4

_ROUNDING = 1e-12
_SMALLEST_DEVIATION = 1e-150
"""Scores of larger deviations don't overflow."""

Values = TypeVar("Values", float, Vector)
"""A number of one request, or a column of numbers."""


class Fitted:
    """A transformation with fitted state; every subclass is a frozen dataclass."""

    __slots__ = ()

    @property
    def version(self) -> str:
        """Names the kind and, by a digest, every fitted number."""
        kind = type(self).__name__.lower()
        content = repr(astuple(self)).encode()  # type: ignore[call-overload]
        digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES)
        return f"{kind}-{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class ZScore(Fitted):
    """Distance from the mean in standard deviations.

    Parameters
    ----------
    mean
        A finite number.
    deviation
        Standard deviation, finite and above 0.

    Examples
    --------
    >>> scale = ZScore.fit(np.array([1.0, 3.0]))
    >>> scale.apply(4.0), scale.invert(2.0)
    (2.0, 4.0)
    """

    mean: float
    deviation: float

    def __post_init__(self) -> None:
        _check_finite("mean", self.mean)
        _check_finite("deviation", self.deviation)
        if self.deviation <= 0.0:
            raise InvalidInput("deviation", self.deviation, "above 0")

    @classmethod
    def fit(cls, column: Vector) -> ZScore:
        """Of the finite values; a column constant up to rounding has the deviation 1."""
        known = _known(column)
        deviation = float(known.std())
        constant = max(_ROUNDING * float(np.abs(known).max()), _SMALLEST_DEVIATION)
        return cls(float(known.mean()), deviation if deviation > constant else 1.0)

    def apply(self, values: Values) -> Values:
        return (values - self.mean) / self.deviation

    def invert(self, scores: Values) -> Values:
        """The values that `apply` made these of, up to rounding."""
        return scores * self.deviation + self.mean


@dataclass(frozen=True, slots=True)
class MinMax(Fitted):
    """From a range to [0, 1]; values beyond the range count as its ends.

    Parameters
    ----------
    low, high
        Finite, low below high.

    Examples
    --------
    >>> scale = MinMax(10.0, 20.0)
    >>> scale.apply(12.5), scale.apply(99.0), scale.invert(0.25)
    (0.25, 1.0, 12.5)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_finite("low", self.low)
        _check_finite("high", self.high)
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise InvalidInput("high", self.high, f"above low={self.low!r}, by a finite number")

    @classmethod
    def fit(cls, column: Vector) -> MinMax:
        """Of the finite values; a constant column starts a range as long as its value or 1."""
        known = _known(column)
        low, high = float(known.min()), float(known.max())
        return cls(low, high if high > low else low + max(1.0, abs(low)))

    def apply(self, values: Values) -> Values:
        inside = np.clip(values, self.low, self.high)
        return _same_kind(values, (inside - self.low) / (self.high - self.low))

    def invert(self, shares: Values) -> Values:
        """The values in [low, high] that `apply` made these of, up to rounding."""
        return self.low + shares * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Bins(Fitted):
    """The index of the bin that a value falls into.

    Parameters
    ----------
    edges
        Finite and rising. Bin 0 is below the first; a value on an edge is in the bin above it.

    Examples
    --------
    >>> Bins((1.0, 10.0)).apply(np.array([0.5, 1.0, 5.0, 10.0])).tolist()
    [0, 1, 1, 2]
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        for index, edge in enumerate(self.edges):
            _check_finite(f"edges[{index}]", edge)
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise InvalidInput("edges", list(self.edges), "each above the one before")

    @classmethod
    def fit(cls, column: Vector, count: int) -> Bins:
        """About equally many of the finite values in each of ``count`` bins, 2 or more.

        Fewer bins where so many values are equal that two edges would be the same.
        """
        if count < 2:
            raise InvalidInput("count", count, "2 or more")
        quantiles = np.quantile(_known(column), np.arange(1, count) / count)
        return cls(tuple(float(edge) for edge in np.unique(quantiles)))

    def apply(self, values: float | Vector) -> Indices:
        """In [0, len(edges)], with the shape of ``values``; NaN falls into the last bin."""
        found: Indices = np.searchsorted(np.array(self.edges), values, side="right")
        return found


@dataclass(frozen=True, slots=True)
class OneHot(Fitted):
    """A column for each category, and one more for every other.

    Parameters
    ----------
    categories
        Each once.

    Examples
    --------
    >>> OneHot(("chat", "code")).apply(["code", "poem"]).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.categories)) != len(self.categories):
            raise InvalidInput("categories", list(self.categories), "each may be named once")

    def apply(self, values: Sequence[str | None]) -> Matrix:
        """Shape (n, len(categories) + 1), each row with a single 1."""
        column = {category: index for index, category in enumerate(self.categories)}
        table = np.zeros((len(values), len(self.categories) + 1))
        other = len(self.categories)
        for row, value in enumerate(values):
            table[row, other if value is None else column.get(value, other)] = 1.0
        return table

    def invert(self, table: Matrix) -> list[str | None]:
        """The categories, None for what was none of them."""
        names = (*self.categories, None)
        return [names[index] for index in table.argmax(axis=1)]


def cyclical(values: Values, period: float) -> tuple[Values, Values]:
    """Sine and cosine of a value that comes again after ``period``, above 0.

    Examples
    --------
    >>> sine, cosine = cyclical(18.0, 24.0)
    >>> round(sine, 12), abs(round(cosine, 12))
    (-1.0, 0.0)
    """
    if not (math.isfinite(period) and period > 0.0):
        raise InvalidInput("period", period, "a finite number above 0")
    angle = np.remainder(values, period) / period * math.tau
    return _same_kind(values, np.sin(angle)), _same_kind(values, np.cos(angle))


def phase(sine: Values, cosine: Values, period: float) -> Values:
    """The value in [0, period] that `cyclical` made these of, up to rounding and whole periods."""
    angle = np.remainder(np.arctan2(sine, cosine), math.tau)
    return _same_kind(sine, angle / math.tau * period)


def hashed(name: str, value: str | float, columns: int) -> tuple[int, float]:
    """Column and signed amount of a field nobody declared (feature hashing, Weinberger 2009).

    A text is one category; a number is squashed to (-1, 1) under its name.

    Parameters
    ----------
    name
        Of the field.
    value
        A text or a finite number.
    columns
        From 1 to `HASH_COLUMNS_LIMIT`; a power of two spreads evenly.

    Examples
    --------
    >>> hashed("team", "search", 8) == hashed("team", "search", 8)
    True
    """
    if not 1 <= columns <= HASH_COLUMNS_LIMIT:
        raise InvalidInput("columns", columns, f"from 1 to {HASH_COLUMNS_LIMIT}")
    is_text = isinstance(value, str)
    digest = hashlib.blake2b(f"{name}={value if is_text else ''}".encode(), digest_size=2).digest()
    sign = 1.0 if digest[1] & 1 else -1.0
    amount = 1.0 if isinstance(value, str) else value / (1.0 + abs(value))
    return digest[0] % columns, sign * amount


def interaction(left: Values, right: Values) -> Values:
    """The product, by which a linear model sees that one changes what the other is worth.

    Examples
    --------
    >>> interaction(0.5, 4.0)
    2.0
    """
    return left * right


def request_cost_usd(
    price_in_usd: Values, price_out_usd: Values, input_tokens: Values, output_tokens: Values
) -> Values:
    """Cost x tokens: what a request costs at list prices of a million tokens, US dollars.

    Examples
    --------
    >>> request_cost_usd(2.0, 8.0, 1000.0, 500.0)
    0.006
    """
    spent = interaction(price_in_usd, input_tokens) + interaction(price_out_usd, output_tokens)
    return spent / _TOKENS_PRICED


def versions(fitted: Mapping[str, Fitted]) -> dict[str, str]:
    """Tags of a feature service: ``transform.<feature>`` to the version of its transformation.

    Examples
    --------
    >>> versions({"tier": Bins((1.0,))})
    {'transform.tier': 'bins-6ca77fb1'}
    """
    return {f"transform.{name}": state.version for name, state in fitted.items()}


def _known(column: Vector) -> Vector:
    known: Vector = column[np.isfinite(column)]
    if not len(known):
        raise InvalidInput("column", f"{len(column)} values", "at least one finite value")
    return known


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InvalidInput(name, value, "a finite number")


def _same_kind(values: Values, result: Any) -> Values:
    """A plain float where a plain number came in."""
    same: Values = result if isinstance(values, np.ndarray) else float(result)
    return same
