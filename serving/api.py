"""The HTTP contract as one ASGI application: a table of routes, served at both doors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from optimizer.errors import InvalidInput, LlmoptError, TooLarge, Unavailable
from serving.cloud_events import BATCHED, STRUCTURED, reward_schema
from serving.decider import Decider, unknown_point
from serving.experiment_routes import ExperimentRoutes
from serving.fast_lane import SINGLE_LIMIT
from serving.ledger import RewardEvent
from serving.micro_batch import MicroBatch
from serving.openapi import document, page
from serving.problems import problem, shorten
from serving.replica_state import ReplicaState
from serving.responses import PROBLEM, Response, refused
from serving.reward_events import RewardReader
from serving.schema import RewardResponse, read_events, read_items, read_reward, read_rewards

__all__ = ["Api"]

_LOG = logging.getLogger(__name__)
_BATCH_LIMIT = 8 << 20
_AT_ONCE = 64
"""Rewards of a batch that are read before decisions get their turn: half a millisecond's work."""
_REWARDS, _REWARDS_BATCH = "/v1/rewards", "/v1/rewards/batch"
_FEATURES = "/v1/features/{entity}"
"""The only path whose argument may have slashes: an entity has one, and so have names of models."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


Handler = Callable[[bytes, str], Awaitable[Response]]

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: str
    handler: Handler
    limit: int = 0
    content_type: bytes = b""


class Api:
    """Routes, bodies, errors.

    Parameters
    ----------
    state
        Everything a replica holds.
    """

    def __init__(self, state: ReplicaState) -> None:
        self._state = state
        points = {name: live.point for name, live in state.points.items()}
        self._rewards = RewardReader(points, state.signer, state.settings.retention.ledger_days)
        self._decider = Decider(state.points, state.metrics)
        self.batch = MicroBatch(self._decider, state.settings.serving.queue, state.metrics)
        self.requests = state.metrics.requests
        experiments = ExperimentRoutes(state.settings)
        routes = (
            _Route("POST", "/v1/decisions", self._decide, SINGLE_LIMIT),
            _Route("POST", _REWARDS, self._reward, SINGLE_LIMIT),
            _Route("POST", "/v1/decisions/batch", self._decide_batch, _BATCH_LIMIT),
            _Route("POST", _REWARDS_BATCH, self._reward_batch, _BATCH_LIMIT),
            _Route("GET", "/v1/schemas/reward.json", self._reward_schema),
            _Route("GET", "/v1/decision-points", self._points),
            _Route("GET", "/v1/decision-points/{name}", self._point),
            _Route("GET", "/v1/features", self._features_health),
            _Route("GET", _FEATURES, self._features),
            _Route("POST", "/v1/quality", state.quality_routes.predict, SINGLE_LIMIT),
            _Route("GET", "/v1/experiments", experiments.list),
            _Route("POST", "/v1/experiments", experiments.create, SINGLE_LIMIT),
            _Route("GET", "/v1/experiments/{id}", experiments.report),
            _Route("POST", "/v1/experiments/{id}/start", experiments.start, SINGLE_LIMIT),
            _Route("POST", "/v1/experiments/{id}/pause", experiments.pause, SINGLE_LIMIT),
            _Route("POST", "/v1/experiments/{id}/stop", experiments.stop, SINGLE_LIMIT),
            _Route("POST", "/v1/experiments/{id}/archive", experiments.archive, SINGLE_LIMIT),
            _Route("GET", "/healthz", self._healthz),
            _Route("GET", "/readyz", self._readyz),
            _Route("GET", "/metrics", self._metrics),
            _Route("GET", "/openapi.json", self._openapi),
            _Route("GET", "/docs", self._docs),
        )
        self.routes = {(route.method, route.path): route for route in routes}
        self._paths = {route.path for route in routes}
        cloud_events = (
            _Route("POST", _REWARDS, self._cloud_event, SINGLE_LIMIT, STRUCTURED),
            _Route("POST", _REWARDS, self._cloud_events, _BATCH_LIMIT, BATCHED),
        )
        self._cloud_events_by_type = {route.content_type: route for route in cloud_events}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await _lifespan(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        route = self.routes.get((method, path))
        argument = ""
        if route is None:
            route, argument = self._cold_route(method, path)
        elif path == "/v1/rewards":
            route = self._cloud_events_by_type.get(_content_type(scope), route)
        name = path if route is None else route.path
        try:
            if route is None:
                response = self._no_route(method, path)
            else:
                response = await route.handler(await _body(receive, route.limit), argument)
        except LlmoptError as error:
            if isinstance(error, TooLarge) and name in (_REWARDS, _REWARDS_BATCH):
                self._state.dead_letters.add(error, b"", name)
            response = refused(error)
        except Exception:
            _LOG.exception("%s %s failed", method, path)
            response = refused(LlmoptError("an internal error; the replica's log says more"))
        self.requests[name if route else "(unknown)", response.status] += 1
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    (b"content-type", response.content_type),
                    (b"content-length", b"%d" % len(response.body)),
                    *response.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": response.body})

    def _cold_route(self, method: str, path: str) -> tuple[_Route | None, str]:
        for template in self._paths:
            argument = _argument(template, path)
            if argument and (route := self.routes.get((method, template))) is not None:
                return route, argument
        return None, ""

    def _no_route(self, method: str, path: str) -> Response:
        allowed = [
            route.method
            for route in self.routes.values()
            if route.path == path or _argument(route.path, path)
        ]
        status, title = (405, "Method not allowed") if allowed else (404, "Not found")
        detail = (
            f"{method} is not for {path}; use {', '.join(allowed)}"
            if allowed
            else f"no such path; see /docs for those there are: {', '.join(sorted(self._paths))}"
        )
        content = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": detail,
            "field": "method" if allowed else "path",
            "value": method if allowed else shorten(path),
        }
        return Response(status, msgspec.json.encode(content), PROBLEM)

    async def _decide(self, body: bytes, argument: str) -> Response:
        return await self.batch.decide(body)

    async def _decide_batch(self, body: bytes, argument: str) -> Response:
        return self._decider.answer_batch(body)

    async def _reward(self, body: bytes, argument: str) -> Response:
        return await self._store_one(body, lambda: self._rewards.event(read_reward(body)))

    async def _cloud_event(self, body: bytes, argument: str) -> Response:
        return await self._store_one(body, lambda: self._rewards.cloud_event(body))

    async def _store_one(self, body: bytes, read: Callable[[], RewardEvent]) -> Response:
        try:
            event = read()
        except InvalidInput as error:
            self._state.dead_letters.add(error, body)
            raise
        (duplicate,) = await self._state.rewards.store([event])
        return Response(202, msgspec.json.encode(RewardResponse(True, duplicate)))

    async def _reward_batch(self, body: bytes, argument: str) -> Response:
        items = self._items(read_rewards, body)
        return await self._store_many(items, self._rewards.event, lambda: read_items(body))

    async def _cloud_events(self, body: bytes, argument: str) -> Response:
        items = self._items(read_events, body)
        return await self._store_many(items, self._rewards.cloud_event, lambda: items)

    def _items(self, read: Callable[[bytes], list[_Item]], body: bytes) -> list[_Item]:
        try:
            return read(body)
        except InvalidInput as error:
            self._state.dead_letters.add(error, body, _REWARDS_BATCH)
            raise

    async def _store_many(
        self,
        items: Sequence[Any],
        read: Callable[[Any], RewardEvent],
        bodies: Callable[[], list[bytes]],
    ) -> Response:
        """Store what can be read; the others' refusals stand in their places."""
        answers: list[Any] = []
        events: list[RewardEvent] = []
        places: list[int] = []
        refused_items: dict[int, InvalidInput] = {}
        for place, item in enumerate(items):
            if place % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # decisions that came meanwhile
            try:
                if isinstance(item, InvalidInput):
                    raise item
                events.append(read(item))
                places.append(place)
                answers.append(None)
            except InvalidInput as error:
                refused_items[place] = error
                answers.append(problem(error)[1])
            except LlmoptError as error:
                answers.append(problem(error)[1])
        if refused_items:
            raw = bodies()
            for place, refusal in refused_items.items():
                self._state.dead_letters.add(refusal, raw[place])
        if events:
            duplicates = await self._state.rewards.store(events)
            for place, duplicate in zip(places, duplicates, strict=True):
                answers[place] = RewardResponse(True, duplicate)
        return Response(202, msgspec.json.encode({"items": answers}))

    async def _reward_schema(self, body: bytes, argument: str) -> Response:
        return Response(200, msgspec.json.encode(reward_schema()), b"application/schema+json")

    async def _points(self, body: bytes, argument: str) -> Response:
        points = [self._state.summary(name) for name in self._state.points]
        return Response(200, msgspec.json.encode({"decision_points": points}))

    async def _point(self, body: bytes, argument: str) -> Response:
        if argument not in self._state.points:
            raise unknown_point(argument, self._state.points)
        details = await asyncio.to_thread(self._state.details, argument)
        return Response(200, msgspec.json.encode(details))

    async def _features(self, body: bytes, argument: str) -> Response:
        return Response(200, msgspec.json.encode(self._state.features.entity(argument)))

    async def _features_health(self, body: bytes, argument: str) -> Response:
        return Response(200, msgspec.json.encode(self._state.feature_health.response()))

    async def _healthz(self, body: bytes, argument: str) -> Response:
        return Response(200, b'{"status":"alive"}')

    async def _readyz(self, body: bytes, argument: str) -> Response:
        waiting = self._state.waiting_for()
        if waiting:
            raise Unavailable(f"the first snapshot of {', '.join(waiting)}")
        return Response(200, b'{"status":"ready"}')

    async def _metrics(self, body: bytes, argument: str) -> Response:
        return Response(200, self._state.metrics.render(), b"text/plain; version=0.0.4")

    async def _openapi(self, body: bytes, argument: str) -> Response:
        return Response(200, msgspec.json.encode(document()))

    async def _docs(self, body: bytes, argument: str) -> Response:
        return Response(200, page().encode(), b"text/html; charset=utf-8")


def _argument(template: str, path: str) -> str:
    """What stands in a path in the place of the braces of its template; "" if it is another's."""
    head, _, rest = template.partition("{")
    tail = rest.partition("}")[2]
    if not rest or not path.startswith(head) or not path.endswith(tail):
        return ""
    argument = path[len(head) : len(path) - len(tail)]
    return "" if "/" in argument and template != _FEATURES else argument


def _content_type(scope: Scope) -> bytes:
    """The media type of a request's body, without its parameters, in lower case."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type: bytes = value.partition(b";")[0].strip().lower()
            return media_type
    return b""


async def _body(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and len(body) <= limit:
        return body
    chunks = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
    if size > limit:
        raise TooLarge("body", f"{size} bytes", f"at most {limit} bytes")
    return b"".join(chunks)


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        return
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
