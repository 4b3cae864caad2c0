"""Where a replica puts refused events: a bounded buffer and a thread that stores what is in it.

Off the request path, and nothing waits for it. Garbage must not fill the disk: so many letters a
minute of each reason are kept, the rest is only counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg
from prometheus_client.core import CounterMetricFamily, Metric

from optimizer.errors import InvalidInput
from serving.background_writer import BackgroundWriter
from serving.dead_letters import REASONS, DeadLetter, make_letter, reason_of, store_letters

__all__ = ["DeadLetterBox"]

_LOG = logging.getLogger(__name__)
_STORE_EVERY_S = 1.0
_MINUTE_S = 60.0
_PER_MINUTE = 300
_WAITING = 2 * _PER_MINUTE * len(REASONS)


class DeadLetterBox(BackgroundWriter):
    """Takes letters from one event loop.

    Parameters
    ----------
    dsn
        URL of the ledger's database.
    per_minute
        Most letters of one reason that are kept in a minute.
    clock
        Seconds that only go on.
    """

    def __init__(
        self,
        dsn: str,
        per_minute: int = _PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._minute = 0.0
        self._kept: Counter[str] = Counter()
        self._waiting: dict[bytes, DeadLetter] = {}
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()
        """Events by reason, kept or not."""
        self.dropped: Counter[str] = Counter()
        """Those that are only counted."""
        super().__init__(dsn, "dead-letters", _STORE_EVERY_S)

    def add(self, error: InvalidInput, body: bytes, path: str = "/v1/rewards") -> None:
        """Keep a refused event, if there is room; it is stored within seconds."""
        reason = reason_of(error)
        self.refused[reason] += 1
        now = self._clock()
        if now - self._minute >= _MINUTE_S:
            self._minute = now
            self._kept.clear()
        if self._kept[reason] >= self._per_minute:
            self.dropped[reason] += 1
            return
        self._kept[reason] += 1
        letter = make_letter(error, body, path)
        with self._lock:
            same = self._waiting.get(letter.digest)
            if same is not None:
                same.times += 1
            elif len(self._waiting) < _WAITING:
                self._waiting[letter.digest] = letter
            else:
                self.dropped[reason] += 1

    def metrics(self) -> Iterator[Metric]:
        """Refused events, and those that were only counted, by reason."""
        for name, text, counts in (
            ("dead_letters", "Reward events refused", self.refused),
            ("dead_letters_dropped", "Refused and not kept: too many a minute", self.dropped),
        ):
            family = CounterMetricFamily(f"llmopt_{name}", text, labels=["reason"])
            for reason in REASONS:
                family.add_metric([reason], counts[reason])
            yield family

    def store(self) -> None:
        """Store the letters that wait."""
        with self._lock:
            letters = list(self._waiting.values())
            self._waiting = {}
        if not letters:
            return
        try:
            store_letters(self.connected(), letters)
        except psycopg.Error as error:
            _LOG.warning("dead letters wait, PostgreSQL is away: %s", error)
            self.disconnect()
            with self._lock:  # what came meanwhile is newer
                self._waiting = {letter.digest: letter for letter in letters} | self._waiting
