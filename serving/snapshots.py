"""Policy snapshots and routing plans on their way to every replica, through Valkey.

The newest plan of a decision point is a key, and so is the newest snapshot of each policy that it
names, so that a replica that starts finds them; a message on a channel tells running replicas that
something changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import redis

from optimizer.errors import Unavailable
from optimizer.feature_schema import FeatureSchema
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef, RoutingPlan

__all__ = ["FIRST", "Progress", "Snapshot", "SnapshotStore"]

_LOG = logging.getLogger(__name__)
_CHANNEL = "llmopt:snapshots"

FIRST = PolicyRef("1.0")
"""The policy that a decision point starts with."""


class Progress(msgspec.Struct, frozen=True):
    """How the learner comes along, as of a snapshot.

    Attributes
    ----------
    oldest_reward_at, newest_reward_at
        When the rewards that the snapshot brings were stored, Unix seconds by PostgreSQL's clock;
        None if it brings none.
    rewards_per_s
        Learned in the last half minute.
    saved_at
        When its checkpoint was last saved, Unix seconds; None if not since the learner's start.
    watch
        See `optimizer.learner_watch.LearnerWatch.figures`.
    """

    oldest_reward_at: float | None
    newest_reward_at: float | None
    rewards_per_s: float
    saved_at: float | None
    watch: dict[str, Any]


class Snapshot(msgspec.Struct, frozen=True):
    """One immutable version of a policy.

    Attributes
    ----------
    position
        Its version: the ledger position up to which it has learned.
    learner_pid
        Process id of the learner that made it.
    published_at
        Unix time in seconds.
    ref
        Which policy of the decision point.
    policy
        Its settings as JSON; those of the decision point if empty.
    schema
        The features that it looks at; those of the decision point if None.
    progress
        None of a pinned policy, which learns no more.
    """

    decision_point: str
    lineage: str
    position: int
    state: bytes
    learner_pid: int
    published_at: float
    ref: PolicyRef = FIRST
    policy: str = ""
    schema: FeatureSchema | None = None
    progress: Progress | None = None

    def settings(self) -> PolicySettings | None:
        """The settings that it carries."""
        return PolicySettings.model_validate_json(self.policy) if self.policy else None


class SnapshotStore:
    """Publishes and follows snapshots.

    Parameters
    ----------
    address
        URL of Valkey or Redis.
    """

    def __init__(self, address: str) -> None:
        self._client: Any = redis.Redis.from_url(
            address,
            socket_timeout=2.0,
            socket_connect_timeout=2.0,
            health_check_interval=5,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def publish(self, snapshot: Snapshot) -> None:
        """Make this the newest snapshot and tell every replica.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        self._put(
            _key(snapshot.decision_point, snapshot.ref),
            msgspec.msgpack.encode(snapshot),
            snapshot.decision_point,
        )

    def publish_plan(self, plan: RoutingPlan) -> None:
        """Make this the plan and tell every replica.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        self._put(_plan_key(plan.decision_point), msgspec.msgpack.encode(plan), plan.decision_point)

    def newest(self, decision_point: str, ref: PolicyRef = FIRST) -> Snapshot | None:
        """The newest snapshot of a policy, or None if there is none yet.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        data = self._get(_key(decision_point, ref))
        return None if data is None else msgspec.msgpack.decode(data, type=Snapshot)

    def plan(self, decision_point: str) -> RoutingPlan | None:
        """The plan, or None if there is none yet.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        data = self._get(_plan_key(decision_point))
        return None if data is None else msgspec.msgpack.decode(data, type=RoutingPlan)

    def _put(self, key: str, value: bytes, decision_point: str) -> None:
        try:
            pipe = self._client.pipeline(transaction=True)
            pipe.set(key, value)
            pipe.publish(_CHANNEL, decision_point)
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error

    def _get(self, key: str) -> bytes | None:
        try:
            value: bytes | None = self._client.get(key)
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error
        return value

    def changes(self, poll_s: float) -> Iterator[str | None]:
        """Names of decision points as something of theirs changes; None after ``poll_s`` without.

        Never ends. While Valkey is away it yields None, so that the caller can go on looking.
        """
        while True:
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(_CHANNEL)
                    yield None
                    while True:
                        message = channel.get_message(timeout=poll_s)
                        yield message["data"].decode() if message else None
            except (redis.RedisError, OSError) as error:
                _LOG.warning("Valkey is away: %s", error)
                time.sleep(poll_s)
                yield None


def _key(decision_point: str, ref: PolicyRef) -> str:
    pinned = "" if ref.pinned is None else f"@{ref.pinned}"
    return f"llmopt:snapshot:{decision_point}:{ref.variant}{pinned}"


def _plan_key(decision_point: str) -> str:
    return f"llmopt:plan:{decision_point}"
