"""From raw predictions to ones that mean what they say: a rising curve, kept as its corners.

With few rows two numbers are fitted (Platt 1999), with many a free rising curve (Zadrozny and Elkan
2002); which is better when: Niculescu-Mizil and Caruana 2005, and benchmarks/results.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from optimizer.records import Vector

__all__ = ["Knots", "calibrate", "isotonic", "logistic"]

Knots = tuple[Vector, Vector]
"""Raw predictions, rising, and the calibrated value at each; lines between, flat outside."""

_MANY = 5000
_STEPS = 201


def calibrate(raw: Vector, quality: Vector) -> Knots:
    """Fit on rows that the raw predictions were not fitted on, both of shape (n,).

    Examples
    --------
    >>> at, values = calibrate(np.array([0.2, 0.4] * 50), np.array([0.0, 1.0] * 50))
    >>> bool(np.interp(0.2, at, values) < 0.1)
    True
    """
    return isotonic(raw, quality) if len(raw) >= _MANY else logistic(raw, quality)


def isotonic(raw: Vector, quality: Vector) -> Knots:
    """Isotonic regression."""
    order = np.argsort(raw, kind="stable")
    fitted = np.clip(isotonic_regression(quality[order]).x, 0.0, 1.0)
    at = raw[order]
    changes = np.flatnonzero(np.diff(fitted))
    ends = np.unique(np.concatenate([[0], changes, changes + 1, [len(at) - 1]]))
    return at[ends], fitted[ends]


def logistic(raw: Vector, quality: Vector) -> Knots:
    """A logistic curve of the log odds, by cross entropy; it rises, or is flat."""
    x = _log_odds(raw)

    def loss(theta: Vector) -> float:
        chance = np.clip(expit(theta[0] + np.exp(theta[1]) * x), 1e-9, 1.0 - 1e-9)
        return float(-np.mean(quality * np.log(chance) + (1.0 - quality) * np.log1p(-chance)))

    level, slope = minimize(loss, np.zeros(2), method="Nelder-Mead").x
    at = np.linspace(0.0, 1.0, _STEPS)
    return at, expit(level + np.exp(slope) * _log_odds(at))


def _log_odds(raw: Vector) -> Vector:
    found: Vector = logit(np.clip(raw, 0.001, 0.999))
    return found
