"""A new quality model against the one that serves, on the newest decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.quality_design import Means, QualityRows, request_groups, task_columns, tasks_of
from optimizer.quality_model import QualityModel
from optimizer.quality_score import Compared, QualityScore, calibration_bins, compare, score
from optimizer.records import Arm

__all__ = ["TOLERANCE", "Trial", "try_model"]

TOLERANCE = 0.002
"""A mean squared error that is larger by less than this is no worse."""

_NEWEST = 0.2


@dataclass(frozen=True)
class Trial:
    """What the newest decisions say.

    Attributes
    ----------
    model
        Trained on the older decisions. It is stored as it was judged, so that its figures are its
        own.
    trained, judged
        Numbers of rows.
    scores
        Of ``model``, of the means per arm, per arm and task, of the ``champion`` if there was one
        that could predict, and of the model ``without the response`` if any was told.
    bins
        Calibration of ``model``, see `optimizer.quality_score.calibration_bins`.
    compared
        ``model`` against the champion, None without one.
    better
        Whether ``model`` is to serve: there is no champion, or it is not worse. It counts as worse
        if its error is larger by `TOLERANCE` or more, or if the whole interval is above 0. The
        interval holds for one look; so a champion is now and then kept or replaced by chance, by a
        difference that the slice is too small to see.
    message
        One sentence for people.
    """

    model: QualityModel
    trained: int
    judged: int
    scores: dict[str, QualityScore]
    bins: list[tuple[float, float, int]]
    compared: Compared | None
    better: bool
    message: str


def try_model(
    rows: QualityRows,
    names: Sequence[str],
    arms: Sequence[Arm],
    champion: QualityModel | None,
    *,
    seed: int,
) -> Trial:
    """Train on the older four fifths of the rows and judge on the newest fifth.

    Older rows of a request that is also among the newest are left out of training, so that no
    prompt is on both sides.

    Parameters
    ----------
    rows
        In time order.
    names, arms, seed
        As in `QualityModel.fit`.
    champion
        The model that serves now; one of other features is not compared with, but replaced.
    """
    number = len(rows.quality)
    first = int(number * (1.0 - _NEWEST))
    groups = request_groups(rows.requests, names)
    older = np.flatnonzero(~np.isin(groups[:first], groups[first:]))
    training, newest = rows.take(older), rows.take(np.arange(first, number))
    model = QualityModel.fit(training, names, arms, seed=seed)
    answered = [arms[arm] for arm in newest.arms]
    predicted = model.predict(newest.requests, answered, newest.responses)
    columns = task_columns(names)
    means = Means.of(training, tasks_of(training.requests, columns), len(arms), len(columns) + 1)
    told = means.columns(newest.arms, tasks_of(newest.requests, columns))
    scores = {
        "model": score(predicted, newest.quality),
        "mean of the arm": score(told[:, 0], newest.quality),
        "mean of the arm on the task": score(told[:, 1], newest.quality),
    }
    if np.isfinite(newest.responses).any():
        before = model.predict(newest.requests, answered)
        scores["without the response"] = score(before, newest.quality)
    compared, better, message = None, True, "the first model here serves from now on"
    if champion is not None and champion.names != tuple(names):
        message = "the model before it reads other features, so this one serves from now on"
    elif champion is not None:
        old = champion.predict(newest.requests, answered, newest.responses)
        scores["champion"] = score(old, newest.quality)
        compared = compare(predicted, old, newest.quality, groups[first:], seed=seed)
        better = compared.low <= 0.0 and compared.difference < TOLERANCE
        message = (
            f"its squared error is {compared.difference:+.4f} against the champion's "
            f"({compared.low:+.4f} to {compared.high:+.4f}): it "
            + ("serves from now on" if better else "does not serve, it is worse")
        )
    bins = calibration_bins(predicted, newest.quality)
    return Trial(model, len(older), number - first, scores, bins, compared, better, message)
