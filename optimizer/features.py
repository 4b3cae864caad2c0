"""From a context to the numeric vector a policy sees: pure functions, used live and in replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.extra_columns import (
    EXTRA_COLUMNS,
    PAST_GROUPS,
    checked_groups,
    fact_values,
    past_values,
)
from optimizer.feature_schema import FeatureSchema
from optimizer.records import Matrix, Vector
from optimizer.request_history import RequestHistory
from optimizer.transformations import hashed

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "PRIORITY_VALUE",
    "SIDE_COLUMNS",
    "FeatureEncoder",
    "RequestContext",
    "pack",
    "unpack",
]

PRIORITY_VALUE = {None: 0.0, "low": -1.0, "standard": 0.0, "high": 1.0}

SIDE_COLUMNS = (
    "input_tokens_log",
    "output_tokens_log",
    "priority",
    "digit_share",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
)
"""Columns of the request and of the time, beside task, hashed fields and embedding."""

_TOLD = 4
"""So many of them are told by the request, the rest by the time."""

CHARACTERS_PER_TOKEN = 4.0
_TYPICAL_LOG_TOKENS = 5.0

_HASHED_COLUMNS = 8
_GRID = 4096.0
_SIDE_SCALE = 0.3
"""Side features are kept small beside the constant and the task, so that under a unit prior they
widen the uncertainty of a new arm only a little."""


class RequestContext(Protocol):
    """What is read of a request; `optimizer.records.Context` says what each field means."""

    @property
    def prompt(self) -> str | None: ...
    @property
    def task(self) -> str | None: ...
    @property
    def input_tokens(self) -> int | None: ...
    @property
    def expected_output_tokens(self) -> int | None: ...
    @property
    def priority(self) -> str | None: ...
    @property
    def extra(self) -> tuple[tuple[str, str | float], ...]: ...


class FeatureEncoder:
    """Makes the feature vector of a request.

    Parameters
    ----------
    tasks
        Known tasks, each a column; any other task shares one more column.
    embedding_size
        Length of the reduced prompt embedding, 0 for none.
    extra_groups
        Further columns, names of `optimizer.extra_columns.EXTRA_COLUMNS`; they stand at the end.

    Examples
    --------
    >>> from optimizer.records import Context
    >>> encoder = FeatureEncoder(tasks=("chat",), embedding_size=0)
    >>> vector = encoder.encode(Context(task="chat", input_tokens=200), None, now_s=0.0)
    >>> len(vector) == encoder.size
    True
    """

    def __init__(
        self, tasks: Sequence[str], embedding_size: int, extra_groups: Sequence[str] = ()
    ) -> None:
        if len(set(tasks)) != len(tasks):
            raise InvalidInput("tasks", list(tasks), "each task may be named once")
        if embedding_size < 0:
            raise InvalidInput("embedding_size", embedding_size, "0 or more")
        self.tasks = tuple(tasks)
        self.embedding_size = embedding_size
        self.extra_groups = checked_groups(extra_groups)
        extra = [name for group in self.extra_groups for name in EXTRA_COLUMNS[group]]
        past = [group for group in self.extra_groups if group in PAST_GROUPS]
        if past and not embedding_size:
            raise InvalidInput("extra_groups", past, "an embedding, by which requests are compared")
        self._column = {task: 1 + index for index, task in enumerate(self.tasks)}
        self._other = 1 + len(self.tasks)
        self._side = self._other + 1
        self._hashed = self._side + len(SIDE_COLUMNS)
        self._embedding = self._hashed + _HASHED_COLUMNS
        self._extra = self._embedding + embedding_size
        self._past = self._extra + len(extra) - sum(len(EXTRA_COLUMNS[group]) for group in past)
        self.names: tuple[str, ...] = (
            "constant",
            *(f"task={task}" for task in self.tasks),
            "task=(other)",
            *SIDE_COLUMNS,
            *(f"hashed_{index}" for index in range(_HASHED_COLUMNS)),
            *(f"embedding_{index}" for index in range(embedding_size)),
            *extra,
        )
        self.size = len(self.names)
        self.groups: tuple[int, ...] = (
            0,
            *(1 for _ in range(self._side - 1)),
            *(2 for _ in range(self.size - self._side)),
        )
        """For each feature whether it is the constant, a category (a task) or a detail, as an index
        of `optimizer.policies.linear.GROUPS`."""
        self.schema = FeatureSchema(self.names, self.groups)
        self.schema_id = self.schema.schema_id
        """Names this layout of columns; `optimizer.feature_schema` reads tokens of others in it."""

    def encode(self, context: RequestContext, embedding: Vector | None, now_s: float) -> Vector:
        """`encode_many` of one request: shape (size,), the embedding of shape (embedding_size,)."""
        row: Vector = self.encode_many([context], [embedding], now_s)[0]
        return row

    def encode_many(
        self,
        contexts: Sequence[RequestContext],
        embeddings: Sequence[Vector | None],
        now_s: float,
        users: Sequence[str | None] | None = None,
    ) -> Matrix:
        """The features of requests.

        Parameters
        ----------
        contexts
            What the callers told, n of them.
        embeddings
            The reduced embedding of each prompt, shape (embedding_size,), or None without a prompt.
        now_s
            Unix time in seconds; hours and weekdays are UTC.
        users
            Who asks, n ids or None; only the columns of the group ``user`` read it.

        Returns
        -------
        Shape (n, size), rounded to 1/4096 and to what a float16 holds: a decision token carries
        them exactly, and sums of their products are exact (see `optimizer.policies.sums`). Columns
        of past requests are 0, see `fill_past`.
        """
        number, side = len(contexts), self._side
        table = np.zeros((number, self.size))
        columns, known = [], self._column
        told = []
        for row, context in enumerate(contexts):
            prompt, tokens = context.prompt, context.input_tokens
            if tokens is None and prompt is not None:
                tokens = math.ceil(len(prompt) / CHARACTERS_PER_TOKEN)
            task = context.task
            columns.append(0 if task is None else known.get(task, self._other))
            told.append(
                (
                    _centred_log(tokens),
                    _centred_log(context.expected_output_tokens),
                    PRIORITY_VALUE.get(context.priority, 0.0),
                    _digit_share(prompt) if prompt else 0.0,
                )
            )
            for name, value in context.extra:
                column, amount = hashed(name, value, _HASHED_COLUMNS)
                table[row, self._hashed + column] += _SIDE_SCALE * amount
        table[np.arange(number), columns] = 1.0
        table[:, 0] = 1.0
        hour = (now_s % 86400.0) / 86400.0 * math.tau
        weekday = ((now_s / 86400.0 + 3.0) % 7.0) / 7.0 * math.tau
        table[:, side : side + _TOLD] = told
        table[:, side + _TOLD : side + len(SIDE_COLUMNS)] = (
            math.sin(hour),
            math.cos(hour),
            math.sin(weekday),
            math.cos(weekday),
        )
        table[:, side : side + len(SIDE_COLUMNS)] *= _SIDE_SCALE
        if self.embedding_size:
            for row, embedding in enumerate(embeddings):
                if embedding is not None:
                    table[row, self._embedding : self._extra] = embedding
        if self.extra_groups:
            table[:, self._extra :] = [
                fact_values(self.extra_groups, context.prompt, user, now_s)
                for context, user in zip(contexts, users or [None] * number, strict=True)
            ]
        table *= _GRID
        np.rint(table, out=table)
        table /= _GRID
        return table.astype(np.float16).astype(np.float64)

    @property
    def knows_past(self) -> bool:
        """Whether there are columns of past requests, which `fill_past` fills."""
        return self._past < self.size

    def embedding_of(self, vector: Vector) -> Vector:
        """Shape (embedding_size,): the prompt's part of a feature vector, zeros without one."""
        return vector[self._embedding : self._extra]

    def fill_past(self, vector: Vector, user: str | None, history: RequestHistory) -> Vector:
        """A feature vector of `encode` with its columns of past requests, rounded as the others.

        Parameters
        ----------
        vector
            Shape (size,); it stays as it is.
        user
            Who asks, None if not told.
        history
            As it was when the request came: without its own outcome.
        """
        filled = vector.copy()
        past = past_values(self.extra_groups, history.read(self.embedding_of(vector), user))
        grid = np.rint(np.array(past) * _GRID) / _GRID
        filled[self._past :] = grid.astype(np.float16)
        return filled


def unpack(packed: bytes) -> Vector:
    """The features that `FeatureEncoder.encode` made, from the float16 bytes of a token."""
    return np.frombuffer(packed, dtype="<f2").astype(np.float64)


def pack(features: Vector | Matrix) -> bytes:
    """Little-endian float16 bytes, two a feature; `unpack` gives back the same numbers.

    Of several requests, their bytes one behind the other.
    """
    return features.astype("<f2").tobytes()


def _centred_log(tokens: int | None) -> float:
    """log(1 + tokens), about in [-1, 1] for 0 to 20,000 tokens; 0 where unknown."""
    return 0.0 if tokens is None else math.log1p(tokens) / _TYPICAL_LOG_TOKENS - 1.0


def _digit_share(prompt: str) -> float:
    """Share of digits among the first 400 characters: arithmetic and code have many."""
    head = prompt[:400]
    return sum(map(head.count, "0123456789")) / len(head)
