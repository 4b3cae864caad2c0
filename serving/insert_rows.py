"""Many rows in one INSERT: a binary array for each column, encoded a column at a time.

psycopg looks at the type of each value of each row, 25 us a row of the ledger. Columns whose types
are known beforehand take a tenth of that. COPY costs the same for PostgreSQL, but three round trips
where this is one, which a pipeline sends along with what comes before and after it. The format of a
value is what its type's send function writes; that of an array is ``array_send``'s.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ["Rows"]

_NULL = b"\xff\xff\xff\xff"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TYPES = {"text": 25, "bytea": 17, "uuid": 2950, "int8": 20, "float8": 701, "timestamptz": 1184}
_ARRAYS = {25: 1009, 17: 1001, 2950: 2951, 20: 1016, 701: 1022, 1184: 1185}

_pack_size = struct.Struct(">i").pack
_pack_int8 = struct.Struct(">iq").pack
_pack_float8 = struct.Struct(">id").pack

Column = Iterable[Any]


class Rows:
    """Rows of a table, encoded before they are sent: under a lock, every microsecond counts.

    Parameters
    ----------
    types
        Of the columns, in the order of a row's values: ``text``, ``bytea`` (bytes), ``uuid`` (its
        16 bytes), ``int8``, ``float8``, ``timestamptz`` (with a time zone), or ``float8[]`` (a
        sequence of numbers and None, itself not None).
    rows
        At least one; None is NULL.
    """

    def __init__(self, types: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
        self._arrays: list[_Array] = []
        self._values: dict[str, str] = {}
        for (name, kind), column in zip(types.items(), zip(*rows, strict=True), strict=True):
            self.add(name, kind, column)

    def add(self, name: str, kind: str, column: Sequence[Any]) -> None:
        """One more column, with a value for each row."""
        if kind == "float8[]":
            self._values[name] = _lists(column, self._arrays)
        else:
            self._arrays.append(_Array(kind, column))
            self._values[name] = f"a{len(self._arrays)}"

    def insert(self, connection: psycopg.Connection[Any], table: str) -> None:
        """Append them to a table, whose name is given as it stands in SQL.

        Raises
        ------
        psycopg.Error
            If PostgreSQL refuses them or is away; no row was appended then.
        """
        names = ", ".join(f"a{number}" for number in range(1, len(self._arrays) + 1))
        connection.execute(
            f"INSERT INTO {table} ({', '.join(self._values)}) "  # noqa: S608  (names of ours)
            f"SELECT {', '.join(self._values.values())} "
            f"FROM unnest({', '.join(['%s'] * len(self._arrays))}) AS row ({names})",
            self._arrays,
        )


class _Array:
    """A column as PostgreSQL takes an array in binary."""

    def __init__(self, kind: str, column: Column) -> None:
        encoded, element = _ENCODERS[kind](column), _TYPES[kind]
        self.oid = _ARRAYS[element]
        head = struct.pack(">iiiii", 1, _NULL in encoded, element, len(encoded), 1)
        self.content = head + b"".join(encoded)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: _Array, format: Any) -> Any:
        return _Array, obj.oid

    def upgrade(self, obj: _Array, format: Any) -> _ArrayDumper:
        made = _ArrayDumper(_Array)
        made.oid = obj.oid
        return made

    def dump(self, obj: _Array) -> Buffer:
        return obj.content


psycopg.adapters.register_dumper(_Array, _ArrayDumper)


def _lists(column: Sequence[Sequence[float | None]], arrays: list[_Array]) -> str:
    """``float8[]`` out of one column for each place, and one of lengths where these differ.

    PostgreSQL has no array of arrays of different lengths, and unnest would flatten it.
    """
    lengths = list(map(len, column))
    longest = max(lengths)
    alike = min(lengths) == longest
    if not alike:
        column = [[*one, *[None] * (longest - len(one))] for one in column]
    first = len(arrays) + 1
    arrays.extend(_Array("float8", place) for place in zip(*column, strict=True))
    names = ", ".join(f"a{number}" for number in range(first, len(arrays) + 1))
    if alike:
        return f"ARRAY[{names}]::float8[]"
    arrays.append(_Array("int8", lengths))
    return f"(ARRAY[{names}]::float8[])[:a{len(arrays)}]"


def _texts(column: Column) -> list[bytes]:
    seen: dict[str | None, bytes] = {None: _NULL}
    return [
        seen[value] if value in seen else seen.setdefault(value, _sized(value.encode()))
        for value in column
    ]


def _bytes(column: Column) -> list[bytes]:
    return [_NULL if value is None else _sized(value) for value in column]


def _sized(value: bytes) -> bytes:
    return _pack_size(len(value)) + value


def _integers(column: Column) -> list[bytes]:
    return [_NULL if value is None else _pack_int8(8, value) for value in column]


def _floats(column: Column) -> list[bytes]:
    return [_NULL if value is None else _pack_float8(8, value) for value in column]


def _times(column: Column) -> list[bytes]:
    """Microseconds since 2000."""
    return [
        _NULL if value is None else _pack_int8(8, (value - _EPOCH) // _MICROSECOND)
        for value in column
    ]


_ENCODERS: dict[str, Callable[[Column], list[bytes]]] = {
    "text": _texts,
    "bytea": _bytes,
    "uuid": _bytes,
    "int8": _integers,
    "float8": _floats,
    "timestamptz": _times,
}
