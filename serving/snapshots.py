"""Policy snapshots on their way from the learner to every replica, through Valkey.

The newest snapshot of a decision point is a key, so that a replica that starts finds it; a message
on a channel tells running replicas that it changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import redis

from optimizer.errors import Unavailable

__all__ = ["Snapshot", "SnapshotStore"]

_LOG = logging.getLogger(__name__)
_CHANNEL = "llmopt:snapshots"


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
    """

    decision_point: str
    lineage: str
    position: int
    state: bytes
    learner_pid: int
    published_at: float


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
        try:
            pipe = self._client.pipeline(transaction=True)
            pipe.set(_key(snapshot.decision_point), msgspec.msgpack.encode(snapshot))
            pipe.publish(_CHANNEL, snapshot.decision_point)
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error

    def newest(self, decision_point: str) -> Snapshot | None:
        """The newest snapshot, or None if there is none yet.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        try:
            data = self._client.get(_key(decision_point))
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error
        return None if data is None else msgspec.msgpack.decode(data, type=Snapshot)

    def changes(self, poll_s: float) -> Iterator[str | None]:
        """Names of decision points as their snapshots change; None after ``poll_s`` without one.

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


def _key(decision_point: str) -> str:
    return f"llmopt:snapshot:{decision_point}"
