"""How long the clients of `serving.client` wait, how often they try, and when they don't try."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from optimizer.errors import InvalidInput

__all__ = ["Breaker", "Patience"]

_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Patience:
    """How long a call may take and how often it is tried, see `serving.client.Optimizer`."""

    timeout_s: float
    try_timeout_s: float
    retries: int
    backoff_s: float

    def __post_init__(self) -> None:
        for name in ("timeout_s", "try_timeout_s"):
            if not getattr(self, name) > 0:
                raise InvalidInput(name, getattr(self, name), "seconds, above 0")
        for name in ("retries", "backoff_s"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(name, getattr(self, name), "0 or more")

    def pause_s(self, failed: int, retry_after_s: float, drawn: float) -> float:
        """Seconds to wait after so many failed tries, with ``drawn`` uniform in [0, 1).

        Exponential backoff with full jitter, on top of what the service asked for, so that callers
        who were refused together don't return together.
        """
        return retry_after_s + drawn * min(
            _LONGEST_PAUSE_S, self.backoff_s * 2.0 ** min(failed, 30)
        )


class Breaker:
    """Spares callers the wait for a service that is away.

    Once a call has used up its tries no other is let through for a while, except one probe at the
    end of it, which gets a single try. The while doubles with each probe, until one is answered.

    Parameters
    ----------
    shortest_s, longest_s
        The first while, and the longest, in seconds.
    clock
        Seconds that never go back.
    """

    def __init__(
        self,
        shortest_s: float = 1.0,
        longest_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < shortest_s <= longest_s:
            raise InvalidInput("shortest_s", shortest_s, f"above 0, at most longest_s={longest_s}")
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._pause_s = 0.0  # 0 while calls are let through
        self._until_s = 0.0

    def tries(self, most: int) -> int:
        """How many tries a call has now: ``most``, 1 as the probe, or 0."""
        with self._lock:
            if not self._pause_s:
                return most
            now_s = self._clock()
            if now_s < self._until_s:
                return 0
            # A probe that is never heard of again needs no care: the next one has its time, too.
            self._pause_s = min(2 * self._pause_s, self._longest_s)
            self._until_s = now_s + self._pause_s
            return 1

    def failed(self) -> bool:
        """A call has used up its tries; whether that was news."""
        with self._lock:
            if self._pause_s:
                return False
            self._pause_s = self._shortest_s
            self._until_s = self._clock() + self._pause_s
            return True

    def answered(self) -> None:
        """A call was answered."""
        self._pause_s = 0.0
