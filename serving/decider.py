"""From bodies of decision requests to answers, many at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

import msgspec

from optimizer.errors import LlmoptError, UnknownName
from serving.live_point import LivePoint, Request
from serving.metrics import ReplicaMetrics
from serving.problems import problem
from serving.responses import Response, refused
from serving.schema import read_decision, read_decisions

__all__ = ["Decider", "unknown_point"]

_LOG = logging.getLogger(__name__)
_AT_ONCE = 256
"""Larger groups take longer before their first answer, and are no cheaper a request."""


class Decider:
    """Answers for all decision points of a replica.

    Parameters
    ----------
    points
        By name.
    metrics
        Told how long decisions took.
    """

    def __init__(self, points: Mapping[str, LivePoint], metrics: ReplicaMetrics) -> None:
        self._points = points
        self._metrics = metrics

    def answer(self, bodies: Sequence[bytes]) -> list[Response]:
        """Answers to bodies of `POST /v1/decisions`, in their order."""
        requests: list[Request | LlmoptError] = []
        for body in bodies:
            try:
                requests.append(read_decision(body))
            except LlmoptError as error:
                requests.append(error)
        return [
            Response(200, answer) if isinstance(answer, bytes) else refused(answer)
            for answer in self._decide(requests)
        ]

    def answer_batch(self, body: bytes) -> Response:
        """The answer to a body of `POST /v1/decisions/batch`.

        Raises
        ------
        InvalidInput
            If the batch as a whole is wrong; its items are answered each on its own.
        """
        answers = [
            answer if isinstance(answer, bytes) else msgspec.json.encode(problem(answer)[1])
            for answer in self._decide(read_decisions(body))
        ]
        return Response(200, b'{"items":[%s]}' % b",".join(answers))

    def _decide(self, requests: Sequence[Request | LlmoptError]) -> list[bytes | LlmoptError]:
        started = perf_counter()
        answers: list[bytes | LlmoptError] = [b""] * len(requests)
        groups: dict[str, tuple[list[int], list[Request]]] = {}
        for place, request in enumerate(requests):
            if isinstance(request, LlmoptError):
                answers[place] = request
                continue
            name = request.decision_point
            group = groups.get(name)
            if group is None:
                if name not in self._points:
                    answers[place] = unknown_point(name, self._points)
                    continue
                group = groups[name] = ([], [])
            group[0].append(place)
            group[1].append(request)
        made = 0
        for name, (places, ready) in groups.items():
            decided = self._of_point(name, ready)
            made += sum(type(answer) is bytes for answer in decided)
            for place, answer in zip(places, decided, strict=True):
                answers[place] = answer
        self._metrics.decided(perf_counter() - started, made)
        return answers

    def _of_point(self, name: str, requests: Sequence[Request]) -> Sequence[bytes | LlmoptError]:
        live = self._points[name]
        try:
            answers: list[bytes | LlmoptError] = []
            for first in range(0, len(requests), _AT_ONCE):
                answers += live.decide(requests[first : first + _AT_ONCE])
            return answers
        except Exception:
            _LOG.exception("%s: decisions failed", name)
            error = LlmoptError("an internal error; the replica's log says more")
            return [error] * len(requests)


def unknown_point(name: str, points: Iterable[str]) -> UnknownName:
    """No decision point has this name."""
    return UnknownName("decision_point", name, f"one of {sorted(points)}")
