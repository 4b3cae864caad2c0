"""Each variant against the baseline, by the test that fits the design."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct, structs

from optimizer.confidence import BEST_AT, Estimate
from optimizer.experiments.adaptive import adaptive_difference, adaptive_mean
from optimizer.experiments.allocation import least_weight
from optimizer.experiments.experiment import BOUNDED, Design
from optimizer.experiments.moments import Moments
from optimizer.experiments.multiple import compare_all, holm
from optimizer.records import Indices, Vector

__all__ = ["Interval", "Pair", "compare", "moments_of", "planned_samples"]

_WIDEST_STD = 0.5
"""Of anything in [0, 1]."""


class Interval(Struct, frozen=True):
    """A number and its interval; ends are None where there are too few rows for one."""

    value: float | None
    low: float | None
    high: float | None


class Pair(Struct, frozen=True):
    """A variant against the baseline, see `optimizer.experiments.analysis.VariantReport`."""

    difference: Interval | None = None
    p_value: float | None = None
    e_value: float | None = None
    p_corrected: float | None = None

    def significant(self, alpha: float) -> bool:
        """Whether it differs from the baseline, all comparisons of the experiment together."""
        if self.p_corrected is not None:
            return self.p_corrected <= alpha
        found = self.difference  # of adaptive data, which have an interval and no p-value
        if found is None or found.low is None or found.high is None:
            return False
        return found.low > 0 or found.high < 0


def compare(
    design: Design,
    planned: int | None,
    variant: Indices,
    value: Vector,
    propensity: Vector,
) -> tuple[tuple[float | None, ...], tuple[Pair, ...]]:
    """Means of the variants, and each of the others against the first.

    Parameters
    ----------
    design
        Which test, and at which level: intervals are those of the level divided by the number of
        comparisons (Bonferroni), p-values are corrected by Holm, which is never less powerful.
    planned
        As `planned_samples` gave it when the experiment was made.
    variant, value, propensity
        Shape (n,), in time order: index of the variant, outcome (no NaN), propensity of the arm.
    """
    if design.adaptive:
        return _adaptive(design, planned, variant, value, propensity)
    moments = moments_of(variant, value, len(design.variants))
    means = tuple(one.mean if one.count else None for one in moments)
    if design.analysis == "fixed_horizon":
        assert planned is not None  # the design makes sure
        return means, _at_horizon(design, planned, variant, value, moments)
    found = compare_all(
        moments[1:], moments[0], alpha=design.alpha, span=_span(design), best_at=_best_at(planned)
    )
    pairs = [Pair(_interval(one.difference), one.p_value, one.e_value) for one in found]
    return means, _corrected(pairs)


def moments_of(variant: Indices, value: Vector, number: int) -> tuple[Moments, ...]:
    """The moments of each variant."""
    found = []
    for place in range(number):
        values = value[variant == place]
        found.append(Moments(values.size, float(values.sum()), float(values @ values)))
    return tuple(found)


def planned_samples(design: Design) -> int | None:
    """Outcomes in each variant for 80 % power at a fixed horizon, unless the design says how many.

    Rests on the widest standard deviation that something in [0, 1] can have. None where there is
    nothing to plan with: no smallest effect, or a measure whose spread is not known beforehand.
    """
    if design.planned_samples is not None:
        return design.planned_samples
    if design.smallest_effect is None or design.measure not in BOUNDED:
        return None
    from optimizer.experiments.fixed_horizon import mean_size  # seconds to import

    both = mean_size(design.smallest_effect, _WIDEST_STD, alpha=_level(design))
    return math.ceil(both / 2)


def _level(design: Design) -> float:
    return design.alpha / (len(design.variants) - 1)


def _best_at(planned: int | None) -> float:
    """Where intervals are tightest: fixed by the design, for it may not follow the data."""
    return float(BEST_AT) if planned is None else 2.0 * planned


def _span(design: Design) -> float | None:
    """Width of the range of the measure; None where it has none."""
    return 1.0 if design.measure in BOUNDED else None


def _at_horizon(
    design: Design,
    planned: int,
    variant: Indices,
    value: Vector,
    moments: Sequence[Moments],
) -> tuple[Pair, ...]:
    """From exactly the planned number of each variant, the earliest: later looks change nothing."""
    if min(one.count for one in moments) < planned:
        return (Pair(),) * (len(moments) - 1)
    first = np.concatenate(
        [np.flatnonzero(variant == place)[:planned] for place in range(len(moments))]
    )
    read = moments_of(variant[first], value[first], len(moments))
    from optimizer.experiments.fixed_horizon import read_once_means, read_once_proportions

    binary = bool(np.isin(value[first], (0.0, 1.0)).all())
    test = read_once_proportions if binary else read_once_means
    found = [test(one, read[0], alpha=_level(design)) for one in read[1:]]
    return _corrected([Pair(_interval(one.difference), one.p_value) for one in found])


def _adaptive(
    design: Design,
    planned: int | None,
    variant: Indices,
    value: Vector,
    propensity: Vector,
) -> tuple[tuple[float | None, ...], tuple[Pair, ...]]:
    """Weighted by inverse propensity: which variant a request got depends on what came before."""
    number = len(design.variants)
    floor = min(least_weight(number), float(propensity.min(initial=1.0)))
    best_at, span = _best_at(planned), _span(design)
    means = [
        adaptive_mean(value, variant, propensity, place, floor=floor, span=span)
        for place in range(number)
    ]
    differences = [
        adaptive_difference(
            value,
            variant,
            propensity,
            place,
            0,
            floor=floor,
            alpha=_level(design),
            span=span,
            best_at=best_at,
        )
        for place in range(1, number)
    ]
    return tuple(one.value for one in means), tuple(Pair(_interval(one)) for one in differences)


def _interval(found: Estimate) -> Interval:
    return Interval(found.value, found.low, found.high)


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    corrected = holm([pair.p_value or 0.0 for pair in pairs])
    return tuple(
        structs.replace(pair, p_corrected=one) for pair, one in zip(pairs, corrected, strict=True)
    )
