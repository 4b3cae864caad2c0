"""Quality models on their way to replicas and to the learner, through Valkey, beside snapshots.

The training flow puts the champion there after each run. Whoever uses it looks now and then, in a
thread of its own; MLflow is not asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import redis

from optimizer.errors import IncompatibleState, Unavailable
from optimizer.quality_model import QualityModel

__all__ = ["PublishedQuality", "QualityBoard", "QualityFollower", "ServedQuality"]

_LOG = logging.getLogger(__name__)
_EVERY_S = 5.0


class PublishedQuality(msgspec.Struct, frozen=True):
    """A quality model of a decision point.

    Attributes
    ----------
    version
        Its number in the registry.
    trained_at
        Unix time in seconds.
    state
        What `QualityModel.to_bytes` gave.
    """

    version: int
    trained_at: float
    state: bytes


class ServedQuality(NamedTuple):
    """A quality model in memory."""

    version: int
    trained_at: float
    model: QualityModel


class QualityBoard:
    """Where the newest quality model of each decision point is.

    Parameters
    ----------
    address
        URL of Valkey or Redis.
    """

    def __init__(self, address: str) -> None:
        self._client: Any = redis.Redis.from_url(
            address, socket_timeout=2.0, socket_connect_timeout=2.0, health_check_interval=5
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def publish(self, decision_point: str, published: PublishedQuality) -> None:
        """Make this the decision point's model.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        try:
            pipe = self._client.pipeline(transaction=True)
            pipe.set(_key(decision_point), msgspec.msgpack.encode(published))
            pipe.set(_version_key(decision_point), _mark(published))
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error

    def newer(self, decision_point: str, known: str) -> PublishedQuality | None:
        """The model there is, None if there is none or ``known`` names it: version and time.

        Raises
        ------
        Unavailable
            If Valkey is away.
        """
        try:
            mark: bytes | None = self._client.get(_version_key(decision_point))
            if mark is None or mark.decode() == known:
                return None
            data: bytes | None = self._client.get(_key(decision_point))
        except (redis.RedisError, OSError) as error:
            raise Unavailable("Valkey") from error
        return None if data is None else msgspec.msgpack.decode(data, type=PublishedQuality)


class QualityFollower:
    """Keeps the newest quality models in memory.

    Parameters
    ----------
    address
        URL of Valkey or Redis.
    names
        Decision points.

    Attributes
    ----------
    served
        By decision point, without those that have none yet; models are replaced as a whole.
    """

    def __init__(self, address: str, names: Iterable[str]) -> None:
        self.served: dict[str, ServedQuality] = {}
        self._names = tuple(names)
        self._board = QualityBoard(address)
        self._marks = dict.fromkeys(self._names, "")
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._follow, name="follow_quality", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._board.close()

    def look(self) -> None:
        """Take what is new."""
        for name in self._names:
            try:
                found = self._board.newer(name, self._marks[name])
            except Unavailable as error:
                if not self._away:
                    _LOG.warning("quality models stay as they are: %s", error)
                self._away = True
                return
            self._away = False
            if found is None:
                continue
            self._marks[name] = _mark(found)  # also of one that is refused: once is enough
            try:
                model = QualityModel.from_bytes(found.state)
            except IncompatibleState as error:
                _LOG.error("%s: quality model %d is refused: %s", name, found.version, error)
                continue
            self.served[name] = ServedQuality(found.version, found.trained_at, model)

    def _follow(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                _LOG.exception("quality models could not be read")
            if self._stop.wait(_EVERY_S):
                return


def _mark(published: PublishedQuality) -> str:
    return f"{published.version} {published.trained_at}"


def _key(decision_point: str) -> str:
    return f"llmopt:quality:{decision_point}"


def _version_key(decision_point: str) -> str:
    return f"llmopt:quality-version:{decision_point}"
