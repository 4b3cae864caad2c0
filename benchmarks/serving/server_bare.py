"""uvicorn with a constant answer, the limit of its road: ``server_bare.py PORT``."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

_ANSWER = b"{}"
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ANSWER))]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, answer ``{}``."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


if __name__ == "__main__":
    uvicorn.run(
        application, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off"
    )
