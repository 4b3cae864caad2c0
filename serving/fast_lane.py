"""The fast lane: uvicorn on a socket that replicas share, with a short cut for decisions.

A decision needs no scope, no task and no event: its body goes from the parser (httptools) into the
next `MicroBatch`, and the answer to the socket. Everything else takes uvicorn's way through the
ASGI application, and so does a decision that comes in an unusual way (HTTP/1.0, behind a request
that is still being answered, with ``Expect`` or ``Upgrade``).
"""

from __future__ import annotations

import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from optimizer.errors import TooLarge
from serving.micro_batch import MicroBatch
from serving.responses import Response, refused

__all__ = ["DECISIONS", "SINGLE_LIMIT", "FastLane", "listen"]

DECISIONS = b"/v1/decisions"
SINGLE_LIMIT = 1 << 20
_LISTEN_BACKLOG = 2048
_LOOK_S = 5.0
_SLOWEST_REQUEST_S = 20.0


class FastLane(HttpToolsProtocol):
    """uvicorn's protocol, with a short cut; its application has a `MicroBatch`.

    A connection that takes more than 20 s to send a request is answered 408 and closed; an idle one
    is closed after uvicorn's ``timeout_keep_alive``.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._batch: MicroBatch = config.app.batch
        self._requests = config.app.requests
        self._body: list[bytes] | None = None
        self._size = 0
        self._unanswered = 0
        self._began_at: float | None = None
        self._active_at = self.loop.time()
        self._looking = self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking after it."""
        self._looking.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._began_at = self._active_at = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the short cut, if it is a decision that comes in the usual way."""
        parser = self.parser
        if (
            self.url == DECISIONS
            and parser.get_method() == b"POST"
            and not self.expect_100_continue
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
        ):
            self._body, self._size = [], 0
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._body is None:
            super().on_body(body)
        else:
            self._size += len(body)
            if self._size <= SINGLE_LIMIT:  # the rest is read, so that the caller reads the answer
                self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is there: into the batch."""
        self._began_at = None
        if self._body is None:
            super().on_message_complete()
            return
        parts, self._body = self._body, None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._unanswered += 1
        if self._size > SINGLE_LIMIT:
            error = TooLarge("body", f"{self._size} bytes", f"at most {SINGLE_LIMIT} bytes")
            self._reply(refused(error))
        else:
            self._batch.submit(body, self._reply)

    def on_response_complete(self) -> None:
        """What went through the application is answered: the connection is idle from now on."""
        self._active_at = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The caller does not read: take no more of its requests."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The caller reads again."""
        super().resume_writing()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Close, after what is waiting has been answered."""
        if self._unanswered:
            self.loop.call_soon(self.shutdown)
        else:
            super().shutdown()

    def _reply(self, response: Response) -> None:
        self._unanswered -= 1
        status, body, content_type, headers = response
        self._requests["/v1/decisions", status] += 1
        self._active_at = self.loop.time()
        if self.transport.is_closing():
            return
        if status == 200:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            return
        lines = [
            b"content-type: " + content_type,
            b"content-length: %d" % len(body),
            *(b"%s: %s" % header for header in headers),
        ]
        self.transport.write(STATUS_LINE[status] + b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def _look(self) -> None:
        """Every few seconds: close a connection that hangs or is idle."""
        now = self.loop.time()
        busy = self.cycle is not None and not self.cycle.response_complete
        if self._began_at is not None and now - self._began_at > _SLOWEST_REQUEST_S:
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()
        elif not busy and now - self._active_at > self.timeout_keep_alive:
            self.transport.close()
        else:
            self._looking = self.loop.call_later(_LOOK_S, self._look)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that several replicas of a node share; the kernel spreads connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(_LISTEN_BACKLOG)
    listener.setblocking(False)
    return listener
