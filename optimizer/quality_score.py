"""How good predictions of quality are: correlation, Brier score, calibration, and a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from optimizer.errors import InvalidInput
from optimizer.records import Indices, Vector

__all__ = ["Compared", "QualityScore", "calibration_bins", "compare", "score"]

BINS = 10
_DRAWS = 1000
_CONSTANT = 1e-9
"""A smaller spread is rounding."""


@dataclass(frozen=True)
class QualityScore:
    """Of predictions on rows that no part of the model has seen.

    Attributes
    ----------
    rows
        Number of rows.
    pearson, spearman
        Correlation with the truth, in [-1, 1]; None where one of them is constant.
    auc
        Chance that a good row is ranked before a bad one; None unless quality is 0 or 1 and both
        occur.
    brier
        Mean squared error.
    calibration_error
        Expected calibration error: mean absolute difference between mean prediction and mean
        quality of `BINS` bins with equally many rows. Noise makes it larger, never smaller: of a
        perfect model on 200 rows it is about 0.07.
    """

    rows: int
    pearson: float | None
    spearman: float | None
    auc: float | None
    brier: float
    calibration_error: float

    def figures(self) -> dict[str, float]:
        """Those that are known, by name."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Compared:
    """A new model against an old one on the same rows.

    Attributes
    ----------
    difference
        Mean squared error of the new minus that of the old; below 0 the new one is better.
    low, high
        95 % percentile interval of a bootstrap over requests. It holds for one look: who compares
        every hour will now and then see a chance difference.
    """

    difference: float
    low: float
    high: float


def score(predicted: Vector, quality: Vector) -> QualityScore:
    """Score predictions, both of shape (n,) with n of 1 or more.

    Examples
    --------
    >>> found = score(np.array([0.1, 0.2, 0.9, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]))
    >>> found.auc, round(found.brier, 3)
    (1.0, 0.025)
    """
    if len(predicted) != len(quality) or not len(quality):
        raise InvalidInput("predicted", len(predicted), f"as many as truths, {len(quality)}, 1 up")
    varied = np.std(predicted) > _CONSTANT and np.std(quality) > _CONSTANT
    bins = calibration_bins(predicted, quality)
    return QualityScore(
        len(quality),
        float(stats.pearsonr(predicted, quality).statistic) if varied else None,
        float(stats.spearmanr(predicted, quality).statistic) if varied else None,
        _auc(predicted, quality),
        float(np.mean((predicted - quality) ** 2)),
        float(sum(count * abs(mean - truth) for mean, truth, count in bins) / len(quality)),
    )


def calibration_bins(predicted: Vector, quality: Vector) -> list[tuple[float, float, int]]:
    """Mean prediction, mean quality and rows of `BINS` bins of equally many rows, in order."""
    order = np.argsort(predicted, kind="stable")
    return [
        (float(predicted[rows].mean()), float(quality[rows].mean()), len(rows))
        for rows in np.array_split(order, min(BINS, len(order)))
    ]


def compare(
    new: Vector, old: Vector, quality: Vector, groups: Indices, *, seed: int = 0
) -> Compared:
    """Compare two models' predictions row by row; rows of one request are drawn together.

    Parameters
    ----------
    new, old, quality
        Shape (n,).
    groups
        Shape (n,): the request of each row.
    """
    loss = (new - quality) ** 2 - (old - quality) ** 2
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, weights=loss), np.bincount(place)
    random = np.random.default_rng(seed)
    drawn = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        rows = random.integers(len(sums), size=len(sums))
        drawn[draw] = sums[rows].sum() / counts[rows].sum()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Compared(float(loss.mean()), float(low), float(high))


def _auc(predicted: Vector, quality: Vector) -> float | None:
    good = quality == 1.0
    positive, negative = int(good.sum()), int((quality == 0.0).sum())
    if positive + negative < len(quality) or not positive or not negative:
        return None
    ranks = stats.rankdata(predicted)
    return float((ranks[good].sum() - positive * (positive + 1) / 2.0) / (positive * negative))
