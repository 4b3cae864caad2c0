"""Which rows stand out? Four scores with one unit: standard deviations of a normal distribution.

``z``: mean and standard deviation. ``iqr``: median and interquartile range. ``mad``: median and
median absolute deviation. ``mahalanobis``: all columns together, with a robust covariance. The
first is misled by the very outliers it looks for, the others bear some 25 to 50 % of them.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import numpy as np
from scipy.stats import chi2, norm

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["Method", "scores"]

Method = Literal["z", "iqr", "mad", "mahalanobis"]

_LEAST_ROWS = 20
_SIGMAS_OF_IQR = float(2 * norm.ppf(0.75))
_SIGMAS_OF_MAD = float(norm.ppf(0.75))


def scores(method: Method, reference: Matrix, current: Matrix, floors: Vector) -> Matrix:
    """How far rows lie from the reference, 0 or more, in standard deviations.

    Parameters
    ----------
    method
        See above.
    reference, current
        Shapes (n, k) and (m, k): figures of moments, for instance of minutes. NaN where a figure
        is not known.
    floors
        Shape (k,), above 0: least standard deviation that a figure is taken to have, so that one
        that never moved before may move a little.

    Returns
    -------
    Shape (m, k), or (m, 1) for ``mahalanobis``, which needs all figures of a row. NaN where nothing
    can be said: a figure that is not known, or fewer than 20 rows of reference.

    Raises
    ------
    InvalidInput
        If the method is unknown or shapes differ.

    References
    ----------
    Rousseeuw, Van Driessen: A fast algorithm for the minimum covariance determinant estimator,
    Technometrics 41 (1999). Iglewicz, Hoaglin: How to detect and handle outliers, 1993.

    Examples
    --------
    >>> minutes = np.random.default_rng(0).normal(1.0, 0.1, size=(500, 1))
    >>> for method in ("z", "iqr", "mad", "mahalanobis"):
    ...     found = scores(method, minutes, np.array([[1.0], [2.0]]), np.array([0.01]))
    ...     print(method, bool(found[0] < 1), bool(found[1] > 8))
    z True True
    iqr True True
    mad True True
    mahalanobis True True
    """
    if method not in get_args(Method):
        raise InvalidInput("method", method, f"one of {', '.join(get_args(Method))}")
    if not reference.shape[1] == current.shape[1] == len(floors):
        raise InvalidInput(
            "current", current.shape, f"{reference.shape[1]} columns, as the reference has"
        )
    if method == "mahalanobis":
        return _mahalanobis(reference, current, floors)[:, None]
    columns = [
        _one(method, known[~np.isnan(known)], values, float(floor))
        for known, values, floor in zip(reference.T, current.T, floors, strict=True)
    ]
    return np.column_stack(columns)


def _one(method: Method, known: Vector, values: Vector, floor: float) -> Vector:
    if known.size < _LEAST_ROWS:
        return np.full(values.shape, np.nan)
    centre = float(np.mean(known) if method == "z" else np.median(known))
    if method == "z":
        scale = float(known.std(ddof=1))
    elif method == "iqr":
        low, high = np.quantile(known, [0.25, 0.75])
        scale = float(high - low) / _SIGMAS_OF_IQR
    else:
        scale = float(np.median(np.abs(known - centre))) / _SIGMAS_OF_MAD
    distance: Vector = np.abs(values - centre) / max(scale, floor)
    return distance


def _mahalanobis(reference: Matrix, current: Matrix, floors: Vector) -> Vector:
    from sklearn.covariance import MinCovDet  # a second to import

    whole = reference[~np.isnan(reference).any(axis=1)]
    found = np.full(len(current), np.nan)
    known = ~np.isnan(current).any(axis=1)
    if len(whole) < max(_LEAST_ROWS, 5 * reference.shape[1]) or not known.any():
        return found
    with warnings.catch_warnings():  # on columns that never move: the floor is for them
        warnings.simplefilter("ignore")
        fitted = MinCovDet(random_state=0).fit(whole / floors)
    covariance = np.asarray(fitted.covariance_)
    covariance[np.diag_indices_from(covariance)] += 1.0
    away = current[known] / floors - fitted.location_
    square = (away * np.linalg.solve(covariance, away.T).T).sum(axis=1)
    tail = np.maximum(chi2.logsf(square, reference.shape[1]), -690.0)
    found[known] = norm.isf(np.exp(tail) / 2.0)
    return found
