"""The client that applications import: ``from serving.client import Optimizer``.

`Optimizer` is for threads, `AsyncOptimizer` for an event loop. They are two classes with the same
methods, as in httpx: one class for both would double its methods, or return what may have to be
awaited, and no type checker could tell a forgotten ``await``. Only the I/O is their own, the rest
is in `serving.client_calls`. Importing this costs httpx and msgspec: neither Ray nor numpy.

Examples
--------
No service listens here, so the client's static rule decides, and there is nothing to learn from:

>>> with Optimizer("http://127.0.0.1:9", static="small", retries=0) as optimizer:
...     decision = optimizer.decide("chat", {"prompt": "What is 17 times 23?"})
...     receipt = optimizer.reward(decision.decision_id, quality=0.9, cost_usd=0.0004)
>>> decision.model, decision.fallback, receipt.accepted
('small', True, False)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import httpx

from serving.client_calls import Answer, Call, Client, Context, Send
from serving.client_patience import Breaker
from serving.client_records import (
    Decision,
    Receipt,
    Refused,
    Request,
    Reward,
    ServiceUnavailable,
    StaticChoice,
)

__all__ = [
    "AsyncOptimizer",
    "Breaker",
    "Decision",
    "Optimizer",
    "Receipt",
    "Refused",
    "Request",
    "Reward",
    "ServiceUnavailable",
    "StaticChoice",
]

T = TypeVar("T")


class Optimizer(Client):
    """Asks the service which model to use, and tells it how that went; threads may share one.

    Connections are kept and used again. What may be over in a moment (no connection or a lost one,
    a time-out, status 408, 429, 502, 503 or 504) is tried again, on another connection if need be:
    a decision that nobody uses costs a line in a log, and the service knows a reward that it
    has already stored. While the service stays away ``static`` decides, and but for one probe now
    and then callers don't wait for it, see `Breaker`.

    Parameters
    ----------
    url
        Where the service listens. Proxies in the environment are not used.
    static
        What decides while the service is away: a model, a `StaticChoice`, or one of them for each
        decision point. If its model is not among the candidates of a call, the first of these is
        used. Where there is no rule a call raises instead, and the breaker doesn't cut it short.
    timeout_s
        Seconds that a call may take with all its tries, above 0. The waits of a try (to connect,
        for each part of the answer) are limited one by one, so slow ones can add up to more.
    try_timeout_s
        Seconds for each wait of one try, above 0. Large batches may need more.
    retries
        Tries after the first, 0 or more.
    backoff_s
        The longest pause before the first of them in seconds; it doubles with each, up to 2 s, and
        a uniformly random part of it is waited, on top of the service's ``Retry-After``. A pause
        that would end after ``timeout_s`` ends the call at once.
    breaker
        With other times than the usual, or shared by several clients.

    Raises
    ------
    InvalidInput
        If a value is out of its range.
    """

    # A full pool of httpcore 1.0 may close a connection that a thread is using, whose call then
    # hangs (encode/httpcore#1110). So none is ever full: threads that call bound the number.
    _most_connections = None

    def _open(self, **options: Any) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def decide(
        self,
        decision_point: str,
        context: Context,
        unit_id: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> Decision:
        """Which model to use for a request.

        Parameters
        ----------
        decision_point
            A name from the service's settings.
        context
            What is known of the request: ``prompt``, ``task``, ``input_tokens``,
            ``expected_output_tokens``, ``priority``, and up to 50 further texts and numbers.
        unit_id
            User, session or request; requests of one unit stay in one variant of an experiment.
        candidates
            The models that may be used; all of the decision point's if None.

        Raises
        ------
        Refused
            If the service refuses a value.
        ServiceUnavailable
            If the service is away and the decision point has no static rule.
        """
        request = Request(decision_point, context, unit_id, candidates)
        return self._run(self._call_decide(request))

    def decide_many(self, requests: Sequence[Request]) -> list[Decision | Refused]:
        """Up to 1,000 decisions with one request, in order; what is refused stands in its place.

        Raises
        ------
        Refused
            If the batch as a whole is refused.
        ServiceUnavailable
            If the service is away and one of the decision points has no static rule.
        """
        return self._run(self._call_decide_many(requests))

    def reward(
        self,
        decision_id: str,
        *,
        quality: float | None = None,
        cost_usd: float | None = None,
        latency_s: float | None = None,
        feedback: float | None = None,
        event_id: str | None = None,
        retract: bool = False,
        kind: str | None = None,
        value: float | bool | str | None = None,
        occurred_at: datetime | None = None,
    ) -> Receipt:
        """Tell how a decision went, at once or in parts, early or late.

        It returns when the service has stored it. For a decision of the client's static rule
        nothing is sent, and the receipt says that it was not accepted.

        Parameters
        ----------
        decision_id
            From the decision.
        quality, feedback
            In [0, 1].
        cost_usd, latency_s
            US dollars and seconds, 0 or more.
        event_id
            Names this event among those of the decision, so that it can be corrected or retracted.
            The same event sent again changes nothing, or corrects its values.
        retract
            Take the event back; no values then.
        kind, value
            One signal in place of the four values, as in ``kind="stars", value=4``. The kinds are
            those of `optimizer.signals`, and those that the decision point's settings declare.
        occurred_at
            When it happened, with a time zone. Of events with the same id and kind the latest
            holds; without times the one that came last.

        Raises
        ------
        Refused
            If the service refuses a value.
        ServiceUnavailable
            If the service or its ledger is away; sending the same again later does no harm.
        """
        return self._run(
            self._call_reward(
                Reward(
                    decision_id,
                    quality,
                    cost_usd,
                    latency_s,
                    feedback,
                    event_id,
                    retract,
                    kind,
                    value,
                    occurred_at,
                )
            )
        )

    def reward_many(self, rewards: Sequence[Reward]) -> list[Receipt | Refused]:
        """Up to 1,000 rewards with one request, in order; raises as `decide_many` does."""
        return self._run(self._call_reward_many(rewards))

    def decision_points(self) -> list[dict[str, Any]]:
        """A summary of each decision point: ``name``, ``models``, ``policy_version`` and more."""
        return self._run(self._call_points())

    def decision_point(self, name: str) -> dict[str, Any]:
        """What a decision point has learned, and how much of what it was told."""
        return self._run(self._call_point(name))

    def _run(self, call: Call[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = call.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Send):
                try:
                    answer = self._http.request(**step._asdict())
                except httpx.RequestError as error:
                    answer = error
            else:
                time.sleep(step)


class AsyncOptimizer(Client):
    """`Optimizer` for one event loop: the same parameters, methods and errors, awaited.

    Any number of tasks may share one; it has at most 100 connections.
    """

    _most_connections = 100

    def _open(self, **options: Any) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def decide(
        self,
        decision_point: str,
        context: Context,
        unit_id: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> Decision:
        """See `Optimizer.decide`."""
        request = Request(decision_point, context, unit_id, candidates)
        return await self._run(self._call_decide(request))

    async def decide_many(self, requests: Sequence[Request]) -> list[Decision | Refused]:
        """See `Optimizer.decide_many`."""
        return await self._run(self._call_decide_many(requests))

    async def reward(
        self,
        decision_id: str,
        *,
        quality: float | None = None,
        cost_usd: float | None = None,
        latency_s: float | None = None,
        feedback: float | None = None,
        event_id: str | None = None,
        retract: bool = False,
        kind: str | None = None,
        value: float | bool | str | None = None,
        occurred_at: datetime | None = None,
    ) -> Receipt:
        """See `Optimizer.reward`."""
        return await self._run(
            self._call_reward(
                Reward(
                    decision_id,
                    quality,
                    cost_usd,
                    latency_s,
                    feedback,
                    event_id,
                    retract,
                    kind,
                    value,
                    occurred_at,
                )
            )
        )

    async def reward_many(self, rewards: Sequence[Reward]) -> list[Receipt | Refused]:
        """See `Optimizer.reward_many`."""
        return await self._run(self._call_reward_many(rewards))

    async def decision_points(self) -> list[dict[str, Any]]:
        """See `Optimizer.decision_points`."""
        return await self._run(self._call_points())

    async def decision_point(self, name: str) -> dict[str, Any]:
        """See `Optimizer.decision_point`."""
        return await self._run(self._call_point(name))

    async def _run(self, call: Call[T]) -> T:
        answer: Answer = None
        while True:
            try:
                step = call.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Send):
                try:
                    answer = await self._http.request(**step._asdict())
                except httpx.RequestError as error:
                    answer = error
            else:
                await asyncio.sleep(step)
