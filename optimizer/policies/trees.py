"""Tree heads: randomised trees, for outcomes that are no linear function of the features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from optimizer.policies.sums import Rows, State, Sums
from optimizer.records import Matrix, Vector
from optimizer.reward import PART_OF_TARGET, PARTS, TARGETS

__all__ = ["TreeHeads"]

_REMEMBERED = 2000
_TREES = 16
_LEAF = 5
_DEPTH = 8
_PRIOR_MEAN = 0.5
_PRIOR_STD = 0.4


class TreeHeads:
    """Predicts every target by a forest over features and arm (Geurts et al., 2006).

    The last 2,000 decisions are kept, and the forests are grown anew from them at the end of each
    block of rewards. Their disagreement is the uncertainty. Targets of one part share a forest.
    Its decisions cost more than those of linear heads, see ``make bench-policies``.

    Parameters
    ----------
    arms, size
        Number of arms and of features.
    """

    def __init__(self, arms: int, size: int) -> None:
        self.arms = arms
        self.size = size
        self.sums = Sums(arms, 1)
        self._arm = np.zeros(0)
        self._features = np.zeros((0, size))
        self._targets = np.zeros((0, len(TARGETS)))
        self._share = np.zeros(0)
        self._forests: dict[int, _Forest] = {}
        self._weights = np.zeros(len(TARGETS))
        self._usual = np.ones(len(TARGETS))

    def learn(self, rows: Rows) -> None:
        """Remember the rows; a change of a decision that is still remembered is made there."""
        constant = np.ones((len(rows.arm), 1))
        self.sums.add(Rows(rows.arm, constant, rows.before, rows.after, rows.weight))
        for row in range(len(rows.arm)):
            if np.isnan(rows.before[row]).all() or not self._amend(rows, row):
                self._arm = np.append(self._arm, rows.arm[row])
                self._features = np.vstack([self._features, rows.features[row]])
                self._targets = np.vstack([self._targets, rows.after[row]])
                self._share = np.append(self._share, rows.weight[row])
        keep = slice(-_REMEMBERED, None)
        self._arm, self._features = self._arm[keep], self._features[keep]
        self._targets, self._share = self._targets[keep], self._share[keep]

    def _amend(self, rows: Rows, row: int) -> bool:
        same = (
            (self._arm == rows.arm[row])
            & (self._features == rows.features[row]).all(axis=1)
            & np.isclose(self._targets, rows.before[row], rtol=0, atol=0, equal_nan=True).all(
                axis=1
            )
        )
        if not same.any():
            return False
        self._targets[np.flatnonzero(same)[-1]] = rows.after[row]
        return True

    def scale(self, factor: float | Vector) -> None:
        """Forget: what is remembered weighs less when the forests are grown."""
        self.sums.scale(factor)
        share = np.broadcast_to(np.asarray(factor, dtype=float), (self.arms,))
        self._share = self._share * share[self._arm.astype(int)]

    def settle(self) -> None:
        """Grow the forests anew."""
        inputs = np.hstack([self._features, np.eye(self.arms)[self._arm.astype(int)]])
        for part in range(len(PARTS)):
            targets = [target for target in range(len(TARGETS)) if PART_OF_TARGET[target] == part]
            known = ~np.isnan(self._targets[:, targets[0]]) & (self._share > 1e-6)
            if known.sum() < 2 * _LEAF:
                continue
            forest = ExtraTreesRegressor(
                _TREES,
                max_depth=_DEPTH,
                min_samples_leaf=_LEAF,
                bootstrap=True,
                random_state=part,
            )
            wanted = self._targets[known][:, targets].squeeze()
            forest.fit(inputs[known], wanted, self._share[known])
            self._forests[part] = _Forest.grown(forest, len(targets))
        count = np.maximum(self.sums.part_count().sum(axis=1), 1.0)
        mean = self.sums.moment[:, :, 0].sum(axis=1) / count
        self._usual = np.maximum(self.sums.squares.sum(axis=1) / count - mean**2, 1e-6)

    def surprises(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what was seen minus what was expected, in units of the spread."""
        first = np.where(np.isnan(rows.before), rows.after, np.nan)
        surprise: Matrix = (first - self.foreseen(rows)) / np.sqrt(self._usual)
        return surprise

    def foreseen(self, rows: Rows) -> Matrix:
        """Shape (n, targets): what the forests expect, NaN while there is none."""
        expected: Matrix = np.full((len(rows.arm), len(TARGETS)), np.nan)
        for target in range(len(TARGETS)):
            if PART_OF_TARGET[target] in self._forests:
                by_arm = self.expect(target, rows.features)
                expected[:, target] = by_arm[np.arange(len(rows.arm)), rows.arm]
        return expected

    def refresh(self, target_weights: Vector) -> None:
        """Take the objective; the forests change only at `settle`."""
        self._weights = target_weights.copy()

    def score(self, features: Vector) -> tuple[Vector, Vector]:
        """Mean and disagreement of the trees, each of shape (arms,)."""
        mean, std = self.score_many(features[None])
        return mean[0], std[0]

    def score_many(self, features: Matrix) -> tuple[Matrix, Matrix]:
        """`score` of many requests, each of shape (n, arms)."""
        mean = np.zeros((len(features), self.arms))
        variance = np.zeros_like(mean)
        for target in np.flatnonzero(self._weights).tolist():
            weight, values = self._weights[target], self._of_trees(target, features)
            mean += weight * values.mean(axis=0)
            variance += weight**2 * values.var(axis=0)
            if PART_OF_TARGET[target] not in self._forests:
                variance += (weight * _PRIOR_STD) ** 2
        return mean, np.sqrt(variance)

    def expect(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the mean of one target."""
        expected: Matrix = self._of_trees(target, features).mean(axis=0)
        return expected

    def doubt(self, target: int, features: Matrix) -> Matrix:
        """Shape (n, arms): the standard error of `expect`."""
        if PART_OF_TARGET[target] not in self._forests:
            return np.full((len(features), self.arms), _PRIOR_STD)
        doubt: Matrix = self._of_trees(target, features).std(axis=0)
        return doubt

    def _of_trees(self, target: int, features: Matrix) -> Matrix:
        """Shape (trees, n, arms)."""
        part = PART_OF_TARGET[target]
        if part not in self._forests:
            return np.full((1, len(features), self.arms), _PRIOR_MEAN)
        repeated = np.repeat(features, self.arms, axis=0)
        inputs = np.hstack([repeated, np.tile(np.eye(self.arms), (len(features), 1))])
        place = PART_OF_TARGET[:target].count(part)
        return self._forests[part].values(inputs, place).reshape(-1, len(features), self.arms)

    def state(self) -> State:
        """What is remembered, and the forests grown from it."""
        return {
            **self.sums.arrays(),
            "remembered_arm": self._arm,
            "remembered_features": self._features,
            "remembered_targets": self._targets,
            "remembered_share": self._share,
            "usual": self._usual,
            **self.scoring(),
        }

    def restore(self, state: State) -> None:
        """Take the arrays that `state` gave."""
        self.sums.restore(state)
        self._arm = state["remembered_arm"].copy()
        self._features = state["remembered_features"].copy()
        self._targets = state["remembered_targets"].copy()
        self._share = state["remembered_share"].copy()
        self._usual = state["usual"].copy()
        self.use(state)

    def scoring(self) -> State:
        """The forests, and the objective."""
        forests = {
            f"forest_{part}_{name}": array
            for part, forest in self._forests.items()
            for name, array in (("nodes", forest.nodes), ("leaves", forest.leaves))
        }
        return {"weights": self._weights, "arms": np.full(1, float(self.arms)), **forests}

    def use(self, scoring: State) -> None:
        """Score by what `scoring` gave."""
        self._weights = scoring["weights"].copy()
        self.arms = int(scoring["arms"][0])
        self._forests = {
            part: _Forest(scoring[f"forest_{part}_nodes"], scoring[f"forest_{part}_leaves"])
            for part in range(len(PARTS))
            if f"forest_{part}_nodes" in scoring
        }

    def describe(self, traits: Matrix) -> None:
        """Arms are strangers to each other here: traits tell nothing."""

    def choose(self, rows: Sequence[int | None]) -> None:
        """Change the arms; the forests are grown anew from what is known of those that stay."""
        place = {row: index for index, row in enumerate(rows) if row is not None}
        keep = np.array([arm in place for arm in self._arm], dtype=bool)
        self._arm = np.array([place[int(arm)] for arm in self._arm[keep]], dtype=float)
        self._features, self._targets = self._features[keep], self._targets[keep]
        self._share = self._share[keep]
        self.sums = self.sums.choose(rows)
        self.arms = len(rows)
        self._forests.clear()
        self.settle()


class _Forest:
    """Trees as arrays: all inputs walk down all trees at once.

    Parameters
    ----------
    nodes
        Shape (4, trees, nodes): left and right child (-1 in a leaf), feature, threshold.
    leaves
        Shape (targets, trees, nodes): the value of each node.
    """

    def __init__(self, nodes: Matrix, leaves: Matrix) -> None:
        self.nodes = nodes
        self.leaves = leaves

    @classmethod
    def grown(cls, forest: ExtraTreesRegressor, targets: int) -> _Forest:
        trees = [estimator.tree_ for estimator in forest.estimators_]
        most = max(tree.node_count for tree in trees)
        nodes = np.full((4, len(trees), most), -1.0)
        leaves = np.zeros((targets, len(trees), most))
        for index, tree in enumerate(trees):
            used = slice(None, tree.node_count)
            columns = (tree.children_left, tree.children_right, tree.feature, tree.threshold)
            nodes[:, index, used] = columns
            leaves[:, index, used] = tree.value[:, :, 0].T
        return cls(nodes, leaves)

    def values(self, inputs: Matrix, target: int) -> Matrix:
        """Shape (trees, n): what each tree says about each row of ``inputs``."""
        left, right, feature, threshold = self.nodes
        tree = np.arange(left.shape[0])[:, None]
        row = np.arange(len(inputs))
        node = np.zeros((left.shape[0], len(inputs)), dtype=int)
        for _ in range(_DEPTH):
            child = left[tree, node]
            inside = child >= 0
            if not inside.any():
                break
            value = inputs[row, feature[tree, node].astype(int)].astype(np.float32)
            child = np.where(value <= threshold[tree, node], child, right[tree, node])
            node = np.where(inside, child, node).astype(int)
        values: Matrix = self.leaves[target][tree, node]
        return values
