"""From the learners to the feature store: what the arms did lately goes online and into the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from feature_repo.aggregates import ArmFeatures
from feature_repo.push_log import PushedRows, PushLog
from feature_repo.report import ReportBoard
from optimizer.errors import Unavailable
from optimizer.settings import DecisionPoint, Settings
from serving.learner import Learner

if TYPE_CHECKING:
    from feature_repo.store import FeatureStoreClient

__all__ = ["ArmPublisher"]

_LOG = logging.getLogger(__name__)
_EVERY_S = 0.15
_UNCHANGED_S = 5.0
"""Without new rewards only the decay goes on, and windows move."""
_FACTS_EVERY_S = 10.0
"""Told again, for a Valkey that came back without its data."""
_REPORT_EVERY_S = 10.0
_CLOSE_S = 1.0


class ArmPublisher:
    """Pushes statistics and windows of every arm, in a thread of its own.

    What is pushed is logged: the same values with the same time, and the position in the ledger
    that they stand for. Whoever folds the ledger up to there finds them again
    (`serving.feature_parity`).

    Parameters
    ----------
    settings
        Of the whole platform.
    learners
        By decision point.

    Attributes
    ----------
    log
        What PostgreSQL has not taken yet.
    """

    def __init__(self, settings: Settings, learners: Mapping[str, Learner]) -> None:
        self._settings = settings
        self._learners = learners
        self.log = PushLog(settings.postgres_dsn())
        self._pushed: dict[str, tuple[int, float]] = {}
        self._board = ReportBoard(settings.valkey_address)
        self._told_at = 0.0
        self._facts_logged = False
        self._late: dict[str, int] = {}
        self._late_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="publish_arms", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and write what is pushed but not logged yet."""
        self._stop.set()
        self._thread.join(_CLOSE_S)
        self.log.close()

    def _follow(self) -> None:
        from feature_repo.store import FeatureStoreClient  # Feast takes seconds to import

        store: FeatureStoreClient | None = None
        while not self._stop.wait(_EVERY_S):
            try:
                if store is None:
                    opened = FeatureStoreClient(self._settings)
                    opened.apply()
                    self.log.start()
                    store = opened
                for point in self._settings.decision_points:
                    self._push(store, point, self._learners[point.name])
                self._report(store)
                self._push_facts(store)
            except Unavailable as error:
                _LOG.warning("arm statistics wait: %s", error)
                self._stop.wait(1.0)
            except Exception:
                _LOG.exception("arm statistics could not be pushed")
                self._stop.wait(5.0)
        self._board.close()
        if store is not None:
            store.close()

    def _push(self, store: FeatureStoreClient, point: DecisionPoint, learner: Learner) -> None:
        # To the microsecond, as it is stored: a count of thousands decays by more than that much in
        # the rest, and the ledger would give another one.
        name, now = point.name, datetime.now(UTC).timestamp()
        position, at = self._pushed.get(name, (-1, 0.0))
        if position == learner.counted and now - at < _UNCHANGED_S:
            store.report.still_current(name, now, ("arm_statistics", "arm_windows"))
            return
        models = list(dict.fromkeys(arm.model for arm in point.arms))
        with learner.statistics_lock:
            if not learner.remembers:
                return
            position = learner.counted
            found = learner.statistics.values(now)
            windows = learner.windows.values(models, now)
            late = learner.windows.late
        # Of every arm, or what was online before this start would stay.
        values = {model: found.get(model, ArmFeatures()) for model in models}
        store.push(name, values, now)
        self.log.add(PushedRows.of_statistics(name, values, now, position))
        store.push_windows(name, windows, now)
        self.log.add(PushedRows.of_windows(name, windows, now, position))
        self._pushed[name] = position, now
        self._report_late(name, late)

    def _push_facts(self, store: FeatureStoreClient) -> None:
        """Once everything else is online, since facts wait for PostgreSQL."""
        now = time.time()
        if now - self._told_at < _FACTS_EVERY_S:
            return
        for point in self._settings.decision_points:
            facts = {arm.model: arm.traits for arm in point.arms}
            store.push_model_facts(point.name, facts, now, log=not self._facts_logged)
        self._told_at, self._facts_logged = now, True
        store.prepare(now)

    def _report(self, store: FeatureStoreClient) -> None:
        """Hang out for the replicas how it goes."""
        for name, learner in self._learners.items():
            store.report.late[name] = learner.windows.late
            store.report.outcome_violations[name] = dict(learner.outcome_violations)
        for (view, name), at_s in list(self.log.written_at.items()):
            store.report.log(view, name, at_s)
        self._board.write(store.report)

    def _report_late(self, name: str, late: int) -> None:
        if late > self._late.get(name, 0) and time.monotonic() - self._late_at > _REPORT_EVERY_S:
            _LOG.info(
                "%s: %d outcomes so far came after the allowed lateness and are in no window",
                name,
                late,
            )
            self._late[name], self._late_at = late, time.monotonic()
