"""What the champion saves against the permanent control, live: read from the ledger, kept a while.

The figures are those of `optimizer.report.summarise`, over whole days up to now, so that a span has
one start for a day: the promise of an interval is for a sequence with one start.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from optimizer.report import ReportSummary, summarise
from optimizer.settings import DecisionPoint
from serving.outcomes import outcomes_frame

__all__ = ["DAYS", "ControlReader", "described"]

DAYS = 7
"""Whole days before today that are looked at."""

NEWEST = 50_000
"""Decisions that are read at most, the newest: the span then starts where they do."""

_SHARE_OF_TIME = 0.05
_KEPT_AT_LEAST_S = 1.0


class ControlReader:
    """Reads the comparison with control of decision points, and keeps it for a while.

    A reading is kept for 20 times as long as it took, a second at least: with many decisions, or
    many who ask, it uses no more than a twentieth of the time.

    Parameters
    ----------
    dsn
        URL of the ledger's database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    def read(self, point: DecisionPoint) -> dict[str, Any]:
        """The objects ``control`` and ``readiness`` of ``GET /v1/decision-points/{name}``.

        Raises
        ------
        psycopg.Error
            If PostgreSQL is away.
        """
        with self._lock:  # who asks at the same time waits for the one reading
            started = time.monotonic()
            until, found = self._kept.get(point.name, (0.0, {}))
            if started < until:
                return found
            end = datetime.now(UTC)
            start = _start(end)
            frame = outcomes_frame(self._dsn, point.name, start, end, NEWEST)
            if len(frame) == NEWEST:
                start = frame["decided_at"].iloc[0].to_pydatetime()
            found = described(summarise(frame, point.objective(), point.control_share), start)
            took = time.monotonic() - started
            until = started + took + max(took / _SHARE_OF_TIME, _KEPT_AT_LEAST_S)
            self._kept[point.name] = (until, found)
            return found


def described(summary: ReportSummary, start: datetime) -> dict[str, Any]:
    """A summary as the two objects that people and programs read.

    ``control`` has the start of the span, how many decisions of the champion and of control are
    compared, and estimates (value, low, high, count): ``saving`` (of cost, relative),
    ``saving_usd_per_1000`` requests, ``quality_difference`` and ``latency_difference_s`` (champion
    minus control), ``reward_difference``. ``readiness`` says whether to believe them.
    """
    by_name = {one.measure: one for one in summary.comparisons}
    return {
        "control": {
            "since": start.isoformat(timespec="seconds"),
            "decisions": {role: summary.complete.get(role, 0) for role in ("champion", "control")},
            "saving": asdict(by_name["cost_usd"].saving),
            "saving_usd_per_1000": asdict(by_name["cost_usd"].saved_per_1000),
            "quality_difference": asdict(by_name["quality"].difference),
            "latency_difference_s": asdict(by_name["latency_s"].difference),
            "reward_difference": asdict(by_name["reward"].difference),
        },
        "readiness": asdict(summary.readiness),
    }


def _start(end: datetime) -> datetime:
    today = end.replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=DAYS)
