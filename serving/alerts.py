"""Alerts by webhook, in the JSON that Slack's incoming webhooks take (as do Mattermost and others).

Sending never raises and takes a bounded time. The URL is a secret: whoever has it can write to the
channel. So it is in no log, no error and no result; httpx would log it, hence the standard library.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from optimizer.alert_settings import AlertSettings

__all__ = ["Delivery", "message", "send"]

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 5.0
_LONGEST_TEXT = 3000
"""Slack refuses a section that is longer."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an alert.

    Attributes
    ----------
    delivered
        Whether the receiver said yes.
    attempts
        Tries, 0 where no webhook is set.
    error
        Why not; "" if delivered.
    """

    delivered: bool
    attempts: int
    error: str = ""


def message(title: str, text: str, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of an alert.

    Parameters
    ----------
    title
        One line; also what a notification shows.
    text
        Sentences.
    figures
        Named values, at most ten are shown.

    Examples
    --------
    >>> message("chat", "quality fell", {"before": 0.9})["text"]
    'chat: quality fell'
    """
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": title[:150]}},
        {"type": "section", "text": {"type": "plain_text", "text": text[:_LONGEST_TEXT]}},
    ]
    if figures:
        fields = [
            {"type": "plain_text", "text": f"{name}: {value}"[:2000]}
            for name, value in list(figures.items())[:10]
        ]
        blocks.append({"type": "section", "fields": fields})
    return {"text": f"{title}: {text}"[:_LONGEST_TEXT], "blocks": blocks}


def send(
    settings: AlertSettings,
    body: Mapping[str, Any],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Delivery:
    """Send an alert; tries again when the receiver is away, busy or failing.

    Parameters
    ----------
    settings
        Whereto, and how often to try.
    body
        See `message`.
    sleep
        Waits between tries.
    """
    if settings.webhook_url is None:
        return Delivery(False, 0, "alerts.webhook_url is not set")
    error = ""
    for attempt in range(1, settings.attempts + 1):
        wait_s = min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S)
        try:
            _post(settings.webhook_url.get_secret_value(), body, settings.timeout_s)
            return Delivery(True, attempt)
        except urllib.error.HTTPError as refused:
            refused.close()
            error = f"the receiver answered {refused.code}"
            if refused.code != 429 and refused.code < 500:
                return Delivery(False, attempt, error)
            wait_s = min(_seconds(refused.headers.get("Retry-After"), wait_s), _LONGEST_WAIT_S)
        except (OSError, HTTPException, ValueError) as away:
            # Some of these carry the URL in their words, so only their kind is told.
            error = f"the receiver could not be reached ({type(away).__name__})"
        if attempt < settings.attempts:
            sleep(wait_s)
    return Delivery(False, settings.attempts, error)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An alert goes where the settings say and nowhere else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _post(url: str, body: Mapping[str, Any], timeout_s: float) -> None:
    content = json.dumps(body, default=str).encode()
    request = urllib.request.Request(  # noqa: S310 - the settings take http and https only
        url, content, {"Content-Type": "application/json", "User-Agent": "llm-auto-optimizer"}
    )
    with _OPENER.open(request, timeout=timeout_s) as answer:
        answer.read(1024)


def _seconds(header: str | None, otherwise: float) -> float:
    return float(header) if header is not None and header.isdigit() else otherwise
