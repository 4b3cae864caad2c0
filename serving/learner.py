"""The learner: the one writer of a decision point's policies.

It folds the ledger, in order, into each policy that the routing plan names, publishes a snapshot
after each mini-batch and saves their states with the positions they stand for. A state is a pure
function of the ledger up to its position, so a learner that is killed starts again from its last
checkpoint and ends in the same bytes. A policy that is new to the plan starts at the beginning of
the ledger, and so has learned from all that was ever rewarded before it serves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from feature_repo.aggregates import ArmStatistics
from feature_repo.embedding import Embedder
from feature_repo.windows import ArmWindows
from optimizer.errors import InvalidInput, Unavailable
from optimizer.feature_schema import FeatureSchema, Translations
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.settings import DecisionPoint, Settings
from serving import ledger, plans, variants
from serving.arm_fold import STATISTICS_SPAN_S, first_position, fold_arms
from serving.feature_schemas import known_schemas, policy_schema
from serving.live_point import make_encoder
from serving.policy_line import Checkpoint, PolicyLine, lock_name, snapshot_of
from serving.reward_writer import connect
from serving.rollout_watch import RolloutWatch
from serving.snapshots import SnapshotStore

__all__ = ["Learner", "NewVersion"]

_LOG = logging.getLogger(__name__)
_RETRY_S = 1.0
_REFUSED_S = 10.0
_WINDOWS_EVERY_S = 10.0
_WINDOWS_AT_ONCE = 500
_ANNOUNCE_S = 10.0
"""An unchanged plan is announced again, for a Valkey that came back without its data."""

NewVersion = Callable[[DecisionPoint, str, bytes, int, str | None, FeatureSchema], None]
"""Takes settings, variant, state, ledger position, the alias that the version is to have, and the
features that it looks at."""


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
        Called now and then, to register a version; it must return at once.
    restore
        Called with (decision point's name, lineage) where PostgreSQL has no checkpoint; gives one
        from elsewhere (the registry), or None.
    on_plan
        Told of each plan that comes into force, and of the reason where the learner itself has
        changed it; it must return at once.
    proxy
        Predicts qualities, for a decision point whose settings want that.

    Attributes
    ----------
    position
        How far into the ledger the champion has learned.
    statistics, windows
        Of the arms, as of `counted`.
    outcome_violations
        Outcomes that were out of range, by part: statistics and windows count them clipped.
    counted
        How far into the ledger statistics and windows have come.
    remembers
        Whether statistics and windows hold what was learned before this start.
    statistics_lock
        Held while these four change; read them under it, or they may not belong together.
    """

    def __init__(
        self,
        settings: Settings,
        point: DecisionPoint,
        embedder: Embedder,
        on_version: NewVersion = lambda point, variant, state, at, alias, schema: None,
        restore: Callable[[str, str], Checkpoint | None] = lambda name, lineage: None,
        on_plan: Callable[[RoutingPlan, str], None] = lambda plan, reason: None,
        proxy: ledger.Proxy | None = None,
    ) -> None:
        self._settings = settings
        self._point = point
        self._computed = make_encoder(point, embedder).schema
        self._on_version = on_version
        self._restore = restore
        self._snapshots = SnapshotStore(settings.valkey_address)
        self._plan = RoutingPlan(point.name, 0, PolicyRef(""))
        self._lines: dict[str, PolicyLine] = {}
        self._on_plan = on_plan
        self._proxy = proxy if point.proxy_quality else None
        self._watch = RolloutWatch(point, lambda plan, taken: on_plan(plan, taken.reason))
        self._models = {arm.id: arm.model for arm in point.records()}
        self.statistics = ArmStatistics()
        self.windows = ArmWindows()
        self.outcome_violations: Counter[str] = Counter()
        self.statistics_lock = threading.Lock()
        self.remembers = False
        self.counted = 0
        self.position = 0
        self._announced_at = self._windows_at = 0.0
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
            except InvalidInput as error:
                _LOG.error("%s: nothing is learned: %s", self._point.name, error)
                self._stop.wait(_REFUSED_S)

    def _wait_for_turn(self, connection: psycopg.Connection[Any]) -> None:
        """Hold the decision point's lock for as long as the connection lives: one writer only."""
        query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
        while not self._stop.is_set():
            row = connection.execute(query, (lock_name(self._point.name),)).fetchone()
            if row is not None and row[0]:
                return
            self._stop.wait(_RETRY_S)

    @property
    def skipped(self) -> Counter[str]:
        """Rows that did not teach the champion, by their reason."""
        line = self._lines.get(self._plan.champion.variant)
        return line.skipped if line else Counter()

    def _load(self, connection: psycopg.Connection[Any]) -> None:
        plans.ensure(connection, self._point, self._computed, time.time())
        self._lines = {}
        self._plan = RoutingPlan(self._point.name, 0, PolicyRef(""))
        self._adopt(connection)
        champion = self._lines[self._plan.champion.variant]
        champion.caught_up = True  # nobody else is there to decide meanwhile
        self.position = champion.position
        self._rebuild_statistics(connection, champion.position)

    def _adopt(self, connection: psycopg.Connection[Any]) -> None:
        """Follow the plan that is in force now, and announce it."""
        plan = plans.current(connection, self._point.name)
        now = time.monotonic()
        changed = plan.epoch != self._plan.epoch
        if not changed and now - self._announced_at < _ANNOUNCE_S:
            return
        known = known_schemas(connection, self._point.name).values()
        for line in self._lines.values():
            line.layouts.know(known)
        if changed:
            wanted = policy_schema(self._point, self._computed)
            schemas = variants.variant_schemas(connection, self._point.name)
            names = {ref.variant for ref in plan.refs()}
            self._lines = {name: line for name, line in self._lines.items() if name in names}
            for name in names - self._lines.keys():
                point = variants.variant_point(connection, self._point, name)
                line = PolicyLine(point, name, Translations(schemas.get(name, wanted), known))
                line.load(connection, self._restore)
                self._lines[name] = line
            self._watch.follow(plan)
            self._plan = plan
            self._on_plan(plan, "")
        try:
            for ref in plan.refs():
                if ref.pinned is not None:
                    self._publish_pinned(connection, ref)
            self._snapshots.publish_plan(plan)
        except Unavailable as error:
            _LOG.warning("%s: plan %d waits: %s", self._point.name, plan.epoch, error)
            return
        self._announced_at = now

    def _publish_pinned(self, connection: psycopg.Connection[Any], ref: PolicyRef) -> None:
        state = variants.pinned_state(connection, self._point.name, ref)
        if state is None or ref.pinned is None:
            _LOG.error("%s: the state of %s is not there", self._point.name, ref)
            return
        line = self._lines[ref.variant]
        policy = line.policy_of(state)
        self._snapshots.publish(snapshot_of(line.point, ref, policy, ref.pinned, line.schema))

    def _rebuild_statistics(self, connection: psycopg.Connection[Any], until: int) -> None:
        """Fold what was lately learned once more: statistics and windows survive a restart."""
        since = datetime.now(UTC) - timedelta(seconds=STATISTICS_SPAN_S)
        first = first_position(connection, self._point.name, since)
        with self.statistics_lock:
            self.statistics, self.windows, self.remembers = ArmStatistics(), ArmWindows(), False
            self.outcome_violations = Counter()
            self.counted = until
        at = until if first is None else first - 1
        while at < until:
            rows = ledger.read(connection, self._point.name, at, min(self._batch, until - at))
            if not rows:
                break
            with self.statistics_lock:
                self._count(rows)
            at = rows[-1].position
        with self.statistics_lock:
            self.remembers = True

    def _count(self, rows: Sequence[ledger.LedgerRow]) -> None:
        violations = fold_arms(self._models, rows, self.statistics, self.windows)
        self.outcome_violations.update(violations)

    @property
    def _batch(self) -> int:
        return self._settings.learner.batch_rewards

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        rhythm = self._settings.learner
        while not self._stop.is_set():
            self._adopt(connection)
            busy = self._learn(connection)
            plan = self._watch.look(connection, self._plan, time.time())
            if plan is not self._plan:
                self._adopt(connection)
            for line in self._lines.values():
                if line.caught_up:  # who comes to replace another serves when it has learned all
                    line.publish(self._snapshots)
                line.save(connection, rhythm.checkpoint_s)
                if line.version_due(rhythm.version_rewards, rhythm.version_s):
                    self._offer(line)
            self._close_windows(connection)
            if not busy:
                self._stop.wait(rhythm.batch_s)
        for line in self._lines.values():
            line.save(connection, rhythm.checkpoint_s, final=True)

    def _learn(self, connection: psycopg.Connection[Any]) -> bool:
        """Take everybody a mini-batch further; True if somebody is not at the end yet."""
        read: dict[int, list[ledger.LedgerRow]] = {}

        def after(position: int) -> list[ledger.LedgerRow]:
            if position not in read:
                read[position] = ledger.read(connection, self._point.name, position, self._batch)
            return read[position]

        for line in self._lines.values():
            rows = after(line.position)
            line.learn(rows)
            line.caught_up = line.caught_up or len(rows) < self._batch
        self.position = self._lines[self._plan.champion.variant].position
        if rows := after(self.counted):
            with self.statistics_lock:
                self._count(rows)
                self.counted = rows[-1].position
        if self._watch.position is not None and (rows := after(self._watch.position)):
            self._watch.learn(rows)
        return any(len(rows) == self._batch for rows in read.values())

    def _offer(self, line: PolicyLine) -> None:
        """Have a version registered, under the alias of the role that the plan gives it."""
        aliases = {
            "champion": self._plan.champion,
            "challenger": self._plan.challenger,
            "shadow": self._plan.shadow,
        }
        live = PolicyRef(line.variant)
        alias = next((name for name, ref in aliases.items() if ref == live), None)
        state = line.policy.to_bytes()
        self._on_version(line.point, line.variant, state, line.position, alias, line.schema)

    def _close_windows(self, connection: psycopg.Connection[Any]) -> None:
        default = self._point.default_quality
        now = time.monotonic()
        if (default is None and self._proxy is None) or now - self._windows_at < _WINDOWS_EVERY_S:
            return
        older_than = datetime.now(UTC) - timedelta(seconds=self._point.attribution_window_s)
        ledger.close_windows(
            connection, self._point.name, default, older_than, _WINDOWS_AT_ONCE, self._proxy
        )
        self._windows_at = now
