"""Requests that are ready in the same turn of the event loop are decided together.

Nobody waits for others: what has arrived when the loop comes round is one batch, at low load of
one. The more is to do, the larger batches are, and the less a decision costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from optimizer.errors import Unavailable
from serving.decider import Decider
from serving.metrics import ReplicaMetrics
from serving.responses import Response, refused

__all__ = ["MicroBatch"]

Reply = Callable[[Response], None]


class MicroBatch:
    """Collects requests, and answers them at the end of the turn.

    Parameters
    ----------
    decider
        Decides.
    longest
        So many may wait; beyond that the answer is 503 at once, never a slow death.
    metrics
        Counts those, and how many waited.
    """

    def __init__(self, decider: Decider, longest: int, metrics: ReplicaMetrics) -> None:
        self._decider = decider
        self._longest = longest
        self._metrics = metrics
        self._bodies: list[bytes] = []
        self._replies: list[Reply] = []

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._bodies)

    def submit(self, body: bytes, reply: Reply) -> None:
        """Decide ``body`` at the end of this turn, then call ``reply``; in a running loop only."""
        waiting = len(self._bodies)
        if waiting >= self._longest:
            self._metrics.turned_away += 1
            reply(refused(Unavailable("a free place in the queue of decisions")))
            return
        if not waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._bodies.append(body)
        self._replies.append(reply)

    async def decide(self, body: bytes) -> Response:
        """`submit`, and wait for the answer."""
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def reply(response: Response) -> None:
            if not answer.done():  # the caller may have gone
                answer.set_result(response)

        self.submit(body, reply)
        return await answer

    def _answer(self) -> None:
        bodies, replies = self._bodies, self._replies
        self._bodies, self._replies = [], []
        if len(bodies) > self._metrics.longest_queue:
            self._metrics.longest_queue = len(bodies)
        for reply, response in zip(replies, self._decider.answer(bodies), strict=True):
            reply(response)
