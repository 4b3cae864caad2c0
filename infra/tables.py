"""Tables in files that people bring: parquet, CSV, JSONL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from optimizer.errors import InvalidRecording

__all__ = ["read_table", "write_table"]

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype={"request_id": str}),
}
_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".jsonl": lambda frame, path: frame.to_json(
        path, orient="records", lines=True, date_format="iso", date_unit="us", double_precision=15
    ),
}


def read_table(path: Path, instead: str = "") -> pd.DataFrame:
    """Read a table by the ending of its name.

    Parameters
    ----------
    path
        Of the file.
    instead
        What else could have been given, to be named where the ending is unknown.

    Raises
    ------
    InvalidRecording
        Naming the file.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InvalidRecording("file", str(path), f"a {', '.join(_READERS)} file{instead}")
    if not path.is_file():
        raise InvalidRecording("file", str(path), "there is no such file")
    try:
        return reader(path)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRecording("file", str(path), f"it cannot be read: {reason}") from error


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table that `read_table` reads.

    Raises
    ------
    InvalidRecording
        Naming the file, where its ending is unknown or it cannot be written.
    """
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise InvalidRecording("file", str(path), f"a {', '.join(_WRITERS)} file")
    try:
        writer(frame, path)
    except OSError as error:
        raise InvalidRecording("file", str(path), f"it cannot be written: {error}") from error
