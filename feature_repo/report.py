"""What the learner's process tells of the features that it writes, for replicas and people.

That process answers no HTTP. So it keeps this report beside the features in Valkey, as JSON under
one key, and every replica reads it with the features and exports it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis

from optimizer.errors import Unavailable

__all__ = ["FeatureReport", "Pushed", "ReportBoard"]

_KEY = "llmopt:features:report"
_KEPT_S = 3600
"""As long as the features themselves."""


@dataclass(slots=True)
class Pushed:
    """The last push of a view at a decision point.

    Attributes
    ----------
    at_s
        When the values were true, Unix time in seconds.
    arms
        How many arms had values.
    current_at
        Until when they are all that the learner knew: as long as no outcome comes, it is later
        than ``at_s`` and nothing needs to be pushed.
    """

    at_s: float
    arms: int
    current_at: float


@dataclass(slots=True)
class FeatureReport:
    """Counters since the learner's process started, and Unix times in seconds.

    Attributes
    ----------
    pushed, logged_at
        By view and decision point: into Valkey, and into PostgreSQL.
    violations
        Values out of range or not finite that were to be pushed, by view and feature.
    violated_at
        When the last of them came, by view and decision point.
    outcome_violations
        Outcomes out of range, by decision point and part: clipped before they were counted.
    late
        Outcomes that came after the windows' allowed lateness, by decision point.
    """

    pushed: dict[str, dict[str, Pushed]] = field(default_factory=dict)
    logged_at: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: dict[str, dict[str, int]] = field(default_factory=dict)
    violated_at: dict[str, dict[str, float]] = field(default_factory=dict)
    outcome_violations: dict[str, dict[str, int]] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)

    def push(self, view: str, decision_point: str, at_s: float, arms: int) -> None:
        """Values were pushed; ``at_s`` as in `Pushed`."""
        self.pushed.setdefault(view, {})[decision_point] = Pushed(at_s, arms, at_s)

    def still_current(self, decision_point: str, at_s: float, views: Iterable[str]) -> None:
        """What was pushed last is all that was known at ``at_s``."""
        for view in views:
            if (pushed := self.pushed.get(view, {}).get(decision_point)) is not None:
                pushed.current_at = at_s

    def log(self, view: str, decision_point: str, at_s: float) -> None:
        """Values were appended to the offline table."""
        self.logged_at.setdefault(view, {})[decision_point] = at_s

    def violate(self, view: str, decision_point: str, names: Iterable[str], at_s: float) -> None:
        """Count values by the names of their features, one name a value."""
        counts = self.violations.setdefault(view, {})
        for name in names:
            counts[name] = counts.get(name, 0) + 1
            self.violated_at.setdefault(view, {})[decision_point] = at_s


class ReportBoard:
    """Where the report hangs.

    Parameters
    ----------
    address
        URL of Valkey or Redis.
    """

    def __init__(self, address: str) -> None:
        self._client: Any = redis.Redis.from_url(
            address, socket_timeout=2.0, socket_connect_timeout=2.0, health_check_interval=5
        )

    def write(self, report: FeatureReport) -> None:
        """Replace the report.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        try:
            self._client.set(_KEY, msgspec.json.encode(report), ex=_KEPT_S)
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error

    def read(self) -> FeatureReport | None:
        """The newest report; None without one of the last hour, or one of another version.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        try:
            content = self._client.get(_KEY)
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error
        try:
            return None if content is None else msgspec.json.decode(content, type=FeatureReport)
        except msgspec.MsgspecError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
