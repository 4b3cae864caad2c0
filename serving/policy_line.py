"""One policy that learns from the ledger: a variant of a decision point, its state and position."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from optimizer.errors import IncompatibleState, InvalidToken, Unavailable
from optimizer.feature_schema import FeatureSchema, Translations
from optimizer.features import unpack
from optimizer.learner_watch import LearnerWatch, WatchedRows
from optimizer.policies import Policy
from optimizer.records import Observation
from optimizer.rollout import PolicyRef
from optimizer.settings import DecisionPoint
from serving import ledger, watch_store
from serving.routes import make_point_policy
from serving.snapshots import Progress, Snapshot, SnapshotStore
from serving.tokens import CONTROL, TEACHERS, Decision, parse

__all__ = ["Checkpoint", "PolicyLine", "fold", "lock_name", "make_watch", "snapshot_of"]

_LOG = logging.getLogger(__name__)
_FIRST_VERSION = 1000
"""Rewards after which the first version with something learned is registered: little traffic
should not have to wait for the usual count."""
_RATE_OVER_S = 30.0
_REPUBLISH_S = 10.0
"""An unchanged snapshot is published again, for a Valkey that came back without its data."""

Checkpoint = tuple[int, bytes]
"""Ledger position and policy state."""


def fold(
    policy: Policy,
    layouts: Translations,
    rows: Sequence[ledger.LedgerRow],
    skipped: Counter[str],
    watch: LearnerWatch | None = None,
) -> None:
    """Teach ``policy`` the rows, in their order.

    Decisions with another feature layout teach what is the same in the policy's. Decisions of the
    static rule, of arms that are gone, and of a layout that nobody knows do not teach; they are
    counted in ``skipped`` by their reason. ``watch`` is told each row before it is learned, and
    where the policy forgot because of a change.
    """
    index = {arm_id: position for position, arm_id in enumerate(policy.known_ids)}
    observations = []
    decisions: list[Decision] = []
    for row in rows:
        try:
            decision = parse(row.token)
        except InvalidToken:
            skipped["token"] += 1
            continue
        if decision.role not in TEACHERS:
            skipped["fallback"] += 1
        elif decision.arm_id not in index:
            skipped["arm"] += 1
        elif decision.schema_id not in layouts:
            skipped["schema"] += 1
        else:
            decisions.append(decision)
            observations.append(
                Observation(
                    index[decision.arm_id],
                    layouts.read(decision.schema_id, unpack(decision.features)),
                    row.before,
                    row.after,
                    decision.policy_version,
                    row.position,
                )
            )
    if watch is None:
        policy.learn(observations)
        return
    watched = WatchedRows(
        [decision.arm_id for decision in decisions],
        [decision.role == CONTROL for decision in decisions],
        [decision.propensity for decision in decisions],
        [one.position for one in observations],
    )
    policy.learn(
        observations,
        lambda start, stop, *tables: watch.see(watched.cut(start, stop), *tables),
        watch.forgot,
    )


def snapshot_of(
    point: DecisionPoint,
    ref: PolicyRef,
    policy: Policy,
    position: int,
    schema: FeatureSchema | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """What replicas are sent."""
    return Snapshot(
        point.name,
        policy.lineage,
        position,
        policy.snapshot(),
        os.getpid(),
        time.time(),
        ref,
        point.policy.model_dump_json(),
        schema,
        progress,
    )


def lock_name(decision_point: str) -> str:
    """The advisory lock that the one writer of a decision point's policies holds."""
    return f"llmopt learner {decision_point}"


def make_watch(point: DecisionPoint) -> LearnerWatch:
    """A watch of the decision point's arms that has seen nothing yet."""
    arm_ids = [arm.id for arm in point.records()]
    return LearnerWatch(arm_ids, point.objective(), point.control_share)


class PolicyLine:
    """Learns, publishes, and saves.

    Parameters
    ----------
    point
        Settings of the decision point, with the policy of this variant.
    variant
        Its name.
    layouts
        Reads decisions of every known layout in that of this variant.

    Attributes
    ----------
    position
        How far into the ledger it has learned.
    caught_up
        Whether it has been at the ledger's end since it was loaded.
    watch
        Is told every row that it learns from.
    """

    def __init__(self, point: DecisionPoint, variant: str, layouts: Translations) -> None:
        self.point = point
        self.variant = variant
        self.layouts = layouts
        self.policy = make_point_policy(point, self.schema)
        self.watch = make_watch(point)
        self.position = 0
        self.caught_up = False
        self.skipped: Counter[str] = Counter()
        self._published = self._checkpointed = self._versioned = -1
        self._published_at = self._checkpoint_at = self._version_at = 0.0
        self._alarms_told = 0
        self._rewards_at: tuple[float, float] | None = None
        self._lately: deque[tuple[float, int]] = deque()
        self._saved_at = 0.0

    @property
    def schema(self) -> FeatureSchema:
        """The features that it looks at."""
        return self.layouts.target

    def load(
        self,
        connection: psycopg.Connection[Any],
        restore: Callable[[str, str], Checkpoint | None],
    ) -> None:
        """Start from a state that belongs to these settings, best of all its own.

        What another variant of the same lineage has learned is as good: the state depends on the
        ledger alone.
        """
        policy, position = self.policy, 0
        name = self.point.name
        row = connection.execute(
            "SELECT position, state FROM policy_checkpoints WHERE decision_point = %s "
            "AND lineage = %s ORDER BY variant = %s DESC, position DESC LIMIT 1",
            (name, policy.lineage, self.variant),
        ).fetchone()
        found = None if row is None else (int(row[0]), bytes(row[1]))
        stored = ledger.head(connection, name)
        if found is None and stored:
            found = restore(name, policy.lineage)
        if found is not None and found[0] <= stored:
            try:
                policy.from_bytes(found[1])
                position = found[0]
            except IncompatibleState as error:
                _LOG.warning("%s: learning anew: %s", name, error)
                policy = make_point_policy(self.point, self.schema)
        self.policy, self.position = policy, position
        self._checkpointed = self._versioned = position if position else -1
        self._published = -1
        self._load_watch(connection)
        _LOG.info("%s: variant %s starts at ledger position %d", name, self.variant, position)

    def _load_watch(self, connection: psycopg.Connection[Any]) -> None:
        kept = watch_store.load(connection, self.point.name, self.variant, self.position)
        self.watch = make_watch(self.point)
        self.watch.start(self.position)
        if kept is not None:
            try:
                self.watch.from_bytes(kept)
            except IncompatibleState as error:
                _LOG.info("%s: the watch starts anew: %s", self.point.name, error)
                self.watch = make_watch(self.point)
                self.watch.start(self.position)
        self._alarms_told = self.watch.raised

    def alarms_are_told(self) -> None:
        """Take the alarms so far as recorded: they were, by whoever folded these rows first."""
        self._alarms_told = self.watch.raised

    def policy_of(self, state: bytes) -> Policy:
        """A policy of this variant with another state."""
        policy = make_point_policy(self.point, self.schema)
        policy.from_bytes(state)
        return policy

    def learn(self, rows: Sequence[ledger.LedgerRow]) -> None:
        """Fold the rows that follow its position."""
        if rows:
            fold(self.policy, self.layouts, rows, self.skipped, self.watch)
            self.position = rows[-1].position
            first, last = rows[0].received_at.timestamp(), rows[-1].received_at.timestamp()
            self._rewards_at = (self._rewards_at or (first,))[0], last
            self._lately.append((time.monotonic(), len(rows)))

    def publish(self, store: SnapshotStore) -> None:
        """Send its snapshot, if it has changed; while Valkey is away it waits."""
        now = time.monotonic()
        if self._published == self.position and now - self._published_at < _REPUBLISH_S:
            return
        ref = PolicyRef(self.variant)
        snapshot = snapshot_of(
            self.point, ref, self.policy, self.position, self.schema, self._progress(now)
        )
        try:
            store.publish(snapshot)
        except Unavailable as error:
            _LOG.warning("%s: snapshot %d waits: %s", self.point.name, self.position, error)
            return
        self._published, self._published_at = self.position, now
        self._rewards_at = None

    def _progress(self, now: float) -> Progress:
        while self._lately and now - self._lately[0][0] > _RATE_OVER_S:
            self._lately.popleft()
        rate = sum(rows for _, rows in self._lately) / _RATE_OVER_S
        oldest, newest = self._rewards_at or (None, None)
        return Progress(oldest, newest, rate, self._saved_at or None, self.watch.figures())

    def save(
        self, connection: psycopg.Connection[Any], every_s: float, final: bool = False
    ) -> None:
        """Keep its state in PostgreSQL, if it has changed and the last time is long enough ago."""
        now = time.monotonic()
        due = final or now - self._checkpoint_at >= every_s
        if not due or self.position == self._checkpointed:
            return
        with connection.transaction():
            self._save(connection)
        self._checkpointed = self.position
        self._checkpoint_at = now
        self._saved_at = time.time()
        self._alarms_told = self.watch.raised

    def _save(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "INSERT INTO policy_checkpoints VALUES (%s, %s, %s, %s, %s, now()) ON CONFLICT "
            "(decision_point, variant) DO UPDATE SET lineage = excluded.lineage, position = "
            "excluded.position, state = excluded.state, saved_at = excluded.saved_at",
            (
                self.point.name,
                self.variant,
                self.policy.lineage,
                self.position,
                self.policy.to_bytes(),
            ),
        )
        name, watch = self.point.name, self.watch
        watch_store.save(connection, name, self.variant, self.position, watch.to_bytes())
        if news := watch.raised - self._alarms_told:
            called = {arm.id.hex(): arm.model for arm in self.point.records()}
            alarms = watch.alarms[-news:]
            watch_store.record_alarms(connection, name, self.variant, alarms, called)

    def version_due(self, every_rewards: int, every_s: float) -> bool:
        """Whether it has learned enough for a version of its own; asked once a version."""
        now = time.monotonic()
        learned = self.position - self._versioned
        late = learned > 0 and now - self._version_at >= every_s
        early = self._versioned < _FIRST_VERSION <= self.position
        if self._versioned >= 0 and learned < every_rewards and not late and not early:
            return False
        self._versioned = self.position
        self._version_at = now
        return True
