"""Whether conclusions can be trusted: the control compared with itself, and the ratio of units.

Both halves of the control get the same treatment, so a difference between them is a fault: of the
hash, of how outcomes come in, or of the statistics. The halves must come from a hash that has
nothing to do with the one that chose the control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from optimizer.confidence import Flags
from optimizer.errors import InvalidInput
from optimizer.experiments.moments import Moments
from optimizer.experiments.sample_ratio import RatioCheck, sample_ratio
from optimizer.experiments.sequential import Comparison, compare
from optimizer.records import Vector

__all__ = ["Readiness", "SelfCheck", "readiness", "self_check", "split"]

ALPHA = 0.002
"""For the whole check, over its whole life: as rare as a false alarm of the ratio check."""

BEST_AT = 10_000.0
"""Units of control at which a difference between its halves is found soonest."""


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The control against itself.

    Attributes
    ----------
    red
        Whether the halves differ, in size or in any measure.
    measures
        The comparison of the halves in each measure.
    halves
        Their sizes beside 50:50.
    reasons
        What differs; empty if not red.
    """

    red: bool
    measures: Mapping[str, Comparison]
    halves: RatioCheck
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of conclusions.

    Attributes
    ----------
    ready
        Whether nothing contradicts the numbers.
    reasons
        What does, a sentence each.
    """

    ready: bool
    reasons: tuple[str, ...]


def split(values: Vector, first_half: Flags) -> tuple[Moments, Moments]:
    """Moments of both halves.

    Parameters
    ----------
    values
        Shape (n,), one for each unit of control; NaN where it is not known.
    first_half
        Shape (n,): the flag of an independent hash.

    Examples
    --------
    >>> first, second = split(np.array([1.0, 0.0, np.nan]), np.array([True, False, False]))
    >>> first.count, second.count
    (1, 1)
    """
    if values.shape != first_half.shape:
        raise InvalidInput("first_half", first_half.shape, f"one flag for each of {values.shape}")
    known = np.isfinite(values)
    return _moments(values[known & first_half]), _moments(values[known & ~first_half])


def self_check(
    measures: Mapping[str, tuple[Moments, Moments]],
    sizes: tuple[int, int],
    *,
    spans: Mapping[str, float],
    alpha: float = ALPHA,
    best_at: float = BEST_AT,
) -> SelfCheck:
    """Compare the halves of the control.

    Parameters
    ----------
    measures
        For each measure ("quality", "cost_usd") the moments of both halves, as `split` gives them.
    sizes
        Units in each half, whether their outcomes are known or not.
    spans
        Width of the range of a measure, where there is one; the others are left out.
    alpha
        In (0, 1): the probability that a sound control is ever red. Divided evenly over the
        measures and the sizes.
    best_at
        As in `optimizer.experiments.sequential.compare`.

    Examples
    --------
    >>> even = Moments(500, 250, 250)
    >>> self_check({"quality": (even, even)}, (500, 500), spans={"quality": 1.0}).red
    False
    """
    if not 0 < alpha < 1:
        raise InvalidInput("alpha", alpha, "a probability in (0, 1)")
    level = alpha / (len(measures) + 1)
    halves = sample_ratio(sizes, (1.0, 1.0), level)
    compared = {
        name: compare(first, second, alpha=level, span=spans.get(name), best_at=best_at)
        for name, (first, second) in measures.items()
    }
    reasons = [
        f"the halves of control differ in {name} (p {found.p_value:.1g})"
        for name, found in compared.items()
        if found.p_value <= level
    ]
    if halves.mismatch:
        reasons.insert(0, f"the halves of control are {sizes[0]} and {sizes[1]} units, not equal")
    return SelfCheck(bool(reasons), compared, halves, tuple(reasons))


def readiness(ratio: RatioCheck | None, check: SelfCheck | None) -> Readiness:
    """Both checks in one word.

    Parameters
    ----------
    ratio
        Of the units of all variants; None where nothing is divided.
    check
        Of the control; None where there is no control.

    Examples
    --------
    >>> readiness(sample_ratio([9600, 10400], [1, 1]), None)
    Readiness(ready=False, reasons=('units are divided 48.0:52.0, planned 50.0:50.0 (p 1e-06)',))
    """
    reasons = list(check.reasons) if check else []
    if ratio and ratio.mismatch:
        reasons.insert(
            0,
            f"units are divided {_percent(ratio.observed)}, planned {_percent(ratio.planned)} "
            f"(p {ratio.p_value:.1g})",
        )
    return Readiness(not reasons, tuple(reasons))


def _moments(values: Vector) -> Moments:
    return Moments(int(values.size), math.fsum(values), math.fsum(values * values))


def _percent(shares: tuple[float, ...]) -> str:
    return ":".join(f"{100 * share:.1f}" for share in shares)
