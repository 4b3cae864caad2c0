"""Predicts the quality of a response from the request, the arm and, where told, the response.

It starts from what the arm did on the task in the mean. Boosted trees add what the request's
features, what is known of the arm beforehand, and facts about the response tell beyond it; then
comes a monotone correction on requests that the trees never saw, so that responses with a
prediction of 0.7 have a quality of about 0.7 in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.boosted_trees import BoostedTrees, from_archive, grow, to_archive
from optimizer.calibration import calibrate
from optimizer.errors import IncompatibleState
from optimizer.quality_design import (
    WELL_SEEN,
    Means,
    QualityDesign,
    QualityRows,
    task_columns,
    tasks_of,
    traits_of,
)
from optimizer.records import Arm, Indices, Matrix, Vector
from optimizer.response_facts import RESPONSE_FACTS, unknown_facts

__all__ = ["QualityModel"]

_FORMAT = 1


class QualityModel:
    """A fitted model; `fit` makes one.

    Parameters
    ----------
    names
        The request's features, in order.
    arms
        The arms that it knows, each by its id in hexadecimal.
    seen
        Shape (k,): rows of each arm that it learned from.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> requests = np.column_stack([np.ones(400), random.normal(size=400)])
    >>> quality = (requests[:, 1] > 0) * 1.0
    >>> rows = QualityRows(requests, np.arange(400) % 2, quality, unknown_facts(400))
    >>> model = QualityModel.fit(rows, ("constant", "hardness"), [Arm("a"), Arm("b")], seed=1)
    >>> bool(model.predict(np.array([[1.0, 1.5]]), [Arm("a")])[0] > 0.9)
    True
    """

    def __init__(
        self,
        names: Sequence[str],
        arms: Sequence[str],
        seen: Indices,
        means: Means,
        trees: BoostedTrees,
        knots: tuple[Vector, Vector],
        knows_responses: bool,
    ) -> None:
        self.names = tuple(names)
        self.arms = tuple(arms)
        self.seen = seen
        self.knows_responses = knows_responses
        """Whether it has learned from facts about responses; else they change nothing."""
        self._place = {arm: place for place, arm in enumerate(self.arms)}
        self._means = means
        self._trees = trees
        self._knots = knots
        self._tasks = task_columns(self.names)
        traits = trees.features - len(self.names) - 2 - len(RESPONSE_FACTS)
        if traits < 0 or means.cell.shape != (len(self.arms), len(self._tasks) + 1):
            raise IncompatibleState("a quality model whose parts do not fit each other")
        self._traits = traits

    @classmethod
    def fit(
        cls, rows: QualityRows, names: Sequence[str], arms: Sequence[Arm], *, seed: int
    ) -> QualityModel:
        """Learn.

        A quarter of the requests is left to calibration, all rows of a request on one side.

        Parameters
        ----------
        rows
            `FEWEST_ROWS` or more.
        names
            Names of the features of a request, d of them.
        arms
            Which arm each index of ``rows.arms`` is.
        seed
            The same rows and seed give the same model.

        Raises
        ------
        InvalidInput
            If there are too few rows.
        """
        made = QualityDesign.of(rows, names, arms, seed=seed)
        later = made.later_table, made.later_quality - made.later_offset
        trees = grow(made.table, made.quality - made.offset, later, seed=seed)
        return cls(
            names,
            [arm.id.hex() for arm in arms],
            np.bincount(rows.arms, minlength=len(arms)),
            made.means,
            trees,
            calibrate(trees.predict(made.later_table) + made.later_offset, made.later_quality),
            bool((trees.column >= trees.features - len(RESPONSE_FACTS)).any()),
        )

    def predict(
        self, requests: Matrix, arms: Sequence[Arm], responses: Matrix | None = None
    ) -> Vector:
        """Calibrated quality in [0, 1] of each row, shape (n,).

        Parameters
        ----------
        requests
            Shape (n, d) of one request or of several.
        arms
            The arm of each row, n of them. One that the model has never seen counts as a typical
            one with its traits.
        responses
            Shape (n, len(RESPONSE_FACTS)), NaN where not known; none is known if None.
        """
        place = np.array([self._place.get(arm.id.hex(), -1) for arm in arms])
        known = place >= 0
        tasks = tasks_of(requests, self._tasks)
        means = self._means.columns(np.where(known, place, 0), tasks)
        means[~known] = self._means.overall
        traits = traits_of(arms)
        if traits.shape[1] != self._traits:
            raise IncompatibleState(f"arms with {traits.shape[1]} traits, not {self._traits}")
        facts = unknown_facts(len(arms)) if responses is None else responses
        raw = self._trees.predict(np.hstack([requests, means, traits, facts]))
        return np.interp(raw + means[:, 1], *self._knots)

    def predict_arms(
        self,
        features: Vector,
        arms: Sequence[Arm],
        answered: int | None = None,
        facts: Vector | None = None,
    ) -> list[float]:
        """Calibrated quality of each arm on one request.

        Parameters
        ----------
        features
            Shape (d,).
        arms
            Which to predict, k of them.
        answered, facts
            The index of the arm that answered, and `optimizer.response_facts` of its response.
        """
        responses = unknown_facts(len(arms))
        if answered is not None and facts is not None:
            responses[answered] = facts
        repeated = np.broadcast_to(features, (len(arms), len(features)))
        found: list[float] = self.predict(repeated, arms, responses).tolist()
        return found

    @property
    def overall(self) -> float:
        """Mean quality of everything it learned from: the guess about an unknown request."""
        return self._means.overall

    def has_seen(self, arm: Arm) -> bool:
        """Whether it has learned from enough rows of the arm to say more than a typical one."""
        place = self._place.get(arm.id.hex())
        return place is not None and bool(self.seen[place] >= WELL_SEEN)

    def to_bytes(self) -> bytes:
        """An npz archive without pickle; the same model gives the same bytes."""
        return to_archive(
            self._trees,
            format=np.int64(_FORMAT),
            names=np.array(self.names, dtype=np.str_),
            arms=np.array(self.arms, dtype=np.str_),
            facts=np.array(RESPONSE_FACTS, dtype=np.str_),
            seen=self.seen.astype(np.int64),
            overall=np.float64(self._means.overall),
            arm_means=self._means.arm,
            cell_means=self._means.cell,
            knots_raw=self._knots[0],
            knots_quality=self._knots[1],
            knows_responses=np.bool_(self.knows_responses),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> QualityModel:
        """Read what `to_bytes` wrote.

        Raises
        ------
        IncompatibleState
            If the content is something else, or of another version of this code.
        """
        trees, found = from_archive(content)
        try:
            if int(found["format"]) != _FORMAT or tuple(found["facts"].tolist()) != RESPONSE_FACTS:
                raise IncompatibleState("a quality model of another version; train a new one")
            knots = found["knots_raw"], found["knots_quality"]
            if not (len(knots[0]) == len(knots[1]) > 0 and np.isfinite(knots).all()):
                raise IncompatibleState("a quality model without calibration")
            return cls(
                found["names"].tolist(),
                found["arms"].tolist(),
                found["seen"],
                Means(float(found["overall"]), found["arm_means"], found["cell_means"]),
                trees,
                knots,
                bool(found["knows_responses"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise IncompatibleState(f"not a quality model: {error}") from error
