r"""Which answers a semantic cache should keep, and for how long; learned online.

A request that is kept costs memory and may be served stale; it saves the price of every request
like it that comes within its lifetime. So the policy predicts one thing: the probability that
somebody asks alike within a lifetime. The lifetime is a feature of that model (River's logistic
regression), so that one model answers for all lifetimes on offer, and each request that was asked
again, or was not, teaches about all of them. With Poisson arrivals a probability :math:`p` of one
or more stands for :math:`-\log(1 - p)` of them, and the lifetime with the highest

.. math::

    -\log(1 - p) \, (\mathrm{saving} - \mathrm{stale} \, s(t / T)) - \mathrm{memory} \, t

is chosen. Here :math:`s(x) = 1 - (1 - e^{-x}) / x` is the chance that a hit at any time of it is
stale, and :math:`T` is what the caller tolerates of staleness: the mean time until an answer
is no longer right. If no lifetime is worth more than nothing, the answer is not kept.

The policy learns from all requests, kept or not, so that it never blinds itself. Vectors come from
the caller; nothing of a text but its length is seen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np
from river.linear_model import LogisticRegression
from river.optim import SGD

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.records import Vector

__all__ = ["LIFETIMES_S", "CacheDecision", "CachePolicy", "CachePrices", "CacheRequest"]

LIFETIMES_S = tuple(float(ttl_s) for ttl_s in np.geomspace(60, 172_800, 13).round())
"""On offer: from a minute to two days, each twice as long as the one before, about."""

_TAUGHT_S = LIFETIMES_S[::3]
"""Those that every request teaches about; the model is smooth between them."""

_VERSION = 1
_LEARNING_RATE = 0.05
_HALF_LIFE_S = 6 * 3600.0
_LARGEST_P = 0.99
_NEVER_S = 30 * 86400.0
_MOST_WAITING = 4096
"""Requests that wait for the end of a lifetime; more are not learned from, whatever becomes of
them."""


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """What is known of a request before it is answered.

    Attributes
    ----------
    vector
        Shape (d,): the prompt's embedding, not all 0.
    at
        Unix seconds, not decreasing from call to call.
    characters
        Length of the prompt.
    tolerance_s
        Mean time until its answer is no longer right, above 0: the caller's or the setting's.
    task
        As the caller tells it.
    """

    vector: Vector
    at: float
    characters: int
    tolerance_s: float
    task: str = ""

    def __post_init__(self) -> None:
        if not self.tolerance_s > 0:
            raise InvalidInput("tolerance_s", self.tolerance_s, "seconds, above 0")
        if not np.linalg.norm(self.vector) > 0:
            raise InvalidInput("vector", "zeros", "the embedding of a prompt that is not empty")


@dataclass(frozen=True, slots=True)
class CachePrices:
    """What a decision weighs.

    Attributes
    ----------
    saving_usd
        Of one hit: what the request would have cost.
    stale_usd
        Loss by one hit whose answer is no longer right, beside the saving.
    memory_usd_per_hour
        Of one answer kept: its bytes, or the worth of the place that another one would have.
    """

    saving_usd: float
    stale_usd: float
    memory_usd_per_hour: float

    def __post_init__(self) -> None:
        for name in ("saving_usd", "stale_usd", "memory_usd_per_hour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(name, getattr(self, name), "US dollars, 0 or more")


@dataclass(frozen=True, slots=True)
class CacheDecision:
    """What to do with an answer.

    Attributes
    ----------
    ttl_s
        Seconds to keep it; 0 if it should not be kept.
    asked_again
        Predicted probability that it is asked for within that time (of the longest, if not kept).
    worth_usd
        Expected, 0 if it should not be kept.
    """

    ttl_s: float
    asked_again: float
    worth_usd: float

    @property
    def store(self) -> bool:
        """Whether to keep it."""
        return self.ttl_s > 0


@dataclass(slots=True)
class _Asked:
    """A request that may be asked again."""

    at: float
    features: dict[str, float]
    again_at: float = math.inf


class CachePolicy:
    """Learns which requests come back, and decides what is kept.

    Parameters
    ----------
    dimensions
        Length of the vectors.
    prices
        May be replaced at any time; nothing has to be learned again.
    alike
        Cosine similarity from which two requests have the same answer, in (0, 1), as the cache's.
    remembered
        Requests that are remembered, 1 or more; beyond it the oldest is forgotten.

    Examples
    --------
    >>> policy = CachePolicy(2, CachePrices(0.01, 0.0, 0.0001))
    >>> often = np.array([1.0, 0.0])
    >>> for minute in range(300):
    ...     decision = policy.observe(CacheRequest(often, 60.0 * minute, 20, 86400.0))
    >>> decision.store, decision.asked_again > 0.9
    (True, True)
    """

    def __init__(
        self, dimensions: int, prices: CachePrices, *, alike: float = 0.9, remembered: int = 2048
    ) -> None:
        if not 0 < alike < 1:
            raise InvalidInput("alike", alike, "a cosine similarity in (0, 1)")
        if remembered < 1 or dimensions < 1:
            raise InvalidInput("remembered", remembered, "1 or more, as dimensions")
        self.prices = prices
        self._alike = alike
        self._model = LogisticRegression(
            SGD(_LEARNING_RATE), intercept_lr=_LEARNING_RATE, clip_gradient=10.0
        )
        self._vectors = np.zeros((remembered, dimensions), dtype=np.float32)
        self._asked_at = np.full(remembered, -np.inf)
        self._count = np.zeros(remembered)
        self._last: list[_Asked | None] = [None] * remembered
        self._waiting: tuple[deque[_Asked], ...] = tuple(deque() for _ in _TAUGHT_S)

    def observe(self, request: CacheRequest) -> CacheDecision:
        """Learn from a request, and decide what becomes of its answer.

        To be called once for every request, hit or miss; what it says of a hit can be used to
        prolong the answer's life.

        Raises
        ------
        InvalidInput
            If the vector has another length.
        """
        if request.vector.shape != self._vectors.shape[1:]:
            raise InvalidInput(
                "vector", request.vector.shape, f"a vector of {self._vectors.shape[1]} numbers"
            )
        unit = (request.vector / np.linalg.norm(request.vector)).astype(np.float32)
        self._learn(request.at)
        similarity = np.where(np.isfinite(self._asked_at), self._vectors @ unit, -1.0)
        place = int(similarity.argmax())
        nearest = float(similarity[place])
        count, gap_s = 0.0, _NEVER_S
        if nearest >= self._alike:
            gap_s = request.at - float(self._asked_at[place])
            count = float(self._count[place]) * 0.5 ** (gap_s / _HALF_LIFE_S)
            last = self._last[place]
            assert last is not None
            last.again_at = request.at
        else:
            place = int(self._asked_at.argmin())
            self._vectors[place] = unit
        features = _features(request, nearest, count, gap_s)
        self._asked_at[place], self._count[place] = request.at, count + 1.0
        self._last[place] = asked = _Asked(request.at, features)
        for waiting in self._waiting:
            if len(waiting) < _MOST_WAITING:
                waiting.append(asked)
        return self._decide(features, request.tolerance_s)

    def chance(self, features: dict[str, float], ttl_s: float) -> float:
        """Predicted probability that it is asked for again within a time."""
        found: dict[bool, float] = self._model.predict_proba_one(  # type: ignore[no-untyped-call]
            _within(features, ttl_s)
        )
        return float(found[True])

    def to_bytes(self) -> bytes:
        """All that was learned and is remembered."""
        kept = np.flatnonzero(np.isfinite(self._asked_at))
        held = [*(self._last[place] for place in kept), *(o for w in self._waiting for o in w)]
        distinct = {id(one): one for one in held if one is not None}
        number = {key: place for place, key in enumerate(distinct)}
        state = {
            "version": _VERSION,
            "alike": self._alike,
            "shape": self._vectors.shape,
            "prices": [getattr(self.prices, name) for name in CachePrices.__slots__],
            "weights": dict(sorted(self._model.weights.items())),
            "intercept": float(self._model.intercept),
            "places": kept.tolist(),
            "vectors": self._vectors[kept].tobytes(),
            "asked_at": self._asked_at[kept].tolist(),
            "count": self._count[kept].tolist(),
            "asked": [[one.at, one.features, one.again_at] for one in distinct.values()],
            "last": [number[id(self._last[place])] for place in kept],
            "waiting": [[number[id(one)] for one in waiting] for waiting in self._waiting],
        }
        return msgspec.msgpack.encode(state)

    @classmethod
    def from_bytes(cls, content: bytes) -> CachePolicy:
        """What `to_bytes` wrote; it goes on exactly as the other would have.

        Raises
        ------
        IncompatibleState
            If the bytes are of something else, or another version.
        """
        try:
            state = msgspec.msgpack.decode(content)
            if state["version"] != _VERSION:
                raise IncompatibleState(f"a cache policy of version {state['version']}")
            remembered, dimensions = state["shape"]
            made = cls(
                dimensions,
                CachePrices(*state["prices"]),
                alike=state["alike"],
                remembered=remembered,
            )
            made._model._weights.update(state["weights"])
            made._model.intercept = state["intercept"]
            places = np.array(state["places"], dtype=np.int64)
            vectors = np.frombuffer(state["vectors"], dtype=np.float32)
            made._vectors[places] = vectors.reshape(len(places), dimensions)
            made._asked_at[places] = state["asked_at"]
            made._count[places] = state["count"]
            asked = [_Asked(*one) for one in state["asked"]]
            for place, last in zip(state["places"], state["last"], strict=True):
                made._last[place] = asked[last]
            for queue, ones in zip(made._waiting, state["waiting"], strict=True):
                queue.extend(asked[one] for one in ones)
        except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
            raise IncompatibleState(f"no cache policy: {error}") from error
        return made

    def _decide(self, features: dict[str, float], tolerance_s: float) -> CacheDecision:
        best = CacheDecision(0.0, self.chance(features, LIFETIMES_S[-1]), 0.0)
        prices = self.prices
        for ttl_s in LIFETIMES_S:
            chance = self.chance(features, ttl_s)
            hits = -math.log1p(-min(chance, _LARGEST_P))
            ages = ttl_s / tolerance_s
            stale = 1.0 + math.expm1(-ages) / ages
            worth = hits * (prices.saving_usd - prices.stale_usd * stale)
            worth -= prices.memory_usd_per_hour * ttl_s / 3600
            if worth > best.worth_usd:
                best = CacheDecision(ttl_s, chance, worth)
        return best

    def _learn(self, now: float) -> None:
        """From requests whose lifetime is over.

        Not sooner, also where one was asked again at once: else early answers would all be yes.
        """
        for ttl_s, waiting in zip(_TAUGHT_S, self._waiting, strict=True):
            while waiting and waiting[0].at + ttl_s < now:
                one = waiting.popleft()
                self._model.learn_one(_within(one.features, ttl_s), one.again_at - one.at <= ttl_s)


def _features(
    request: CacheRequest, nearest: float, count: float, gap_s: float
) -> dict[str, float]:
    """About -1 to 1 each, since the model's steps are the same for all."""
    return {
        "similarity": nearest,
        "new": float(count == 0.0),
        "count": math.log2(1.0 + count) / 4,
        "gap": (math.log(max(gap_s, 1.0)) - 8.0) / 4,
        "length": (math.log(max(request.characters, 1)) - 4.0) / 2,
        "tolerance": (math.log(request.tolerance_s) - 9.0) / 4,
        f"task={request.task}": 1.0,
    }


def _within(features: dict[str, float], ttl_s: float) -> dict[str, float]:
    """With the lifetime, and how it compares with the time since the last one alike."""
    lifetime = (math.log(ttl_s) - 8.0) / 4
    return {
        **features,
        "lifetime": lifetime,
        "lifetime, known": lifetime * (1.0 - features["new"]),
        "lifetime to gap": lifetime - features["gap"],
        "count, lifetime": features["count"] * lifetime,
    }
