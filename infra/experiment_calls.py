"""Calls of `/v1/experiments` on the running platform, for the command line.

HTTP rather than PostgreSQL: a design is checked against the settings that are serving now, a
terminal needs no database password, and the command stays one user of the interface that other
programs use.
"""

from __future__ import annotations

from typing import Any, Self

import httpx

from infra.addresses import http_url
from optimizer.errors import InvalidInput, LlmoptError, PartFailed, Unavailable, UnknownName
from optimizer.settings import Settings

__all__ = ["ExperimentCalls"]

_TIMEOUT_S = 60.0  # a report reads every decision of an experiment
_PATH = "/v1/experiments"


class ExperimentCalls:
    """One connection to the platform.

    Parameters
    ----------
    settings
        Say where it listens.

    Raises
    ------
    PartFailed
        From every method, if nothing answers.
    InvalidInput
        From every method, what the platform refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = http_url(settings.host, settings.ports.fast_lane)
        self._client = httpx.Client(base_url=self._url, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def create(self, design: dict[str, Any]) -> dict[str, Any]:
        """Store a draft."""
        return self._call("POST", _PATH, design)

    def list(self) -> list[dict[str, Any]]:
        """The newest experiments."""
        found: list[dict[str, Any]] = self._call("GET", _PATH)["experiments"]
        return found

    def report(self, experiment_id: str) -> dict[str, Any]:
        """An experiment and its report."""
        return self._call("GET", f"{_PATH}/{experiment_id}")

    def act(self, experiment_id: str, action: str, **body: Any) -> dict[str, Any]:
        """Start, pause, stop or archive it."""
        given = {name: value for name, value in body.items() if value is not None}
        return self._call("POST", f"{_PATH}/{experiment_id}/{action}", given)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise PartFailed(
                f"nothing answers at {self._url}: start the platform with `llmopt up`"
            ) from error
        if answer.is_success:
            content: dict[str, Any] = answer.json()
            return content
        raise _error(answer)


def _error(answer: httpx.Response) -> LlmoptError:
    """What a problem document says, as the error it was made of."""
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        return PartFailed(f"the platform answered {answer.status_code}: {answer.text[:200]}")
    if answer.status_code == 503:
        return Unavailable(detail.partition(" is away")[0], int(problem.get("retry_after_s", 1)))
    if "field" not in problem:
        return PartFailed(f"the platform answered {answer.status_code}: {detail}")
    kind = UnknownName if answer.status_code == 404 else InvalidInput
    field = str(problem["field"])
    return kind(field, problem.get("value"), detail.removeprefix(f"{field}: "))
