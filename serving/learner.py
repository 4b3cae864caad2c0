"""The learner: the one writer of a decision point's policy.

It folds the ledger, in order, into the policy, publishes a snapshot after each mini-batch and saves
its state with the position it stands for. The state is a pure function of the ledger up to that
position, so a learner that is killed starts again from its last checkpoint and ends in the same
bytes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from feature_repo.aggregates import ArmStatistics
from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState, InvalidToken, Unavailable
from optimizer.features import unpack
from optimizer.policies import Policy
from optimizer.records import Observation
from optimizer.settings import DecisionPoint, Settings
from serving import ledger
from serving.live_point import make_encoder, make_point_policy
from serving.reward_writer import connect
from serving.snapshots import Snapshot, SnapshotStore
from serving.tokens import FALLBACK, parse

__all__ = ["Checkpoint", "Learner", "fold"]

_LOG = logging.getLogger(__name__)
_RETRY_S = 1.0
_WINDOWS_EVERY_S = 10.0
_WINDOWS_AT_ONCE = 500
_STATISTICS_SPAN_S = 3600.0
_REPUBLISH_S = 10.0
"""An unchanged snapshot is published again, for a Valkey that came back without its data."""

Checkpoint = tuple[int, bytes]
"""Ledger position and policy state."""


def fold(
    policy: Policy, schema_id: int, rows: Sequence[ledger.LedgerRow], skipped: Counter[str]
) -> None:
    """Teach ``policy`` the rows, in their order.

    Decisions of the static rule, of arms that are gone, and of another feature layout do not teach;
    they are counted in ``skipped`` by their reason.
    """
    index = {arm_id: position for position, arm_id in enumerate(policy.known_ids)}
    observations = []
    for row in rows:
        try:
            decision = parse(row.token)
        except InvalidToken:
            skipped["token"] += 1
            continue
        if decision.role == FALLBACK:
            skipped["fallback"] += 1
        elif decision.arm_id not in index:
            skipped["arm"] += 1
        elif decision.schema_id != schema_id:
            skipped["schema"] += 1
        else:
            observations.append(
                Observation(
                    index[decision.arm_id],
                    unpack(decision.features),
                    row.before,
                    row.after,
                    decision.policy_version,
                    row.position,
                )
            )
    policy.learn(observations)


class Learner:
    """Learns for one decision point, in a thread of its own.

    Parameters
    ----------
    settings
        Of the whole platform.
    point
        The decision point.
    embedder
        Tells the length of the prompt embedding.
    on_version
        Called with (decision point, policy state, ledger position) now and then, to register a
        version; it must return at once.
    restore
        Called with (decision point's name, lineage) where PostgreSQL has no checkpoint; gives one
        from elsewhere (the registry), or None.
    """

    def __init__(
        self,
        settings: Settings,
        point: DecisionPoint,
        embedder: Embedder,
        on_version: Callable[[DecisionPoint, bytes, int], None] = lambda point, state, at: None,
        restore: Callable[[str, str], Checkpoint | None] = lambda name, lineage: None,
    ) -> None:
        self._settings = settings
        self._point = point
        self._encoder = make_encoder(point, embedder)
        self._on_version = on_version
        self._restore = restore
        self._snapshots = SnapshotStore(settings.valkey_address)
        self._policy = make_point_policy(point, self._encoder)
        self.statistics = ArmStatistics()
        self.statistics_lock = threading.Lock()
        self.position = 0
        self.skipped: Counter[str] = Counter()
        self._published = -1
        self._checkpointed = -1
        self._versioned = -1
        self._published_at = self._checkpoint_at = self._version_at = self._windows_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"learner-{point.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Checkpoint and stop."""
        self._stop.set()
        self._thread.join(timeout=10)
        self._snapshots.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with connect(self._settings.postgres_dsn()) as connection:
                    ledger.create_tables(connection)
                    self._wait_for_turn(connection)
                    self._load(connection)
                    self._follow(connection)
            except psycopg.Error as error:
                _LOG.warning("%s: PostgreSQL is away: %s", self._point.name, error)
                self._stop.wait(_RETRY_S)

    def _wait_for_turn(self, connection: psycopg.Connection[Any]) -> None:
        """Hold the decision point's lock for as long as the connection lives: one writer only."""
        name = f"llmopt learner {self._point.name}"
        query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
        while not self._stop.is_set():
            row = connection.execute(query, (name,)).fetchone()
            if row is not None and row[0]:
                return
            self._stop.wait(_RETRY_S)

    def _load(self, connection: psycopg.Connection[Any]) -> None:
        """Start from the newest state there is that belongs to these settings."""
        policy = make_point_policy(self._point, self._encoder)
        position = 0
        row = connection.execute(
            "SELECT position, state FROM learner_checkpoints WHERE decision_point = %s "
            "AND lineage = %s",
            (self._point.name, policy.lineage),
        ).fetchone()
        found = None if row is None else (int(row[0]), bytes(row[1]))
        stored = ledger.head(connection, self._point.name)
        if found is None and stored:
            found = self._restore(self._point.name, policy.lineage)
        if found is not None and found[0] <= stored:
            try:
                policy.from_bytes(found[1])
                position = found[0]
            except IncompatibleState as error:
                _LOG.warning("%s: learning anew: %s", self._point.name, error)
                policy = make_point_policy(self._point, self._encoder)
        self._policy, self.position = policy, position
        self._checkpointed = self._versioned = position if position else -1
        self._published = -1
        self._rebuild_statistics(connection)
        _LOG.info("%s: starts at ledger position %d", self._point.name, position)

    def _rebuild_statistics(self, connection: psycopg.Connection[Any]) -> None:
        """Fold the last hour that was already learned, so that statistics survive a restart."""
        row = connection.execute(
            "SELECT coalesce(min(position), 0) FROM rewards WHERE decision_point = %s "
            "AND received_at > %s",
            (self._point.name, datetime.now(UTC) - timedelta(seconds=_STATISTICS_SPAN_S)),
        ).fetchone()
        with self.statistics_lock:
            self.statistics = ArmStatistics()
        at = (row[0] if row else 0) - 1
        while 0 <= at < self.position:
            rows = ledger.read(connection, self._point.name, at, self._batch)
            rows = [seen for seen in rows if seen.position <= self.position]
            if not rows:
                return
            self._count(rows)
            at = rows[-1].position

    @property
    def _batch(self) -> int:
        return self._settings.learner.batch_rewards

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        while not self._stop.is_set():
            rows = ledger.read(connection, self._point.name, self.position, self._batch)
            if rows:
                fold(self._policy, self._encoder.schema_id, rows, self.skipped)
                self._count(rows)
                self.position = rows[-1].position
            self._publish()
            self._save(connection)
            self._close_windows(connection)
            if len(rows) < self._batch:
                self._stop.wait(self._settings.learner.batch_s)
        self._save(connection, final=True)

    def _count(self, rows: Sequence[ledger.LedgerRow]) -> None:
        models = {arm.id: arm.model for arm in self._point.records()}
        with self.statistics_lock:
            for row in rows:
                try:
                    decision = parse(row.token)
                except InvalidToken:
                    continue  # `fold` has counted it
                model = models.get(decision.arm_id)
                if model is not None:
                    # The decision's time, so that a correction cancels exactly what it corrects.
                    self.statistics.update(model, decision.decided_at, row.before, row.after)

    def _publish(self) -> None:
        now = time.monotonic()
        if self._published == self.position and now - self._published_at < _REPUBLISH_S:
            return
        snapshot = Snapshot(
            self._point.name,
            self._policy.lineage,
            self.position,
            self._policy.snapshot(),
            os.getpid(),
            time.time(),
        )
        try:
            self._snapshots.publish(snapshot)
        except Unavailable as error:
            _LOG.warning("%s: snapshot %d waits: %s", self._point.name, self.position, error)
            return
        self._published, self._published_at = self.position, now

    def _save(self, connection: psycopg.Connection[Any], final: bool = False) -> None:
        now = time.monotonic()
        rhythm = self._settings.learner
        due = final or now - self._checkpoint_at >= rhythm.checkpoint_s
        if due and self.position != self._checkpointed:
            state = self._policy.to_bytes()
            connection.execute(
                "INSERT INTO learner_checkpoints VALUES (%s, %s, %s, %s, now()) ON CONFLICT "
                "(decision_point) DO UPDATE SET lineage = excluded.lineage, position = "
                "excluded.position, state = excluded.state, saved_at = excluded.saved_at",
                (self._point.name, self._policy.lineage, self.position, state),
            )
            self._checkpointed = self.position
            self._checkpoint_at = now
        learned = self.position - self._versioned
        late = learned > 0 and now - self._version_at >= rhythm.version_s
        if self._versioned < 0 or learned >= rhythm.version_rewards or late:
            self._on_version(self._point, self._policy.to_bytes(), self.position)
            self._versioned = self.position
            self._version_at = now

    def _close_windows(self, connection: psycopg.Connection[Any]) -> None:
        default = self._point.default_quality
        now = time.monotonic()
        if default is None or now - self._windows_at < _WINDOWS_EVERY_S:
            return
        older_than = datetime.now(UTC) - timedelta(seconds=self._point.attribution_window_s)
        ledger.close_windows(connection, self._point.name, default, older_than, _WINDOWS_AT_ONCE)
        self._windows_at = now
