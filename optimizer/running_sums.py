"""Sums that are added one row after the other: the same bytes however rows are cut into batches."""

from __future__ import annotations

import numpy as np

from optimizer.records import Matrix, Vector

__all__ = ["running_sums"]


def running_sums(start: Vector, values: Matrix) -> Matrix:
    """Shape (n + 1, k): the sums before each row, and at last after all.

    Parameters
    ----------
    start
        Shape (k,): the sums so far.
    values
        Shape (n, k), finite.

    Examples
    --------
    >>> running_sums(np.array([1.0]), np.array([[2.0], [3.0]])).ravel().tolist()
    [1.0, 3.0, 6.0]
    """
    sums: Matrix = np.add.accumulate(np.vstack([start, values]), axis=0)  # never in pairs
    return sums
