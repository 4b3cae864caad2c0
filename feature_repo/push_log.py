"""What was pushed online is what is logged: the same values, at the same time.

Rows are written by a thread of its own, so that PostgreSQL can't hold up what goes to Valkey. While
it is away they wait, as many as fit; the oldest are dropped and counted. A row that says what the
arm's last one says is not written again for a while: whoever looks back finds the same values.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg

from feature_repo.aggregates import ArmFeatures
from feature_repo.arm_rows import (
    KEY_COLUMNS,
    STATISTICS_COLUMNS,
    WINDOWS_COLUMNS,
    Row,
    arm_key,
    statistics_rows,
    windows_rows,
)
from feature_repo.ranges import clipped
from feature_repo.tables import SCHEMA
from feature_repo.windows import WindowFeatures

__all__ = ["PushLog", "PushedRow", "PushedRows", "pushed_as_of", "write_pushed"]

_COLUMNS = {"arm_statistics": STATISTICS_COLUMNS, "arm_windows": WINDOWS_COLUMNS}
_REPEAT_S = 600.0
"""Must stay below the hour for which a value counts."""
_LIMIT_ROWS = 50_000
"""About 50 MB, of five arms under load a quarter of an hour."""
_EVERY_S = 0.5
_RETRY_S = 2.0
_CONNECT_TIMEOUT_S = 5
_CLOSE_S = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushedRows:
    """One push of one view.

    Attributes
    ----------
    view
        ``arm_statistics`` or ``arm_windows``.
    rows
        By model.
    at_s
        Since when they were online, Unix time in seconds.
    position
        In the ledger: what the values stand for. None where it is not known.
    created_at
        When they were made.
    """

    view: str
    decision_point: str
    rows: Mapping[str, Row]
    at_s: float
    position: int | None
    created_at: datetime

    @classmethod
    def of_statistics(
        cls,
        decision_point: str,
        values: Mapping[str, ArmFeatures],
        at_s: float,
        position: int | None = None,
    ) -> PushedRows:
        """What `FeatureStoreClient.push` pushes."""
        rows, _ = clipped(STATISTICS_COLUMNS, statistics_rows(values))  # counted by the push
        return cls("arm_statistics", decision_point, rows, at_s, position, datetime.now(UTC))

    @classmethod
    def of_windows(
        cls,
        decision_point: str,
        values: Mapping[str, Mapping[int, WindowFeatures]],
        at_s: float,
        position: int | None = None,
    ) -> PushedRows:
        """What `FeatureStoreClient.push_windows` pushes."""
        rows, _ = clipped(WINDOWS_COLUMNS, windows_rows(values))
        return cls("arm_windows", decision_point, rows, at_s, position, datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class PushedRow:
    """What was logged of one arm.

    Attributes
    ----------
    at
        Since when it was online.
    position
        The ledger's; None in rows of before positions were logged.
    values
        In the order of the view's columns.
    """

    at: datetime
    position: int | None
    values: Row


def write_pushed(connection: psycopg.Connection[Any], pushed: Sequence[PushedRows]) -> None:
    """Append pushes to their tables."""
    for view, columns in _COLUMNS.items():
        names = ", ".join([*KEY_COLUMNS, *columns, "position"])
        chosen = [one for one in pushed if one.view == view and one.rows]
        if not chosen:
            continue
        with connection.cursor().copy(f"COPY {SCHEMA}.{view} ({names}) FROM STDIN") as lines:
            for one in chosen:
                at = datetime.fromtimestamp(one.at_s, UTC)
                for model, row in one.rows.items():
                    key = arm_key(one.decision_point, model)
                    lines.write_row((key, at, one.created_at, *row, one.position))


def pushed_as_of(
    connection: psycopg.Connection[Any],
    view: str,
    arm_keys: Sequence[str],
    moments: Sequence[datetime],
    span_s: float,
) -> Iterator[PushedRow | None]:
    """What was online at given moments, straight from the table: for each, the newest row before.

    Parameters
    ----------
    view
        ``arm_statistics`` or ``arm_windows``.
    arm_keys, moments
        As many of these as of those.
    span_s
        How old a row may be, in seconds.
    """
    names = ", ".join(f"log.{name}" for name in _COLUMNS[view])
    query = f"""
        SELECT log.event_timestamp, log.position, {names}
        FROM unnest(%s::text[], %s::timestamptz[]) WITH ORDINALITY AS asked (arm_key, at, place)
        LEFT JOIN LATERAL (
            SELECT * FROM {SCHEMA}.{view} one
            WHERE one.arm_key = asked.arm_key AND one.event_timestamp <= asked.at
                AND one.event_timestamp >= asked.at - %s * interval '1 second'
            ORDER BY one.event_timestamp DESC, one.created_at DESC LIMIT 1) log ON true
        ORDER BY place
    """  # noqa: S608  (names of ours)
    for at, position, *values in connection.execute(query, (arm_keys, moments, span_s)):
        yield None if at is None else PushedRow(at, position, tuple(values))


class PushLog:
    """Writes pushes to the offline tables, in the background.

    Parameters
    ----------
    dsn
        Of the database with the tables.
    limit_rows
        Most rows that may wait, 1 or more.

    Attributes
    ----------
    dropped
        Rows that could not be kept until PostgreSQL came back, or that it refused.
    waiting
        Rows that are not written yet.
    written_at
        Time of the last push that is in the table, Unix seconds, by view and decision point.
    """

    def __init__(self, dsn: str, limit_rows: int = _LIMIT_ROWS) -> None:
        self._dsn = dsn
        self._limit = limit_rows
        self.dropped = 0
        self.waiting = 0
        self.written_at: dict[tuple[str, str], float] = {}
        self._pushes: deque[PushedRows] = deque()
        self._last: dict[tuple[str, str], tuple[float, Row]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, name="write_pushes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, pushed: PushedRows) -> None:
        """Take what is pushed; returns at once."""
        with self._lock:
            rows = {model: row for model, row in pushed.rows.items() if self._says(pushed, model)}
            self._pushes.append(replace(pushed, rows=rows))
            self.waiting += len(rows)
            while self.waiting > self._limit:
                self._drop(self._pushes.popleft())

    def close(self) -> None:
        """Write what waits, if PostgreSQL takes it within seconds, and stop."""
        self._stop.set()
        self._thread.join(_CLOSE_S)

    def _says(self, pushed: PushedRows, model: str) -> bool:
        """Whether a row says something new."""
        key, row = (pushed.view, arm_key(pushed.decision_point, model)), pushed.rows[model]
        at_s, said = self._last.get(key, (0.0, ()))
        if said == row and 0.0 <= pushed.at_s - at_s < _REPEAT_S:
            return False
        self._last[key] = pushed.at_s, row
        return True

    def _drop(self, pushed: PushedRows) -> None:
        self.waiting -= len(pushed.rows)
        self.dropped += len(pushed.rows)
        self._last.clear()  # what comes next is written whatever was said before

    def _write(self) -> None:
        told = 0
        while True:
            last = self._stop.wait(_EVERY_S)
            with self._lock:
                pushes = list(self._pushes)
            try:
                if pushes:
                    self._send(pushes)
            except psycopg.OperationalError as error:
                _LOG.warning("%d rows of arm features wait: %s", self.waiting, error)
                self._stop.wait(_RETRY_S)
            except psycopg.Error:
                _LOG.exception("PostgreSQL refuses rows of arm features; they are dropped")
                with self._lock:
                    self._forget(pushes, dropped=True)
            if self.dropped > told:
                _LOG.warning("%d rows of arm features were dropped so far", self.dropped)
                told = self.dropped
            if last:
                return

    def _send(self, pushes: Sequence[PushedRows]) -> None:
        with psycopg.connect(self._dsn, connect_timeout=_CONNECT_TIMEOUT_S) as connection:
            write_pushed(connection, pushes)
        with self._lock:
            self._forget(pushes, dropped=False)
            for one in pushes:
                self.written_at[one.view, one.decision_point] = one.at_s

    def _forget(self, pushes: Sequence[PushedRows], *, dropped: bool) -> None:
        """Take from the front those of the pushes that are still there."""
        for pushed in pushes:
            if self._pushes and self._pushes[0] is pushed:
                self._pushes.popleft()
                if dropped:
                    self._drop(pushed)
                else:
                    self.waiting -= len(pushed.rows)
