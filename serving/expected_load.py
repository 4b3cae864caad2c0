"""What a replica knows of the load to come: the newest forecasts, read in the background.

Replicas read them and tell Ray with their other figures. The controller, where the policy runs for
every deployment, then needs neither PostgreSQL nor its password, and waits for nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import psycopg

from optimizer.capacity import Outlook, outlook
from optimizer.near_forecast import NearForecast
from serving.traffic import newest_forecast

__all__ = ["EXPECTED", "ExpectedLoad"]

EXPECTED = "expected_"
"""Before the names of figures."""

_LOG = logging.getLogger(__name__)
_LOOK_AGAIN_S = 60.0


class ExpectedLoad:
    """Follows the forecasts of all decision points, in a thread of its own.

    Parameters
    ----------
    dsn
        Of PostgreSQL.
    decision_points
        Their names; all share the replicas.
    ahead_s
        How early a replica must be asked for; at 0 nothing is read and nothing expected.
    every_s
        How often forecasts are looked for.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        dsn: str,
        decision_points: Sequence[str],
        ahead_s: float,
        every_s: float = _LOOK_AGAIN_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dsn, self._names = dsn, tuple(decision_points)
        self._ahead_s, self._every_s, self._clock = ahead_s, every_s, clock
        self._known: tuple[tuple[float, NearForecast], ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow_forecasts", daemon=True)
        if ahead_s > 0:
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def outlook(self) -> Outlook | None:
        """What is expected; None where forecasts are missing, have run out, or are not wanted."""
        now = self._clock()
        return outlook([(now - made_at, one) for made_at, one in self._known], self._ahead_s)

    def report(self) -> dict[str, float]:
        """The same as figures for Ray Serve; empty for None."""
        expected = self.outlook()
        told = {} if expected is None else asdict(expected)
        return {f"{EXPECTED}{name}": value for name, value in told.items()}

    def read(self) -> None:
        """Look for newer forecasts.

        One that stands is used until it has run out, also while PostgreSQL is away. A decision
        point without a forecast leaves all to the measured load: a sum without it would be low.

        Raises
        ------
        psycopg.Error
            If PostgreSQL is away.
        """
        known = []
        for name in self._names:
            found = newest_forecast(self._dsn, name)
            if found is not None and found[1].near is not None:
                known.append((found[0].timestamp(), found[1].near))
        self._known = tuple(known) if len(known) == len(self._names) else ()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.read()
            except psycopg.Error as error:
                _LOG.warning("no newer forecast for now: %s", error)
            except Exception:
                _LOG.exception("forecasts cannot be read")
            self._stop.wait(self._every_s)
