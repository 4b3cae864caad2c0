"""What runs in the learner's process: a learner for each decision point, and what follows from it.

Besides learning, the arms' recent statistics and windows go to the feature store and checkpoints go
to the registry, each from a thread of its own: neither Feast nor MLflow can hold learning up.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from datetime import UTC, datetime

import psycopg

from feature_repo.embedding import Embedder
from optimizer.errors import Unavailable
from optimizer.feature_schema import FeatureSchema
from optimizer.rollout import RoutingPlan
from optimizer.settings import DecisionPoint, Settings
from registry.description import PolicyDescription
from registry.plan_aliases import align_aliases, record_step
from registry.versions import PolicyRegistry
from serving import experiments
from serving.arm_publisher import ArmPublisher
from serving.learner import Learner
from serving.ledger import create_tables
from serving.ledger_partitions import ensure_weeks
from serving.policy_line import Checkpoint
from serving.quality_board import QualityFollower
from serving.quality_proxy import QualityProxy
from serving.reward_writer import connect

__all__ = ["Learning"]

_LOG = logging.getLogger(__name__)
_REGISTRY_RETRY_S = 5.0
_TEND_EVERY_S = 5.0
_PARTITIONS_EVERY_S = 3600.0
_CLOSE_S = 1.0

_Version = tuple[DecisionPoint, str, bytes, int, str | None, FeatureSchema]
"""Settings, variant, state, ledger position, alias, features."""


class Learning:
    """All learners of one process.

    Parameters
    ----------
    settings
        Of the whole platform.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._embedder = Embedder()
        self._versions: queue.Queue[_Version] = queue.Queue()
        self._plans: dict[str, RoutingPlan] = {}
        self._stories: queue.Queue[tuple[RoutingPlan, str]] = queue.Queue()
        self._stop = threading.Event()
        self._quality = QualityFollower(
            settings.valkey_address,
            [point.name for point in settings.decision_points if point.proxy_quality],
        )
        self._learners = {
            point.name: Learner(
                settings,
                point,
                self._embedder,
                self._offer_version,
                self._champion,
                self._take_plan,
                QualityProxy(settings, point, self._embedder, self._quality),
            )
            for point in settings.decision_points
        }
        self._threads = [
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True)
            for work in (self._register_versions, self._tend_experiments, self._make_partitions)
        ]
        self._publisher = ArmPublisher(settings, self._learners)

    def start(self) -> None:
        """Begin."""
        for learner in self._learners.values():
            learner.start()
        for thread in self._threads:
            thread.start()
        self._publisher.start()
        self._quality.start()

    def dead(self) -> list[str]:
        """Decision points whose learner has stopped."""
        return [name for name, learner in self._learners.items() if not learner.alive()]

    def close(self) -> None:
        """Checkpoint and stop."""
        self._stop.set()
        for learner in self._learners.values():
            learner.close()
        for thread in self._threads:
            thread.join(timeout=_CLOSE_S)
        self._publisher.close()
        self._quality.close(_CLOSE_S)

    def _offer_version(
        self,
        point: DecisionPoint,
        variant: str,
        state: bytes,
        position: int,
        alias: str | None,
        schema: FeatureSchema,
    ) -> None:
        self._versions.put((point, variant, state, position, alias, schema))

    def _take_plan(self, plan: RoutingPlan, reason: str) -> None:
        if reason:  # of the challenger that `plan` still has
            self._stories.put((plan, reason))
        else:
            self._plans[plan.decision_point] = plan

    def _champion(self, name: str, lineage: str) -> Checkpoint | None:
        """The registered champion, for a start without a checkpoint in PostgreSQL."""
        try:
            champion = PolicyRegistry(self._settings.mlflow_address).champion(name)
        except Unavailable as error:
            _LOG.warning("%s: starts without the registry: %s", name, error)
            return None
        if champion is None or champion.lineage != lineage:
            return None
        return champion.position, champion.state

    def _register_versions(self) -> None:
        """Register the newest version of each policy; keep trying while MLflow is away."""
        registry: PolicyRegistry | None = None
        waiting: dict[tuple[str, str], _Version] = {}
        while not self._stop.is_set():
            try:
                version = self._versions.get(timeout=_REGISTRY_RETRY_S if waiting else 1.0)
                waiting[version[0].name, version[1]] = version
                continue
            except queue.Empty:
                pass
            for key, version in list(waiting.items()):
                try:
                    registry = registry or PolicyRegistry(self._settings.mlflow_address)
                    self._register(registry, version)
                    del waiting[key]
                except Unavailable as error:
                    _LOG.info("version %s of %s waits: %s", key[1], key[0], error)
                except Exception:
                    _LOG.exception("version %s of %s is not registered", key[1], key[0])
                    del waiting[key]
            if registry is not None and not waiting:
                self._tell(registry)

    def _tell(self, registry: PolicyRegistry) -> None:
        """Move aliases to where plans have gone, and write canaries' steps to their versions."""
        try:
            while not self._stories.empty():
                plan, reason = self._stories.queue[0]
                record_step(registry, plan, reason)
                self._stories.get()
            for name, plan in list(self._plans.items()):
                if align_aliases(registry, plan) and self._plans.get(name) is plan:
                    del self._plans[name]
        except Unavailable as error:
            _LOG.info("aliases wait: %s", error)
        except Exception:
            _LOG.exception("aliases could not be moved")

    def _register(self, registry: PolicyRegistry, version: _Version) -> None:
        point, variant, state, position, alias, schema = version
        learner = self._learners[point.name]
        with learner.statistics_lock:
            recent = learner.statistics.values(time.time())
        metrics = {"learned": float(position)}
        for model, features in recent.items():
            for name in ("quality", "cost_usd", "latency_s", "count"):
                value = getattr(features, name)
                if value is not None:
                    metrics[f"recent_{name}/{model}"] = value
        registry.publish(
            PolicyDescription(
                decision_point=point,
                feature_names=schema.names,
                feature_groups=schema.groups,
                schema_id=schema.schema_id,
            ),
            state,
            position=position,
            metrics=metrics,
            kept=self._settings.learner.versions_kept,
            alias=alias,
            variant=variant,
        )

    def _tend_experiments(self) -> None:
        """Stop experiments that are done, and move the weights of adaptive ones."""
        while not self._stop.wait(_TEND_EVERY_S):
            try:
                with connect(self._settings.postgres_dsn()) as connection:
                    for name in self._learners:
                        experiments.tend(
                            connection, self._settings, name, actor="learner", now=time.time()
                        )
            except psycopg.Error as error:
                _LOG.warning("experiments wait, PostgreSQL is away: %s", error)
            except Exception:
                _LOG.exception("experiments could not be tended")

    def _make_partitions(self) -> None:
        """Keep weeks of the ledger ahead of their time."""
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                with connect(self._settings.postgres_dsn()) as connection:
                    create_tables(connection)
                    ensure_weeks(connection, datetime.now(UTC))
                wait_s = _PARTITIONS_EVERY_S
            except (psycopg.Error, Unavailable) as error:
                _LOG.warning("partitions of the ledger wait: %s", error)
                wait_s = _REGISTRY_RETRY_S
            except Exception:
                _LOG.exception("partitions of the ledger could not be made")
                wait_s = _PARTITIONS_EVERY_S
