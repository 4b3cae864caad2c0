"""Principal axes: from long embeddings to the few numbers a policy learns from."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["SPREAD", "Projection", "principal_axes", "unit_rows"]

SPREAD = 0.3
"""Mean standard deviation of the reduced numbers where the projection was fitted. Under a unit
prior, numbers this small beside a constant of 1 keep a new arm's uncertainty from being mostly
about the prompt: one pass of LinUCB over recorded outcomes (30 seeds) earned .6157 with 0.3,
.6104 with 0.4 and .6102 with 0.5, each +-.0017."""

_LENGTH_FLOOR = 1e-12


def principal_axes(matrix: Matrix, size: int) -> tuple[Vector, Matrix, float]:
    """The directions along which the rows of a matrix differ most.

    Parameters
    ----------
    matrix
        Shape (n, d), n at least 2.
    size
        Number of axes, from 1 to d.

    Returns
    -------
    mean
        Shape (d,), of the rows.
    axes
        Shape (d, size), orthonormal columns, the direction of largest variance first. The entry of
        largest magnitude in each column is positive, so that the same rows give the same axes.
    scale
        Mean over the axes of the rows' standard deviation along them, above 0.

    Raises
    ------
    InvalidInput
        If the rows are too few or all the same, or ``size`` is out of range.

    Examples
    --------
    >>> mean, axes, scale = principal_axes(np.array([[0.0, 1.0], [4.0, 1.0]]), 1)
    >>> mean.tolist(), axes.tolist(), round(scale, 3)
    ([2.0, 1.0], [[1.0], [0.0]], 2.828)
    """
    rows, width = matrix.shape
    if rows < 2:
        raise InvalidInput("matrix", matrix.shape, "at least 2 rows")
    if not 1 <= size <= width:
        raise InvalidInput("size", size, f"from 1 to {width}")
    mean = matrix.mean(axis=0)
    centred = matrix - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / (rows - 1))
    axes = vectors[:, ::-1][:, :size]
    strongest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[strongest, np.arange(size)])
    scale = float(np.sqrt(np.maximum(variances[::-1][:size], 0.0)).mean())
    if scale <= 0.0:
        raise InvalidInput("matrix", matrix.shape, "rows that differ")
    return mean, axes, scale


def unit_rows(vectors: Sequence[Vector]) -> Matrix:
    """Shape (n, d): vectors of shape (d,), each scaled to length 1; a zero vector stays zero.

    Examples
    --------
    >>> unit_rows([np.array([3.0, 4.0]), np.zeros(2)]).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = np.array(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > _LENGTH_FLOOR, lengths, 1.0)


@dataclass(frozen=True)
class Projection:
    """Reduces an embedding: unit length, minus a mean, onto axes, scaled to `SPREAD`.

    Parameters
    ----------
    mean, axes, scale
        What `principal_axes` found for rows of unit length: shapes (d,), (d, size), and a number.

    Examples
    --------
    >>> projection = Projection(np.zeros(2), np.eye(2), scale=SPREAD)
    >>> projection.reduce(np.array([3.0, 4.0])).tolist()
    [0.6, 0.8]
    """

    mean: Vector
    axes: Matrix
    scale: float

    @property
    def size(self) -> int:
        """How many numbers come out."""
        return int(self.axes.shape[1])

    @cached_property
    def _scaled_axes(self) -> Matrix:
        return np.ascontiguousarray(self.axes * (SPREAD / self.scale))

    @cached_property
    def _shift(self) -> Vector:
        shift: Vector = self.mean @ self._scaled_axes
        return shift

    def reduce(self, embedding: Vector) -> Vector:
        """Shape (size,) of an embedding of shape (d,); zeros if the embedding is zero."""
        vector = embedding.astype(np.float64)
        length = math.sqrt(vector @ vector)
        if length < _LENGTH_FLOOR:
            return np.zeros(self.size)
        reduced: Vector = vector @ self._scaled_axes / length - self._shift
        return reduced

    def reduce_many(self, embeddings: Sequence[Vector]) -> Matrix:
        """Shape (n, size): each row exactly what `reduce` gives for that embedding."""
        return np.array([self.reduce(vector) for vector in embeddings]).reshape(-1, self.size)

    def to_bytes(self) -> bytes:
        """An npz archive, in float32; the same projection gives the same bytes."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            mean=self.mean.astype(np.float32),
            axes=self.axes.astype(np.float32),
            scale=np.float64(self.scale),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Projection:
        """Read what `to_bytes` wrote.

        Raises
        ------
        IncompatibleState
            If the content is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                mean = archive["mean"].astype(np.float64)
                axes = archive["axes"].astype(np.float64)
                scale = float(archive["scale"])
        except (ValueError, KeyError, OSError) as error:
            raise IncompatibleState(f"not a projection: {error}") from error
        return cls(mean, axes, scale)
