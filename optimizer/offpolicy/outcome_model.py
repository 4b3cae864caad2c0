"""What each arm would have given at each row, predicted from strictly earlier rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from optimizer.records import Indices, Matrix, Vector

__all__ = ["Predictions", "predict", "predict_arms"]

_GROWTH = 0.1
_RIDGE = 3.0
"""Precision of the prior of a slope, in rows: of all arms together around 0, of one arm around all
arms."""

_LEVEL_RIDGE = 0.3
"""The same for the level of an arm. It is small, since levels may differ by factors (costs do)."""


@dataclass(frozen=True)
class Predictions:
    """What a model that knew only earlier rows expected.

    Attributes
    ----------
    of_target
        Shape (n,): the mean over arms under the target policy.
    of_drawn
        Shape (n,): of the arm that was drawn.
    """

    of_target: Vector
    of_drawn: Vector


def predict(features: Matrix, arms: Indices, values: Vector, probabilities: Matrix) -> Predictions:
    """What `predict_arms` expects of a target policy and of the arms that were drawn.

    Parameters
    ----------
    features, arms, values
        As for `predict_arms`.
    probabilities
        Shape (n, k): of the target policy.
    """
    expected = predict_arms(features, arms, values, probabilities.shape[1])
    of_target: Vector = (probabilities * expected).sum(axis=1)
    return Predictions(of_target, expected[np.arange(len(arms)), arms])


def predict_arms(features: Matrix, arms: Indices, values: Vector, count: int) -> Matrix:
    """Ridge regression for each arm, fitted anew after every tenth more rows.

    A row is predicted only from rows before its block (cross-fitting in time), so that its weighted
    residual is a martingale difference, on logs of learning policies too. Ordinary folds would use
    later rows, which depend on what was drawn at this one.

    Each arm has its own level and its own slopes. Levels are shrunk a little towards the mean,
    slopes towards those that all arms share, in the scale of each feature. Predictions are held to
    the range of what was seen before; for the first row they are 0.

    Parameters
    ----------
    features
        Shape (n, d), finite, the first column 1.
    arms
        Shape (n,), in [0, k).
    values
        Shape (n,), finite.
    count
        Number of arms, k.

    Returns
    -------
    Shape (n, k).

    References
    ----------
    Kato, Ishihara, Honda, Narita: Efficient adaptive experimental design for average treatment
    effect estimation (2020), for fitting on the past only.
    """
    size = features.shape[1]
    result = np.zeros((values.size, count))
    gram = np.zeros((count, size, size))
    moment = np.zeros((count, size))
    for start, stop in _blocks(values.size):
        block = features[start:stop]
        if start:
            expected = block @ _fit(gram, moment).T
            result[start:stop] = np.clip(expected, values[:start].min(), values[:start].max())
        for arm in np.unique(arms[start:stop]):
            rows = block[arms[start:stop] == arm]
            gram[arm] += rows.T @ rows
            moment[arm] += values[start:stop][arms[start:stop] == arm] @ rows
    return result


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < rows:
        stop = min(rows, start + 1 + int(_GROWTH * start))
        yield start, stop
        start = stop


def _fit(gram: Matrix, moment: Matrix) -> Matrix:
    """Shape (k, d): coefficients of each arm, from sums over the rows of each."""
    all_arms, count = gram.sum(axis=0), gram[:, 0, 0]
    rows = count.sum()
    scale = np.diagonal(all_arms) / rows
    prior = np.diag(_RIDGE * np.where(scale > 0, scale, 1.0))
    prior[0, 0] = _LEVEL_RIDGE
    mean = moment[:, 0].sum() / rows
    level = (moment[:, 0] + _LEVEL_RIDGE * mean) / (count + _LEVEL_RIDGE)
    beside_level = moment.sum(axis=0) - level @ gram[:, :, 0]
    expected = np.tile(np.linalg.solve(all_arms + prior, beside_level), (len(count), 1))
    expected[:, 0] += level
    own = (moment + expected @ prior)[:, :, None]
    return np.asarray(np.linalg.solve(gram + prior, own)[:, :, 0], dtype=np.float64)
