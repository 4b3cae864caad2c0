"""Everything a replica holds in memory, and the background work that keeps it fresh."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg

from feature_repo.aggregates import ArmFeatures
from feature_repo.embedding import Embedder
from optimizer.errors import Unavailable
from optimizer.settings import Settings
from optimizer.signals import signals_of
from serving import ledger
from serving.arm_features import ArmFeatureReader
from serving.dead_letter_box import DeadLetterBox
from serving.decision_log import DecisionLog
from serving.feature_health import FeatureHealth
from serving.live_point import LivePoint
from serving.metrics import ReplicaMetrics
from serving.outcomes import recent_outcomes
from serving.quality_board import QualityFollower
from serving.quality_routes import QualityRoutes
from serving.response_log import ResponseLog
from serving.reward_writer import RewardWriter, connect
from serving.savings import ControlReader
from serving.snapshots import Snapshot, SnapshotStore
from serving.tokens import TokenSigner
from serving.watch_metrics import watch_metrics

__all__ = ["ReplicaState"]

_LOG = logging.getLogger(__name__)
_POLL_S = 0.5
_LOOK_AGAIN_S = 5.0
_FIRST_SNAPSHOT_WAIT_S = 20.0
_SET_ASIDE_COUNT = 20.0
_CLOSE_S = 5.0
_OBJECTS_BETWEEN_COLLECTIONS = 20_000


class ReplicaState:
    """The decision points, the writers, and their threads.

    Parameters
    ----------
    settings
        Of the whole platform.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.signer = TokenSigner([key.get_secret_value() for key in settings.token_keys])
        self.rewards = RewardWriter(settings.postgres_dsn())
        self.log = DecisionLog(settings.postgres_dsn())
        self.dead_letters = DeadLetterBox(settings.postgres_dsn())
        self.responses = ResponseLog(settings.postgres_dsn())
        self._control = ControlReader(settings.postgres_dsn())
        embedder = Embedder()
        self.points = {
            point.name: LivePoint(point, embedder, self.signer, self.log.add)
            for point in settings.decision_points
        }
        self.features = ArmFeatureReader(
            settings,
            {name: _models(live) for name, live in self.points.items()},
            self._use_statistics,
            _set_aside_from_collection,
            lambda: self.feature_health.watch(),
        )
        self.feature_health = FeatureHealth(self.features, settings.feature_limits)
        self.quality = QualityFollower(settings.valkey_address, self.points)
        self.quality_routes = QualityRoutes(
            self.points,
            self.signer,
            embedder,
            self.quality,
            self.features,
            self.responses.add,
        )
        self._started_at = time.monotonic()
        self._snapshots = SnapshotStore(settings.valkey_address)
        self._stop = threading.Event()
        self.metrics = ReplicaMetrics(
            self.points.values(),
            {
                "rewards_waiting": ("Reward requests not stored yet", self.rewards.waiting),
                "log_waiting": ("Decisions not logged yet", self.log.waiting),
                "log_dropped": ("Decisions the log lost", self.log.dropped),
                "responses_waiting": ("Responses whose facts wait", self.responses.waiting),
                "responses_dropped": ("Responses whose facts are lost", self.responses.dropped),
                "memory_bytes": ("Resident memory of the replica", _resident_bytes),
                "feature_age_seconds": ("Age of the arm statistics", self.features.age_s),
                "windows_age_seconds": (
                    "Since the newest windows here were pushed, at the oldest point",
                    self.features.windows_age_s,
                ),
            },
            lambda: chain(
                self.feature_health.metrics(),
                self.dead_letters.metrics(),
                watch_metrics(self.points.values()),
                self.quality_routes.metrics(),
            ),
        )
        self._take_newest(self._wanted())
        self._thread = threading.Thread(
            target=self._follow_snapshots, name="follow_snapshots", daemon=True
        )
        self._thread.start()
        self.features.start()
        self.quality.start()

    def close(self) -> None:
        """Store and log what is waiting."""
        self._stop.set()
        self.rewards.close()
        self.log.close()
        self.dead_letters.close()
        self.responses.close()
        self._thread.join(_CLOSE_S)
        self.features.close(_CLOSE_S)
        self.quality.close(_CLOSE_S)
        self._snapshots.close()

    def waiting_for(self) -> list[str]:
        """Decision points without a policy, for as long as one can still be expected."""
        if time.monotonic() - self._started_at > _FIRST_SNAPSHOT_WAIT_S:
            return []
        return [name for name in self._wanted() if self.points[name].policy is None]

    def decisions(self) -> int:
        """Made so far, by all decision points."""
        return sum(sum(live.counts) for live in self.points.values())

    def summary(self, name: str) -> dict[str, Any]:
        """What this replica alone knows of a decision point."""
        live = self.points[name]
        return {
            "name": name,
            "models": _models(live),
            "policy": live.point.policy.name,
            "policy_version": _version(live),
        }

    def details(self, name: str) -> dict[str, Any]:
        """Arms, plan, versions, recent reward, control and counts; reads PostgreSQL and Valkey.

        Raises
        ------
        Unavailable
            If PostgreSQL is away.
        """
        live = self.points[name]
        point = live.point
        try:
            with connect(self.settings.postgres_dsn()) as connection:
                ledger.create_tables(connection)
                rewards = ledger.head(connection, name)
                row = connection.execute(
                    "SELECT decisions FROM decision_counts WHERE decision_point = %s", (name,)
                ).fetchone()
                recent = recent_outcomes(connection, name, 1000)
            compared = self._control.read(point)
        except psycopg.Error as error:
            raise Unavailable("PostgreSQL") from error
        newest = None
        try:
            newest = self._snapshots.newest(name, live.shelf.routes.plan.champion)
        except Unavailable as error:
            _LOG.warning("%s", error)
        newest = newest or live.shelf.snapshot
        known = [
            reward
            for outcome in recent
            if (reward := point.objective().reward(outcome)) is not None
        ]
        return {
            **self.summary(name),
            "arms": [
                {
                    "model": arm.model,
                    "parameters": arm.parameters,
                    "prompt_variant": arm.prompt_variant,
                    "set_aside": index in live.set_aside,
                    "recent": self.features.recent(name, arm.model),
                }
                for index, arm in enumerate(point.arms)
            ],
            "weights": point.weights.model_dump(),
            "signals": [asdict(signal) for signal in signals_of(point.signals).values()],
            "plan": _plan(live),
            **compared,
            "decisions": row[0] if row else 0,
            "rewards": rewards,
            "learned": newest.position if newest else 0,
            "recent_reward": {
                "mean": sum(known) / len(known) if known else None,
                "decisions": len(known),
                "incomplete": len(recent) - len(known),
            },
            "learner": _learner(newest),
        }

    def _wanted(self) -> list[str]:
        """The decision points whose policies are kept in memory: those used last."""
        names = sorted(self.points, key=lambda name: self.points[name].used_at, reverse=True)
        return names[: self.settings.serving.live_policies]

    def _take_newest(self, names: Iterable[str]) -> None:
        for name in names:
            shelf = self.points[name].shelf
            try:
                plan = self._snapshots.plan(name)
                if plan is not None:
                    shelf.follow(plan)
                for ref in shelf.lacking():
                    snapshot = self._snapshots.newest(name, ref)
                    if snapshot is not None:
                        known = shelf.has(ref)
                        if shelf.take(snapshot) and known:
                            self._measure(name, snapshot)
            except Unavailable as error:
                _LOG.warning("no snapshot of %s for now: %s", name, error)
                return

    def _follow_snapshots(self) -> None:
        """Swap in snapshots as they are announced; look for missed ones now and then."""
        looked_at = time.monotonic()
        for name in self._snapshots.changes(_POLL_S):
            if self._stop.is_set():
                return
            wanted = self._wanted()
            for other in self.points.keys() - set(wanted):
                self.points[other].shelf.release()
            if time.monotonic() - looked_at > _LOOK_AGAIN_S:
                looked_at = time.monotonic()
                self._take_newest(wanted)
            elif name in wanted:
                self._take_newest([name])
            self._take_newest(one for one in wanted if self.points[one].policy is None)

    def _measure(self, name: str, snapshot: Snapshot) -> None:
        """How long its rewards took; the first snapshot after a start brings old ones."""
        progress, now = snapshot.progress, time.time()
        if progress is None or progress.newest_reward_at is None:
            return
        assert progress.oldest_reward_at is not None
        self.metrics.swapped(name, "newest", now - progress.newest_reward_at)
        self.metrics.swapped(name, "oldest", now - progress.oldest_reward_at)

    def _use_statistics(self, name: str, statistics: dict[str, ArmFeatures]) -> None:
        live = self.points[name]
        limit = live.point.guardrails.error_rate
        live.set_aside = tuple(
            index
            for index, arm in enumerate(live.point.arms)
            if (recent := statistics.get(arm.model)) is not None
            and recent.count >= _SET_ASIDE_COUNT
            and recent.error_rate is not None
            and recent.error_rate > limit
        )


def _models(live: LivePoint) -> list[str]:
    return [arm.model for arm in live.point.arms]


def _version(live: LivePoint) -> int | None:
    snapshot = live.shelf.snapshot
    return snapshot.position if snapshot else None


def _plan(live: LivePoint) -> dict[str, Any]:
    """Who serves which share of the units here and now."""
    routes = live.shelf.routes
    plan, control = routes.plan, live.point.control_share
    tried = sum(experiment.share for experiment in plan.experiments) * (1.0 - control)
    rest = 1.0 - control - tried
    shown: dict[str, Any] = {
        "epoch": plan.epoch,
        "champion": {
            "variant": plan.champion.variant,
            "pinned": plan.champion.pinned,
            "policy_version": _version(live),
            "share": rest * (1.0 - plan.challenger_share),
        },
        "control": {"share": control},
    }
    if plan.challenger is not None:
        shown["challenger"] = {
            "variant": plan.challenger.variant,
            "policy_version": routes.challenger.version if routes.challenger else None,
            "share": rest * plan.challenger_share,
            "since": plan.stage_at,
        }
    if plan.shadow is not None:
        shown["shadow"] = {
            "variant": plan.shadow.variant,
            "policy_version": routes.shadow.version if routes.shadow else None,
        }
    if plan.experiments:
        shown["experiments"] = {
            one.experiment_id: {"share": one.share * (1.0 - control)} for one in plan.experiments
        }
    return shown


def _learner(newest: Snapshot | None) -> dict[str, Any] | None:
    if newest is None:
        return None
    progress = newest.progress
    return {
        "pid": newest.learner_pid,
        "at": newest.published_at,
        "rewards_per_s": progress.rewards_per_s if progress else None,
        "saved_at": progress.saved_at if progress else None,
        "watch": progress.watch if progress else None,
    }


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _set_aside_from_collection() -> None:
    """Keep the 190,000 objects of imported modules out of every garbage collection.

    Called when the last heavy import is done; a full collection over them stops decisions for a
    tenth of a second (95 ms measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 100)
