"""The calls of `serving.client` without their I/O.

A call is a generator. It yields what is to be sent, or how many seconds to wait, takes the answer
(or the error that came instead), and returns the result. So what is retried, how long to wait and
when the static rule decides is written once, for threads and for event loops.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Raw, Struct

from optimizer.errors import InvalidInput
from serving.client_patience import Breaker, Patience
from serving.client_records import (
    Decision,
    Receipt,
    Refused,
    Request,
    Reward,
    ServiceUnavailable,
    StaticChoice,
)

__all__ = ["Answer", "Call", "Client", "Context", "Send"]

DEFAULT_URL = "http://127.0.0.1:8001"

_LOG = logging.getLogger("serving.client")
_BUSY = frozenset((408, 429, 502, 503, 504))
_SHORTEST_TRY_S = 0.001
_SHOWN_CHARACTERS = 200
_LONGEST_NUMBER = 8
_KEEP_S = 30.0  # an idle connection is kept for less than the service's 75 s
_HEADERS = {"content-type": "application/json"}
_NOT_SENT = Receipt(accepted=False, duplicate=False)

T = TypeVar("T")


class Send(NamedTuple):
    """A request to be sent: the arguments of httpx, the time-out in seconds for each wait."""

    method: str
    url: str
    content: bytes | None
    timeout: float


Answer: TypeAlias = httpx.Response | httpx.RequestError | None
Call: TypeAlias = Generator[Send | float, Answer, T]
Context: TypeAlias = Mapping[str, str | float | bool | None]
Static: TypeAlias = str | StaticChoice | Mapping[str, str | StaticChoice] | None


class Client:
    """What both clients are made of; the parameters are those of `serving.client.Optimizer`."""

    _most_connections: int | None = None

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        static: Static = None,
        timeout_s: float = 2.0,
        try_timeout_s: float = 1.0,
        retries: int = 2,
        backoff_s: float = 0.05,
        breaker: Breaker | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput("url", url, f"as in {DEFAULT_URL}")
        self._url = url.rstrip("/")
        self._patience = Patience(timeout_s, try_timeout_s, retries, backoff_s)
        self._breaker = breaker or Breaker()
        self._lock = threading.Lock()
        self._retried = 0
        self._rules: dict[str, StaticChoice] = {}
        self._any_point: StaticChoice | None = None
        if isinstance(static, Mapping):
            self._rules = {point: _choice(rule) for point, rule in static.items()}
        elif static is not None:
            self._any_point = _choice(static)
        limits = httpx.Limits(
            max_connections=self._most_connections,
            max_keepalive_connections=self._most_connections,
            keepalive_expiry=_KEEP_S,
        )
        self._open(base_url=url, headers=_HEADERS, limits=limits, trust_env=False)

    def _open(self, **options: Any) -> None:
        """Make the HTTP client with these options."""
        raise NotImplementedError

    @property
    def retried(self) -> int:
        """How many tries followed a failed one, over all calls."""
        return self._retried

    def _call_decide(self, request: Request) -> Call[Decision]:
        """One decision."""
        read = partial(self._read, kind=Decision)
        static = self._static(request)
        return (yield from self._decided("/v1/decisions", _fields(request), read, static))

    def _call_decide_many(self, requests: Sequence[Request]) -> Call[list[Decision | Refused]]:
        """Many decisions with one request; no request if there are none to make."""
        if not requests:
            return []
        read = partial(self._read_items, kind=Decision, count=len(requests))
        static: list[Decision | Refused] = [
            choice for request in requests if (choice := self._static(request)) is not None
        ]
        body = {"items": [_fields(request) for request in requests]}
        whole = static if len(static) == len(requests) else None
        return (yield from self._decided("/v1/decisions/batch", body, read, whole))

    def _call_reward(self, reward: Reward) -> Call[Receipt]:
        """One reward."""
        if not reward.decision_id:
            return _NOT_SENT
        tries = self._patience.retries + 1
        response = yield from self._exchange("POST", "/v1/rewards", _fields(reward), tries)
        return self._read(response, Receipt)

    def _call_reward_many(self, rewards: Sequence[Reward]) -> Call[list[Receipt | Refused]]:
        """Many rewards with one request, without those of the client's static rule."""
        items = [_fields(reward) for reward in rewards if reward.decision_id]
        if not items:
            return [_NOT_SENT for _ in rewards]
        tries = self._patience.retries + 1
        response = yield from self._exchange("POST", "/v1/rewards/batch", {"items": items}, tries)
        receipts = iter(self._read_items(response, Receipt, len(items)))
        return [next(receipts) if reward.decision_id else _NOT_SENT for reward in rewards]

    def _call_points(self) -> Call[list[dict[str, Any]]]:
        """A summary of each decision point."""
        response = yield from self._exchange(
            "GET", "/v1/decision-points", None, self._patience.retries + 1
        )
        return self._read(response, _Points).decision_points

    def _call_point(self, name: str) -> Call[dict[str, Any]]:
        """All about one decision point."""
        path = f"/v1/decision-points/{quote(name, safe='')}"
        response = yield from self._exchange("GET", path, None, self._patience.retries + 1)
        return self._read(response, dict[str, Any])

    def _decided(
        self, path: str, body: object, read: Callable[[httpx.Response], T], static: T | None
    ) -> Call[T]:
        """What the service decides, or ``static`` while it is away."""
        tries = self._patience.retries + 1
        if static is not None:
            tries = self._breaker.tries(tries)
            if not tries:
                return static
        answered = False
        try:
            response = yield from self._exchange("POST", path, body, tries)
            answered = True
            self._breaker.answered()
            return read(response)
        except ServiceUnavailable as error:
            if static is None:
                raise
            if answered or self._breaker.failed():
                _LOG.warning("the static rule decides: %s", error)
            return static

    def _exchange(self, method: str, path: str, body: object, tries: int) -> Call[httpx.Response]:
        """Send until there is an answer, or no try or no time is left."""
        patience = self._patience
        # json, since msgspec writes NaN as null: the service is to refuse it by its name.
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        began_s, failed = time.monotonic(), 0
        while True:
            left_s = patience.timeout_s - (time.monotonic() - began_s)
            longest_s = max(min(left_s, patience.try_timeout_s), _SHORTEST_TRY_S)
            answer = yield Send(method, path, content, longest_s)
            if isinstance(answer, httpx.Response) and answer.status_code not in _BUSY:
                return answer
            failed += 1
            retry_after_s = _retry_after_s(answer)
            pause_s = patience.pause_s(failed - 1, retry_after_s, random.random())
            spent_s = time.monotonic() - began_s
            if failed >= tries or spent_s + pause_s >= patience.timeout_s:
                tried = f"{failed} of {tries} tries in {spent_s:.2f} s, last {_shown(answer)}"
                cause = answer if isinstance(answer, httpx.RequestError) else None
                raise ServiceUnavailable(
                    f"{self._url}{path}", tried, max(1, round(retry_after_s))
                ) from cause
            with self._lock:
                self._retried += 1
            yield pause_s

    def _static(self, request: Request) -> Decision | None:
        """What the client's own rule decides; like the service's it keeps to the candidates."""
        choice = self._rules.get(request.decision_point, self._any_point)
        if choice is None:
            return None
        if request.candidates and choice.model not in request.candidates:
            choice = StaticChoice(request.candidates[0])
        return Decision(
            "",
            request.decision_point,
            choice.model,
            dict(choice.parameters),
            choice.prompt_variant,
            1.0,
            0,
            True,
        )

    def _read(self, response: httpx.Response, kind: type[T]) -> T:
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=kind)
            except msgspec.MsgspecError:
                pass
        elif response.is_client_error:
            raise Refused.read(response.content, response.status_code)
        raise ServiceUnavailable(str(response.url), f"unusable, {_shown(response)}")

    def _read_items(self, response: httpx.Response, kind: type[T], count: int) -> list[T | Refused]:
        items = self._read(response, _Items).items
        if len(items) != count:
            raise ServiceUnavailable(str(response.url), f"{len(items)} answers to {count} items")
        return [_read_item(item, kind) for item in items]


class _Items(Struct, frozen=True):
    items: list[Raw]


class _Points(Struct, frozen=True):
    decision_points: list[dict[str, Any]]


def _read_item(item: Raw, kind: type[T]) -> T | Refused:
    try:
        return msgspec.json.decode(item, type=kind)
    except msgspec.ValidationError:
        return Refused.read(item)


def _choice(rule: str | StaticChoice) -> StaticChoice:
    return StaticChoice(rule) if isinstance(rule, str) else rule


def _fields(item: Request | Reward) -> dict[str, Any]:
    """The body of an item, without what says nothing."""
    known = {name: getattr(item, name) for name in item.__struct_fields__}
    if isinstance(item, Request):
        known["context"] = dict(item.context)
        known["candidates"] = None if item.candidates is None else list(item.candidates)
    else:
        known["retract"] = item.retract or None
        known["occurred_at"] = item.occurred_at and item.occurred_at.isoformat()
    return {name: value for name, value in known.items() if value is not None}


def _retry_after_s(answer: Answer) -> float:
    """What the service asked for, in seconds; a date counts as nothing said."""
    said = answer.headers.get("retry-after", "") if isinstance(answer, httpx.Response) else ""
    return float(said) if said.isdecimal() and len(said) < _LONGEST_NUMBER else 0.0


def _shown(answer: Answer) -> str:
    if isinstance(answer, httpx.Response):
        return f"status {answer.status_code}: {answer.text[:_SHOWN_CHARACTERS]}"
    return f"{type(answer).__name__}: {answer}"
