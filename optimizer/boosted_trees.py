"""Gradient-boosted trees as plain arrays: read from scikit-learn once, evaluated with NumPy alone.

scikit-learn grows the trees. What is kept are their nodes, so that a stored model is data (an npz
archive without pickle: reading it runs no code), does not depend on the version that grew it, and
needs no scikit-learn where it is used: importing that takes longer than a thousand predictions.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from optimizer.errors import IncompatibleState
from optimizer.records import Indices, Matrix, Vector

__all__ = ["BoostedTrees", "from_archive", "grow", "read_sklearn", "to_archive"]

_ROWS_AT_ONCE = 1000
"""The nodes of so many rows are held at a time, a few megabytes."""


@dataclass(frozen=True)
class BoostedTrees:
    """A sum of regression trees.

    Attributes
    ----------
    start
        What the sum starts with.
    features
        Number of columns that the trees look at.
    roots
        Shape (trees,): the first node of each tree.
    column, left, right
        Shape (nodes,): which column a node looks at, and where to go; a leaf leads to itself.
    threshold
        Shape (nodes,): a row with a value up to it goes left.
    missing_left
        Shape (nodes,): whether a row without the value goes left.
    value
        Shape (nodes,): what a leaf adds.
    depth
        Of the deepest tree, in steps from its root.

    Raises
    ------
    IncompatibleState
        If a node leads out of the arrays.
    """

    start: float
    features: int
    roots: Indices
    column: Indices
    left: Indices
    right: Indices
    threshold: Vector
    missing_left: npt.NDArray[np.bool_]
    value: Vector
    depth: int

    def __post_init__(self) -> None:
        nodes = len(self.value)
        columns = (self.column, self.left, self.right, self.threshold, self.missing_left)
        if any(one.shape != (nodes,) for one in columns) or self.roots.ndim != 1:
            raise IncompatibleState("trees whose arrays have different lengths")
        for name, inside, end in (
            ("roots", self.roots, nodes),
            ("left", self.left, nodes),
            ("right", self.right, nodes),
            ("column", self.column, self.features),
        ):
            if inside.size and not (inside.min() >= 0 and inside.max() < end):
                raise IncompatibleState(f"trees whose {name} leads outside of 0 to {end - 1}")
        if not (0 <= self.depth <= nodes and np.isfinite(self.value).all()):
            raise IncompatibleState("trees without a depth, or with values that are not finite")

    def predict(self, table: Matrix) -> Vector:
        """The sum for each row of a table, shape (n, features); NaN where a value is not known."""
        found = np.empty(len(table))
        for first in range(0, len(table), _ROWS_AT_ONCE):
            rows = table[first : first + _ROWS_AT_ONCE]
            found[first : first + len(rows)] = self._some(rows)
        return found

    def _some(self, rows: Matrix) -> Vector:
        flat, width = np.ascontiguousarray(rows).ravel(), rows.shape[1]
        begins = (np.arange(len(rows)) * width)[:, None]
        known = not np.isnan(flat).any()
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        for _ in range(self.depth):
            values = flat[begins + self.column[at]]
            goes_left = values <= self.threshold[at]
            if not known:
                goes_left |= np.isnan(values) & self.missing_left[at]
            at = np.where(goes_left, self.left[at], self.right[at])
        summed: Vector = self.value[at].sum(axis=1)
        return summed + self.start


def grow(
    table: Matrix,
    target: Vector,
    later: tuple[Matrix, Vector],
    *,
    seed: int,
    most_trees: int = 300,
    learning_rate: float = 0.05,
    leaves: int = 8,
    rows_in_leaf: int = 40,
    column_share: float = 0.3,
) -> BoostedTrees:
    """Grow trees for the least squared error (Friedman 2001), on histograms of the columns.

    Parameters
    ----------
    table
        Shape (n, d), NaN where not known.
    target
        Shape (n,), finite.
    later
        Other rows; growing ends when 20 trees in a row did nothing for them.
    seed
        Of everything random.
    most_trees
        At most so many, 1 or more.
    learning_rate
        In (0, 1]: the share of each tree that is added.
    leaves
        Most leaves of a tree, 2 or more.
    rows_in_leaf
        Fewest rows of a leaf, 1 or more.
    column_share
        In (0, 1]: share of the columns that each split may choose from, drawn anew.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # a second, only where one learns

    model = HistGradientBoostingRegressor(
        max_iter=most_trees,
        learning_rate=learning_rate,
        max_leaf_nodes=leaves,
        max_depth=8,
        min_samples_leaf=rows_in_leaf,
        l2_regularization=1.0,
        max_features=column_share,
        early_stopping=True,
        n_iter_no_change=20,
        random_state=seed,
    )
    known = np.flatnonzero(~np.isnan(table).all(axis=0))  # it refuses a column without any value
    with threadpool_limits(1, "openmp"):  # its threads wait for each other busily
        model.fit(table[:, known], target, X_val=later[0][:, known], y_val=later[1])
    return read_sklearn(model, known, table.shape[1])


def read_sklearn(model: Any, columns: Indices, features: int) -> BoostedTrees:
    """The trees of a fitted ``HistGradientBoostingRegressor`` of one output, without categories.

    Parameters
    ----------
    model
        It keeps its nodes where scikit-learn says nothing about; a test holds both to the same
        predictions.
    columns
        Which columns of the whole table it was fitted on.
    features
        Number of columns of the whole table.
    """
    roots, nodes, size = [], [], 0
    for (predictor,) in model._predictors:
        tree = predictor.nodes
        roots.append(size)
        itself = np.arange(len(tree))
        leaf = tree["is_leaf"].astype(bool)
        nodes.append(
            (
                np.where(leaf, 0, columns[tree["feature_idx"]]),
                np.where(leaf, itself, tree["left"]) + size,
                np.where(leaf, itself, tree["right"]) + size,
                np.where(leaf, np.inf, tree["num_threshold"]),
                tree["missing_go_to_left"].astype(bool),
                np.where(leaf, tree["value"], 0.0),
                tree["depth"],
            )
        )
        size += len(tree)
    column, left, right, threshold, missing, value, depth = (
        np.concatenate(part) for part in zip(*nodes, strict=True)
    )
    return BoostedTrees(
        float(np.ravel(model._baseline_prediction)[0]),
        features,
        np.array(roots, dtype=np.int64),
        column.astype(np.int64),
        left.astype(np.int64),
        right.astype(np.int64),
        threshold.astype(np.float64),
        missing,
        value.astype(np.float64),
        int(depth.max()),
    )


def to_archive(trees: BoostedTrees, **further: Any) -> bytes:
    """An npz archive of the trees and further arrays; the same content gives the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        start=np.float64(trees.start),
        features=np.int64(trees.features),
        depth=np.int64(trees.depth),
        roots=trees.roots.astype(np.int32),
        column=trees.column.astype(np.int32),
        left=trees.left.astype(np.int32),
        right=trees.right.astype(np.int32),
        threshold=trees.threshold,
        missing_left=trees.missing_left,
        value=trees.value,
        **further,
    )
    return buffer.getvalue()


def from_archive(content: bytes) -> tuple[BoostedTrees, dict[str, Any]]:
    """Read what `to_archive` wrote: the trees, and the further arrays by their names.

    Raises
    ------
    IncompatibleState
        If the content is something else. It is never run as code.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        trees = BoostedTrees(
            float(found.pop("start")),
            int(found.pop("features")),
            found.pop("roots").astype(np.int64),
            found.pop("column").astype(np.int64),
            found.pop("left").astype(np.int64),
            found.pop("right").astype(np.int64),
            found.pop("threshold").astype(np.float64),
            found.pop("missing_left").astype(np.bool_),
            found.pop("value").astype(np.float64),
            int(found.pop("depth")),
        )
    except Exception as error:  # a broken archive raises what its reader happens to meet
        raise IncompatibleState(f"not boosted trees: {error}") from error
    return trees, found
