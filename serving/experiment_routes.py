"""`/v1/experiments`: experiments over HTTP, for programs and for `llmopt experiments`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import psycopg
from msgspec import Struct

from optimizer.errors import Unavailable
from optimizer.experiments.analysis import Report
from optimizer.experiments.experiment import Design, Experiment
from optimizer.settings import Settings
from serving import experiments
from serving.problems import invalid_body
from serving.responses import Response
from serving.reward_writer import connect
from serving.schema import ShortText

__all__ = ["ActionBody", "ExperimentRoutes", "ReportResponse", "StopBody"]

_ACTOR = "http"
_T = TypeVar("_T")
_Connection = psycopg.Connection[Any]


class ActionBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Why; it goes into the audit trail. The body may be left out."""

    reason: ShortText | None = None


class StopBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`promote`: the winner keeps the experiment's units until the experiment is archived."""

    promote: bool = False
    reason: ShortText | None = None


class ReportResponse(Struct, frozen=True):
    """An experiment and what it has found."""

    experiment: Experiment
    report: Report


class ExperimentRoutes:
    """Handlers; each takes a body and the id in the path, and reads or writes PostgreSQL.

    Parameters
    ----------
    settings
        Of the whole platform.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._design = msgspec.json.Decoder(Design)
        self._action = msgspec.json.Decoder(ActionBody)
        self._stop = msgspec.json.Decoder(StopBody)

    async def list(self, body: bytes, argument: str) -> Response:
        """The newest experiments."""
        found = await self._with_connection(experiments.list_experiments)
        return Response(200, msgspec.json.encode({"experiments": found}))

    async def create(self, body: bytes, argument: str) -> Response:
        """Store a draft."""
        design = _read(self._design, body)
        made = await self._with_connection(
            lambda connection: experiments.create(
                connection, self._settings, design, actor=_ACTOR, now=time.time()
            )
        )
        return Response(201, msgspec.json.encode(made))

    async def report(self, body: bytes, argument: str) -> Response:
        """An experiment and its report."""
        found = await self._with_connection(
            lambda connection: experiments.report(connection, self._settings, argument, time.time())
        )
        return Response(200, msgspec.json.encode(ReportResponse(*found)))

    async def start(self, body: bytes, argument: str) -> Response:
        """Give it units, also after a pause."""
        reason = _read(self._action, body or b"{}").reason
        moved = await self._with_connection(
            lambda connection: experiments.start(
                connection,
                self._settings,
                argument,
                actor=_ACTOR,
                now=time.time(),
                reason=reason or "started",
            )
        )
        return Response(200, msgspec.json.encode(moved))

    async def pause(self, body: bytes, argument: str) -> Response:
        """Serve its units as all others for now."""
        reason = _read(self._action, body or b"{}").reason
        moved = await self._with_connection(
            lambda connection: experiments.pause(
                connection, argument, actor=_ACTOR, now=time.time(), reason=reason or "paused"
            )
        )
        return Response(200, msgspec.json.encode(moved))

    async def stop(self, body: bytes, argument: str) -> Response:
        """End it, and say what it found."""
        wanted = _read(self._stop, body or b"{}")
        found = await self._with_connection(
            lambda connection: experiments.stop(
                connection,
                self._settings,
                argument,
                actor=_ACTOR,
                now=time.time(),
                promote=wanted.promote,
                reason=wanted.reason,
            )
        )
        return Response(200, msgspec.json.encode(ReportResponse(*found)))

    async def archive(self, body: bytes, argument: str) -> Response:
        """Put it away."""
        reason = _read(self._action, body or b"{}").reason
        moved = await self._with_connection(
            lambda connection: experiments.archive(
                connection, argument, actor=_ACTOR, now=time.time(), reason=reason or "archived"
            )
        )
        return Response(200, msgspec.json.encode(moved))

    async def _with_connection(self, work: Callable[[_Connection], _T]) -> _T:
        """Run it in a thread, with a connection of its own: decisions do not wait for it."""

        def run() -> _T:
            try:
                with connect(self._settings.postgres_dsn()) as connection:
                    return work(connection)
            except psycopg.Error as error:
                raise Unavailable("PostgreSQL") from error

        return await asyncio.to_thread(run)


def _read(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise invalid_body(error, body) from None
