"""From decisions with a known quality to what a quality model learns from and predicts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.records import Arm, Indices, Matrix, Vector

__all__ = [
    "FEWEST_ROWS",
    "WELL_SEEN",
    "Means",
    "QualityDesign",
    "QualityRows",
    "request_groups",
    "task_columns",
    "tasks_of",
    "traits_of",
]

FEWEST_ROWS = 200
"""With fewer rows there is nothing to learn that a mean would not tell."""

WELL_SEEN = 20
"""A mean of an arm counts as if so many rows of the mean above it were among its own."""

_FOLDS = 5
_CALIBRATION_SHARE = 0.25
_TIME = ("hour_", "weekday_", "weekend", "business_hours")


@dataclass(frozen=True)
class QualityRows:
    """Decisions with a known quality.

    Attributes
    ----------
    requests
        Shape (n, d), features as `optimizer.features.FeatureEncoder` made them.
    arms
        Shape (n,): index of the arm that answered.
    quality
        Shape (n,), in [0, 1].
    responses
        Shape (n, len(RESPONSE_FACTS)), NaN where not known.
    """

    requests: Matrix
    arms: Indices
    quality: Vector
    responses: Matrix

    def __post_init__(self) -> None:
        for name in ("arms", "quality", "responses"):
            if len(getattr(self, name)) != len(self.requests):
                raise InvalidInput(name, len(getattr(self, name)), f"{len(self.requests)} rows")
        if not ((self.quality >= 0) & (self.quality <= 1)).all():
            raise InvalidInput("quality", "a value out of range", "every value lies in [0, 1]")

    def take(self, rows: Indices) -> QualityRows:
        """These of the rows."""
        return QualityRows(
            self.requests[rows], self.arms[rows], self.quality[rows], self.responses[rows]
        )


@dataclass(frozen=True)
class Means:
    """What arms did in the mean, each drawn to the mean above it.

    Attributes
    ----------
    overall
        Of all rows.
    arm
        Shape (k,), drawn to ``overall``.
    cell
        Shape (k, tasks), drawn to ``arm``.
    """

    overall: float
    arm: Vector
    cell: Matrix

    @classmethod
    def of(cls, rows: QualityRows, tasks: Indices, arms: int, number: int) -> Means:
        overall = float(rows.quality.mean())
        arm = _drawn(rows.arms, rows.quality, arms, np.full(arms, overall))
        cells = rows.arms * number + tasks
        cell = _drawn(cells, rows.quality, arms * number, np.repeat(arm, number))
        return cls(overall, arm, cell.reshape(arms, number))

    def columns(self, arms: Indices, tasks: Indices) -> Matrix:
        """Shape (n, 2): of the arm, and of the arm on the task."""
        return np.column_stack([self.arm[arms], self.cell[arms, tasks]])


@dataclass(frozen=True)
class QualityDesign:
    """What trees and calibration learn from.

    Attributes
    ----------
    means
        Of the rows that trees are grown on.
    table, quality, offset
        Shapes (n, columns), (n,) and (n,): those rows. Columns are the request, the means of the
        arm and of the arm on the task, the traits of the arm, the response. A row whose response is
        known is there a second time without it: all rows teach what to expect of an arm that has
        not answered, and not only those whose callers do not tell responses. The mean on the task
        is also the offset, what trees start from: where there is nothing more to learn, no tree is
        needed.
    later_table, later_quality, later_offset
        The requests held out for calibration, made in the same way.
    """

    means: Means
    table: Matrix
    quality: Vector
    offset: Vector
    later_table: Matrix
    later_quality: Vector
    later_offset: Vector

    @classmethod
    def of(
        cls, rows: QualityRows, names: Sequence[str], arms: Sequence[Arm], *, seed: int
    ) -> QualityDesign:
        """Divide rows by request and make their columns; arguments as in `QualityModel.fit`."""
        if len(rows.quality) < FEWEST_ROWS:
            raise InvalidInput("rows", len(rows.quality), f"{FEWEST_ROWS} or more to learn from")
        groups = request_groups(rows.requests, names)
        place = np.random.default_rng(seed).random(int(groups.max()) + 1)[groups]
        held_out = place < _CALIBRATION_SHARE
        if held_out.all() or not held_out.any():
            raise InvalidInput("rows", "one request", "rows of several requests")
        fitted, later = rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))
        columns = task_columns(names)
        tasks, number = tasks_of(fitted.requests, columns), len(columns) + 1
        means = Means.of(fitted, tasks, len(arms), number)
        folds = (place[~held_out] - _CALIBRATION_SHARE) / (1.0 - _CALIBRATION_SHARE) * _FOLDS
        told = _out_of_fold(fitted, tasks, len(arms), number, folds.astype(int))
        later_told = means.columns(later.arms, tasks_of(later.requests, columns))
        traits = traits_of(arms)
        return cls(
            means,
            *_columns(fitted, told, traits),
            *_columns(later, later_told, traits),
        )


def _columns(rows: QualityRows, told: Matrix, traits: Matrix) -> tuple[Matrix, Vector, Vector]:
    """Table, quality and offset; rows with a known response follow once more without it."""
    table = np.hstack([rows.requests, told, traits[rows.arms], rows.responses])
    known = np.flatnonzero(np.isfinite(rows.responses).any(axis=1))
    untold = table[known]
    untold[:, table.shape[1] - rows.responses.shape[1] :] = np.nan
    place = np.concatenate([np.arange(len(table)), known])
    return np.vstack([table, untold]), rows.quality[place], told[place, 1]


def request_groups(requests: Matrix, names: Sequence[str]) -> Indices:
    """Number of the request of each row, shape (n,): rows that differ in time alone have the same.

    A split by it never has one prompt on both sides. A request without a prompt is one of its own.
    """
    lasting = [place for place, name in enumerate(names) if not name.startswith(_TIME)]
    _, found = np.unique(requests[:, lasting], axis=0, return_inverse=True)
    groups: Indices = found.ravel().astype(np.int64)
    prompt = [place for place, name in enumerate(names) if name.startswith("embedding_")]
    if prompt:
        alone = np.flatnonzero(~requests[:, prompt].any(axis=1))
        groups[alone] = len(groups) + np.arange(len(alone))
        groups = np.unique(groups, return_inverse=True)[1].ravel().astype(np.int64)
    return groups


def _drawn(index: Indices, quality: Vector, size: int, towards: Vector) -> Vector:
    counts = np.bincount(index, minlength=size)
    sums = np.bincount(index, weights=quality, minlength=size)
    found: Vector = (sums + WELL_SEEN * towards) / (counts + WELL_SEEN)
    return found


def task_columns(names: Sequence[str]) -> Indices:
    """Places of the features that say which task it is."""
    return np.array(
        [place for place, name in enumerate(names) if name.startswith("task=")], dtype=np.int64
    )


def tasks_of(requests: Matrix, columns: Indices) -> Indices:
    """Index of each request's task, the last one without any."""
    if not len(columns):
        return np.zeros(len(requests), dtype=np.int64)
    told = requests[:, columns]
    return np.where(told.any(axis=1), told.argmax(axis=1), len(columns)).astype(np.int64)


def traits_of(arms: Sequence[Arm]) -> Matrix:
    """Shape (k, traits): what is known of each arm beforehand."""
    return np.array([arm.traits for arm in arms], dtype=np.float64).reshape(len(arms), -1)


def _out_of_fold(
    rows: QualityRows, tasks: Indices, arms: int, number: int, folds: Indices
) -> Matrix:
    """`Means.columns` of each row without its fold: its own quality is not in what it is told."""
    told = np.empty((len(folds), 2))
    for fold in range(_FOLDS):
        inside = folds == fold
        others = np.flatnonzero(~inside) if not inside.all() else np.arange(len(folds))
        means = Means.of(rows.take(others), tasks[others], arms, number)
        told[inside] = means.columns(rows.arms[inside], tasks[inside])
    return told
