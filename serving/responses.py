"""Answers, whichever door they go out of."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from optimizer.errors import LlmoptError, Unavailable
from serving.problems import problem

__all__ = ["JSON", "PROBLEM", "Response", "refused"]

JSON = b"application/json"
PROBLEM = b"application/problem+json"


class Response(NamedTuple):
    """Status, body and type of an answer."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def refused(error: LlmoptError) -> Response:
    """The problem document of an error."""
    status, content = problem(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, Unavailable):
        headers = ((b"retry-after", b"%d" % error.retry_after_s),)
    return Response(status, msgspec.json.encode(content), PROBLEM, headers)
