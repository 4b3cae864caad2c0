"""Prefect's server with our deployments in it: ``python -m flows.server HOST PORT``.

A server that answers but knows no deployment would be told of them by the runner seconds later:
whoever asked meanwhile would find an empty dashboard, and could start nothing. So they are
registered before the port opens. The runner registers them, too, in a Prefect of the user's own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext
from prefect.server.api.server import create_app

from flows.deployments import DEPLOYMENTS
from flows.registration import deployment

__all__ = ["serve"]


def serve(host: str, port: int) -> None:
    """Serve until told to stop."""
    app = create_app(final=True)
    started = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with started(app):
            # In a task of its own: Prefect counts this one as a request that is being answered.
            await asyncio.create_task(_register(app))
            yield

    app.router.lifespan_context = lifespan
    uvicorn.run(app, host=host, port=port, log_level="warning")


async def _register(app: FastAPI) -> None:
    """Past the network, which does not lead here yet."""
    client = PrefectClient(app)
    client.manage_lifespan = False
    async with client:
        with AsyncClientContext.model_construct(client=client):
            for one in DEPLOYMENTS:
                await deployment(one).aapply()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
