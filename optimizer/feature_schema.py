"""Layouts of feature vectors, and what a vector of one layout is in another.

A policy version belongs to one layout for ever; a decision token names the layout that it was made
with. Columns have the same meaning wherever they have the same name, so that a vector can be read
in any other layout:

- a column that only the target has is 0, which is the encoder's value for "not known";
- a category that the target does not tell apart (``task=math``) counts as its family's
  ``task=(other)``, as the encoder does with a task that it does not know;
- any other column that the target does not have is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
from msgspec import Struct

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["FeatureSchema", "Translation", "Translations"]

_CONSTANT = "constant"
_OTHER = "(other)"


class FeatureSchema(Struct, frozen=True):
    """The columns of a feature vector.

    Attributes
    ----------
    names
        In their order, each once.
    groups
        What each is, an index of `optimizer.policies.linear.GROUPS`; as long as ``names``.

    Examples
    --------
    >>> schema = FeatureSchema(("constant", "task=chat", "task=(other)"), (0, 1, 1))
    >>> schema.without(["task=chat"]).names
    ('constant', 'task=(other)')
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def schema_id(self) -> int:
        """Names the layout, 32 bits of a digest of the names."""
        digest = hashlib.blake2b("\n".join(self.names).encode(), digest_size=4)
        return int.from_bytes(digest.digest(), "big")

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that are not among its columns."""
        known = set(self.names)
        return tuple(name for name in names if name not in known)

    def without(self, patterns: Sequence[str]) -> FeatureSchema:
        """The layout less some columns.

        Parameters
        ----------
        patterns
            Names, or shell patterns of names (``embedding_*``).

        Raises
        ------
        InvalidInput
            If a pattern fits no column, or takes the constant.
        """
        if not patterns:
            return self
        gone = {pattern: self._fitting(pattern) for pattern in patterns}
        for pattern, names in gone.items():
            if not names or _CONSTANT in names:
                remedy = f"a column other than {_CONSTANT}: {', '.join(self.names[1:])}"
                raise InvalidInput("retired_features", pattern, remedy)
        all_gone = {name for names in gone.values() for name in names}
        kept = [index for index, name in enumerate(self.names) if name not in all_gone]
        return FeatureSchema(
            tuple(self.names[index] for index in kept), tuple(self.groups[index] for index in kept)
        )

    def _fitting(self, pattern: str) -> list[str]:
        if pattern in self.names:  # a task may be named with the signs of patterns
            return [pattern]
        return [name for name in self.names if fnmatchcase(name, pattern)]


class Translation:
    """Reads vectors of one layout in another, as the module says.

    Parameters
    ----------
    source, target
        The layouts.

    Examples
    --------
    >>> old = FeatureSchema(("constant", "task=(other)"), (0, 1))
    >>> new = FeatureSchema(("constant", "task=chat", "task=(other)"), (0, 1, 1))
    >>> Translation(old, new)(np.array([1.0, 1.0])).tolist()
    [1.0, 0.0, 1.0]
    >>> Translation(new, old)(np.array([[1.0, 1.0, 0.0]])).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, source: FeatureSchema, target: FeatureSchema) -> None:
        column = {name: index for index, name in enumerate(target.names)}
        # Zeros and ones, so that the product is exact.
        self._matrix = np.zeros((source.size, target.size))
        for row, name in enumerate(source.names):
            family, equals, _ = name.partition("=")
            found = column.get(name, column.get(f"{family}={_OTHER}") if equals else None)
            if found is not None:
                self._matrix[row, found] = 1.0

    def __call__(self, features: Matrix) -> Matrix:
        """Shape (size of source,) or (n, size of source) to the same of the target."""
        translated: Matrix = features @ self._matrix
        return translated


class Translations:
    """Reads vectors of every layout that is known in one.

    Parameters
    ----------
    target
        The layout of what comes out.
    known
        Other layouts.
    """

    def __init__(self, target: FeatureSchema, known: Iterable[FeatureSchema] = ()) -> None:
        self.target = target
        self._target_id = target.schema_id
        self._known: dict[int, Translation] = {}
        self.know(known)

    def know(self, schemas: Iterable[FeatureSchema]) -> None:
        """Take more layouts."""
        for schema in schemas:
            if schema.schema_id not in self._known:
                self._known[schema.schema_id] = Translation(schema, self.target)

    def __contains__(self, schema_id: object) -> bool:
        return schema_id == self._target_id or schema_id in self._known

    def read(self, schema_id: int, features: Vector) -> Vector:
        """A vector of a layout that is known, in the target's.

        Raises
        ------
        KeyError
            If the layout is not known.
        """
        if schema_id == self._target_id:
            return features
        return self._known[schema_id](features)
