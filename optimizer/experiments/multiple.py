"""Several variants against one control: what is claimed of all of them together.

Nothing here asks for independence. The comparisons share the control, so they are dependent, and
always-valid p-values stay valid p-values at whatever time one stops: Holm's procedure and weighted
Bonferroni hold under any dependence, and so does e-BH for the false discovery rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.experiments.moments import Moments
from optimizer.experiments.sequential import Comparison, compare

__all__ = ["compare_all", "e_benjamini_hochberg", "holm"]


def compare_all(
    variants: Sequence[Moments],
    control: Moments,
    *,
    alpha: float = 0.05,
    weights: Sequence[float] | None = None,
    span: float | None,
    best_at: float,
) -> tuple[Comparison, ...]:
    """Each variant against the control, all intervals right together.

    Variant i gets the level ``alpha * weights[i]``, so the probability that any interval ever
    misses is at most ``alpha``. The p-values are not adjusted: give them to `holm`, which finds
    at least as much.

    Parameters
    ----------
    variants, control
        Of the observations of each group so far; one variant or more.
    alpha
        In (0, 1), of the whole family.
    weights
        Above 0, one for each variant; scaled to sum 1. Equal if None. Fixed before the first look.
    span, best_at
        As in `optimizer.experiments.sequential.compare`; ``best_at`` counts a variant and control.

    Examples
    --------
    >>> seen = [Moments(2000, 1120, 1120), Moments(2000, 1010, 1010)]
    >>> found = compare_all(seen, Moments(2000, 1000, 1000), span=1, best_at=4000)
    >>> [entry.difference.low > 0 for entry in found]
    [True, False]
    >>> [round(p, 4) for p in holm([entry.p_value for entry in found])]
    [0.0098, 1.0]
    """
    shares = np.ones(len(variants)) if weights is None else np.asarray(weights, dtype=float)
    if shares.shape != (len(variants),) or not (shares > 0).all():
        raise InvalidInput("weights", weights, f"{len(variants)} numbers above 0")
    levels = (alpha * shares / shares.sum()).tolist()
    return tuple(
        compare(variant, control, alpha=level, span=span, best_at=best_at)
        for variant, level in zip(variants, levels, strict=True)
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values: reject those of at most ``alpha``, with family-wise error ``alpha``.

    Parameters
    ----------
    p_values
        In [0, 1], fixed-horizon or always valid; for e-values give ``min(1, 1 / e)``.

    References
    ----------
    Holm, Scandinavian Journal of Statistics 6 (1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInput("p_values", list(p_values), "probabilities in [0, 1]")
    order = values.argsort(kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return tuple(adjusted.tolist())


def e_benjamini_hochberg(e_values: Sequence[float], alpha: float = 0.05) -> tuple[bool, ...]:
    """Which to reject so that at most a share ``alpha`` of those rejected is expected to be false.

    Parameters
    ----------
    e_values
        0 or more.
    alpha
        In (0, 1): the false discovery rate.

    References
    ----------
    Wang, Ramdas: False discovery rate control with e-values, JRSS B 84 (2022).

    Examples
    --------
    >>> e_benjamini_hochberg([70.0, 0.4, 32.0])
    (True, False, True)
    """
    if not 0 < alpha < 1:
        raise InvalidInput("alpha", alpha, "a probability in (0, 1)")
    values = np.asarray(e_values, dtype=float)
    if not (values >= 0).all():
        raise InvalidInput("e_values", list(e_values), "numbers of 0 or more")
    falling = np.sort(values)[::-1]
    passed = falling * np.arange(1, values.size + 1) >= values.size / alpha
    if not passed.any():
        return (False,) * values.size
    least = falling[np.flatnonzero(passed)[-1]]
    return tuple((values >= least).tolist())
