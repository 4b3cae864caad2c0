r"""The price of quality: how a policy holds a quality floor, or a budget, at least cost.

"Least cost at 95 % of the best arm's quality" is a constraint on means, not on single requests, so
the best rule takes, for each request, the arm with the highest :math:`q - \lambda c` for one price
:math:`\lambda` (Lagrange). The price is found from the same feedback that everything else is
learned from: for each of a ladder of prices the model predicts which arms would be taken on recent
requests, and what these would give. What was missed (or saved) so far moves the target, so that
errors of prediction do not add up.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Matrix, Vector
from optimizer.reward import TARGETS, Objective

__all__ = ["Price"]

_RECENT = 256
"""Requests that prices are tried on."""

_LADDER = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 61)])
"""Prices, in units of (quality / mean cost of an arm)."""

_REPAY = 1000.0
_MOST = 0.01
"""A debt of quality is paid back over 1,000 requests, or by 0.01 a request if that takes longer."""

_AIM = 0.33
"""How far above the floor to aim, of the way to the best arm: a mean that is just at the floor
would be below it in half of all hours."""

_REACH = 0.99
"""While the floor seems out of reach, 99 % of the best that is within reach is enough: the last
percent is dear, and mostly an error of prediction."""

_DOUBT = 1.0
_LIKELY, _KNOWN = 2.0, 0.07
"""An arm may be the best while two standard errors above its mean it beats the best mean, and it is
known well when its standard error is below 7 % of that."""

_QUALITY, _COST = TARGETS.index("quality"), TARGETS.index("cost")


class Expecting(Protocol):
    """A model that can say what it expects."""

    arms: int
    sums: Sums

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the expected target."""

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""


class Price:
    """Finds the weights of quality and cost that meet an objective's constraint.

    Parameters
    ----------
    size
        Number of features.
    """

    def __init__(self, size: int) -> None:
        self._recent = np.zeros((_RECENT, size))
        self._seen = np.zeros(1)

    def learn(self, rows: Rows) -> None:
        """Remember the requests whose quality became known."""
        first = np.isnan(rows.before[:, _QUALITY]) & ~np.isnan(rows.after[:, _QUALITY])
        fresh = rows.features[first][-_RECENT:]
        skipped = int(first.sum()) - len(fresh)
        place = (int(self._seen[0]) + skipped + np.arange(len(fresh))) % _RECENT
        self._recent[place] = fresh
        self._seen += len(fresh) + skipped

    def target_weights(self, model: Expecting, objective: Objective, active: int) -> Vector:
        """Shape (len(TARGETS),): the linear form to maximise now.

        Before any request is known, quality is all that counts. Of the model's arms only the first
        ``active`` may be chosen.
        """
        known = int(min(self._seen[0], _RECENT))
        price = 0.0
        if known:
            features = self._recent[:known]
            quality = model.expect(_QUALITY, features)[:, :active]
            cost = model.expect(_COST, features)[:, :active]
            unit = max(float(cost.mean()), 1e-12)
            ladder = _LADDER / unit
            choice = (quality[None] - ladder[:, None, None] * cost[None]).argmax(axis=2)
            rows = np.arange(known)
            allowed = self._allowed(
                model, objective, active, quality[rows, choice].mean(1), cost[rows, choice].mean(1)
            )
            price = float(ladder[allowed])
        weights = np.zeros(len(TARGETS))
        weights[_QUALITY], weights[_COST] = 1.0, -price
        return weights / (1.0 + price)

    def _allowed(
        self,
        model: Expecting,
        objective: Objective,
        active: int,
        ladder_quality: Vector,
        ladder_cost: Vector,
    ) -> int:
        """Index of the price to take."""
        sums = model.sums
        if objective.quality_floor is not None:
            # The first feature is the constant, so its moment is the plain sum.
            count = float(sums.part_count()[_QUALITY].sum())
            got = float(sums.moment[_QUALITY, :, 0].sum())
            wanted = (_AIM + (1.0 - _AIM) * objective.quality_floor) * self._best(model, active)
            short = float(np.clip((wanted * count - got) / _REPAY, -_MOST, _MOST))
            within_reach = _REACH * ladder_quality.max()
            return int(np.flatnonzero(ladder_quality >= min(wanted + short, within_reach)).max())
        assert objective.cost_ceiling is not None
        count = float(sums.part_count()[_COST].sum())
        spent = float(sums.moment[_COST, :, 0].sum())
        room = objective.cost_ceiling + (objective.cost_ceiling * count - spent) / _REPAY
        affordable = ladder_cost <= room
        return int(affordable.argmax()) if affordable.any() else len(_LADDER) - 1

    def _best(self, model: Expecting, active: int) -> float:
        """Mean quality of the arm that is best alone, over all requests known.

        Optimistic by a standard error: an arm that is hardly taken must not look worse than it is,
        or the floor would sink with it.
        """
        mean, doubt = self._alone(model, active)
        return float(np.clip((mean + _DOUBT * doubt).max(), 0.0, 1.0))

    def probe(self, model: Expecting, objective: Objective, active: int) -> int | None:
        """The arm that a small share of requests should go to, to learn where the floor is.

        It is the arm that may well be the best and is not known well enough; at a price on cost no
        other exploration would ever try a dear one. None where there is no such arm, or no floor.
        """
        if objective.quality_floor is None or not self._seen[0]:
            return None
        mean, doubt = self._alone(model, active)
        likely = mean + _LIKELY * doubt
        doubtful = (doubt > _KNOWN * mean.max()) & (likely > mean.max())
        return int(np.where(doubtful, likely, -np.inf).argmax()) if doubtful.any() else None

    def _alone(self, model: Expecting, active: int) -> tuple[Vector, Vector]:
        """Mean quality of each arm if it took all requests known, and its standard error."""
        sums = model.sums
        count = max(float(sums.part_count()[_QUALITY].sum()), 1.0)
        centre = sums.part_gram(_QUALITY)[:, 0].sum(axis=0)[None] / count
        if centre.shape[1] != self._recent.shape[1]:
            centre = self._recent[: int(min(self._seen[0], _RECENT))].mean(axis=0, keepdims=True)
        mean, doubt = model.expect(_QUALITY, centre)[0], model.doubt(_QUALITY, centre)[0]
        return mean[:active], doubt[:active]

    def state(self) -> State:
        """The recent requests."""
        return {"recent": self._recent, "recent_seen": self._seen}

    def restore(self, state: State) -> None:
        """Take what `state` gave."""
        self._recent[:] = state["recent"]
        self._seen[:] = state["recent_seen"]
