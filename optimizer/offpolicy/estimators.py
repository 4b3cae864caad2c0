r"""Five estimators of what a policy would have got, each as one score a row.

With :math:`w = e(a|x) / b(a|x)` for the target :math:`e` and the logging policy :math:`b`, an
outcome :math:`r`, and a prediction :math:`\hat q` from earlier rows only, it is the mean of

========  ==========================================================================================
ips       :math:`w r` (Horvitz, Thompson 1952): unbiased, large variance
snips     the mean of :math:`w r` over that of :math:`w` (Swaminathan, Joachims 2015)
dm        :math:`\sum_a e(a|x) \hat q(x, a)`: no weights, but biased wherever the model is wrong
dr        dm + :math:`w (r - \hat q(x, a))` (Dudík, Langford, Li 2011): unbiased, and as good as
          the model makes it
switch    dr where :math:`w \le \tau`, dm elsewhere (Wang, Agarwal, Dudík 2017): less variance for
          some bias
========  ==========================================================================================

SWITCH compares the weight of the arm that was drawn, since a log holds no other propensity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from optimizer.offpolicy.draws import Draws, Flags
from optimizer.offpolicy.outcome_model import Predictions
from optimizer.records import Vector

__all__ = ["ESTIMATORS", "LABELS", "Rows", "Scores", "scores"]


@dataclass(frozen=True)
class Rows:
    """What estimators see of the log.

    Attributes
    ----------
    draws
        Of the arms that were drawn.
    outcomes
        Shape (n,), finite: of the arm that was drawn.
    predictions
        Made from earlier rows only.
    clip
        Weights above it are not trusted by SWITCH; above 0.
    """

    draws: Draws
    outcomes: Vector
    predictions: Predictions
    clip: float

    def __getitem__(self, rows: slice | Flags) -> Rows:
        model = self.predictions
        return Rows(
            self.draws[rows],
            self.outcomes[rows],
            Predictions(model.of_target[rows], model.of_drawn[rows]),
            self.clip,
        )


@dataclass(frozen=True)
class Scores:
    """One score a row.

    Attributes
    ----------
    values
        Shape (n,): the estimate is their mean.
    weights, residuals
        Shape (n,): what was weighted, and by what.
    second_moment
        Least mean of the squared weights that the propensities allow for, see `Draws`.
    dropped
        In [0, 1]: the share of the target's choices for which the model alone speaks, as estimated
        by the weights that were left out.
    """

    values: Vector
    weights: Vector
    residuals: Vector
    second_moment: float
    dropped: float = 0.0


def _ips(rows: Rows) -> Scores:
    return _weighted(rows, 0.0, rows.outcomes)


def _snips(rows: Rows) -> Scores:
    """Linearised around the estimate, so that their variance is that of the ratio."""
    weights = rows.draws.weights
    mean_weight = float(weights.mean())
    if mean_weight == 0.0:
        return _weighted(rows, 0.0, rows.outcomes)
    ratio = float((weights * rows.outcomes).mean()) / mean_weight
    return _weighted(rows, ratio, (rows.outcomes - ratio) / mean_weight)


def _dm(rows: Rows) -> Scores:
    none = np.zeros_like(rows.outcomes)
    return Scores(rows.predictions.of_target, none, none, 0.0, dropped=1.0)


def _dr(rows: Rows) -> Scores:
    return _weighted(rows, rows.predictions.of_target, rows.outcomes - rows.predictions.of_drawn)


def _switch(rows: Rows) -> Scores:
    kept = rows.draws.clipped(rows.clip)
    residuals = rows.outcomes - rows.predictions.of_drawn
    return Scores(
        rows.predictions.of_target + kept * residuals,
        kept,
        residuals,
        float(rows.draws.second_moments(rows.clip).mean()),
        min(float((rows.draws.weights - kept).mean()), 1.0),
    )


def _weighted(rows: Rows, base: Vector | float, residuals: Vector) -> Scores:
    weights = rows.draws.weights
    moment = float(rows.draws.second_moments().mean())
    return Scores(base + weights * residuals, weights, residuals, moment)


ESTIMATORS: Mapping[str, Callable[[Rows], Scores]] = {
    "ips": _ips,
    "snips": _snips,
    "dm": _dm,
    "dr": _dr,
    "switch": _switch,
}

LABELS = {
    "ips": "inverse propensity (IPS)",
    "snips": "self-normalised IPS",
    "dm": "direct method",
    "dr": "doubly robust",
    "switch": "SWITCH",
}


def scores(name: str, rows: Rows) -> Scores:
    """The scores of one of `ESTIMATORS`."""
    return ESTIMATORS[name](rows)
