"""Rows of bytes cut from records of bytes, for thousands at once.

What a database takes in binary is mostly what tokens already hold, in another order and with
lengths between. Columns are cut out of one array, with no loop over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Piece", "Seconds", "byte_rows"]


class Seconds(NamedTuple):
    """A big-endian float64 in a record, in seconds, that becomes an int64 of microseconds.

    Attributes
    ----------
    at
        Where in the record, 8 bytes.
    origin
        The second that becomes 0.
    """

    at: slice
    origin: float


Piece = bytes | slice | Seconds
"""Bytes that all rows have, a part of the record, or a time."""


def byte_rows(records: Sequence[bytes], pieces: Sequence[Piece]) -> bytes:
    """The rows, one after another.

    Parameters
    ----------
    records
        All of one length, at least one.
    pieces
        What a row is made of.

    Examples
    --------
    >>> byte_rows([b"abc", b"xyz"], [b"<", slice(1, 3), b">"])
    b'<bc><yz>'
    """
    number = len(records)
    table = np.frombuffer(b"".join(records), np.uint8).reshape(number, -1)
    columns = []
    for piece in pieces:
        if isinstance(piece, bytes):
            same = np.frombuffer(piece, np.uint8)
            columns.append(np.broadcast_to(same, (number, len(piece))))
        elif isinstance(piece, Seconds):
            seconds = np.ascontiguousarray(table[:, piece.at]).view(">f8").astype(np.float64)
            microseconds = np.round((seconds - piece.origin) * 1e6).astype(">i8")
            columns.append(microseconds.view(np.uint8))
        else:
            columns.append(table[:, piece])
    return np.concatenate(columns, axis=1).tobytes()
