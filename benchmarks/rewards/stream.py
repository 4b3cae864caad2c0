"""Decisions and their rewards through `serving.client`, as an application sends them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from serving.client import (
    AsyncOptimizer,
    Decision,
    Receipt,
    Refused,
    Request,
    Reward,
    ServiceUnavailable,
)

__all__ = ["Stream", "send"]

_TIMEOUT_S = 120.0
_TRY_S = 10.0
_RETRIES = 1000
_AGAIN = 0.1

Asked = TypeVar("Asked")
Told = TypeVar("Told")


@dataclass
class Stream:
    """What became of what was sent.

    Attributes
    ----------
    acknowledged
        Different rewards that the service says it has.
    repeats
        Receipts that said "duplicate": sent twice on purpose, or stored though no answer came.
    refused
        What the service called wrong: there must be none.
    given_up
        Calls that used up the client's patience, and were made again.
    retried
        Tries after the first, inside the client.
    fallbacks
        Decisions of the static rule.
    slowest_s
        The longest call.
    """

    acknowledged: int = 0
    repeats: int = 0
    given_up: int = 0
    retried: int = 0
    fallbacks: int = 0
    slowest_s: float = 0.0
    refused: list[str] = field(default_factory=list)


async def send(
    url: str,
    point: str,
    tasks: tuple[str, ...],
    total: int,
    stream: Stream,
    batch: int = 100,
    rate: float | None = None,
    at_once: int = 4,
    seed: int = 0,
) -> None:
    """Decide and reward until ``total`` rewards are acknowledged; a tenth is sent twice.

    Parameters
    ----------
    url
        Where replicas listen.
    point, tasks
        The decision point, and what its requests are about.
    stream
        Counts as it goes.
    batch
        Decisions in a call, and rewards.
    rate
        Rewards a second at most.
    at_once
        Calls under way.
    """
    rng = random.Random(seed)
    calls = iter(range(-(-total // batch)))
    began = time.monotonic()
    async with AsyncOptimizer(
        url, timeout_s=_TIMEOUT_S, try_timeout_s=_TRY_S, retries=_RETRIES, backoff_s=0.05
    ) as optimizer:

        async def work() -> None:
            for call in calls:
                if rate is not None:
                    await asyncio.sleep(began + call * batch / rate - time.monotonic())
                size = min(batch, total - call * batch)
                asked = [
                    Request(point, {"task": rng.choice(tasks), "input_tokens": rng.randint(9, 999)})
                    for _ in range(size)
                ]
                decided = await _answer(optimizer.decide_many, asked, stream)
                rewards = [_reward(rng, one, stream) for one in decided]
                known = await _answer(optimizer.reward_many, rewards, stream)
                stream.acknowledged += sum(_accepted(one, stream) for one in known)
                again = rewards[: int(_AGAIN * size)]
                if again:
                    for one in await _answer(optimizer.reward_many, again, stream):
                        _accepted(one, stream)

        await asyncio.gather(*[work() for _ in range(at_once)])
        stream.retried += optimizer.retried


async def _answer(
    call: Callable[[list[Asked]], Awaitable[list[Told]]], items: list[Asked], stream: Stream
) -> list[Told]:
    """Call until there is an answer, however long the service is away."""
    while True:
        began = time.monotonic()
        try:
            return await call(items)
        except ServiceUnavailable:
            stream.given_up += 1
        finally:
            stream.slowest_s = max(stream.slowest_s, time.monotonic() - began)


def _reward(rng: random.Random, decision: Decision | Refused, stream: Stream) -> Reward:
    if isinstance(decision, Refused):
        raise decision
    stream.fallbacks += decision.fallback
    quality, latency_s = rng.random(), rng.uniform(0.1, 2.0)
    return Reward(decision.decision_id, quality, rng.uniform(0.001, 0.01), latency_s)


def _accepted(receipt: Receipt | Refused, stream: Stream) -> bool:
    if isinstance(receipt, Refused):
        stream.refused.append(str(receipt))
        return False
    stream.repeats += receipt.duplicate
    return receipt.accepted
