"""What `llmopt rewards` does: dead letters sent again, one decision looked up, rewards exported."""

from __future__ import annotations

import json
import math
import struct
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from infra.addresses import http_url
from optimizer.errors import InvalidInput, InvalidToken, PartFailed, Unavailable, UnknownName
from optimizer.response_facts import FACTS_ID, RESPONSE_FACTS
from optimizer.settings import Settings
from serving.dead_letters import (
    ACCEPTED,
    BODY_BYTES,
    DUPLICATE,
    StoredLetter,
    mark_letter,
)
from serving.ledger import create_tables
from serving.ledger_partitions import decided_at
from serving.tokens import parse

__all__ = ["Replayed", "export_rewards", "ledger_connection", "replay", "show_decision"]

_TIMEOUT_S = 30.0
_CONNECT_S = 15
_HIDDEN = ("token", "known_before", "known_after", "decision_id", "decision_point", "decided_at")
_PARTS = ("quality", "cost_usd", "latency_s", "feedback")


@dataclass(frozen=True)
class Replayed:
    """A letter that was sent again, and what came of it: a word, or why it was refused again."""

    letter: StoredLetter
    outcome: str


@contextmanager
def ledger_connection(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the ledger.

    Raises
    ------
    PartFailed
        If PostgreSQL does not answer.
    """
    dsn = settings.postgres_dsn()
    try:
        # A person waits longer than a replica may: its time limits are not for here.
        with psycopg.connect(dsn, autocommit=True, connect_timeout=_CONNECT_S) as connection:
            create_tables(connection)
            yield connection
    except psycopg.OperationalError as error:
        why = " ".join(str(error).split())
        raise PartFailed(
            f"PostgreSQL does not answer ({why}): start the platform with `llmopt up`"
        ) from error


def replay(
    connection: psycopg.Connection[Any], settings: Settings, letters: list[StoredLetter]
) -> Iterator[Replayed]:
    """Send letters again, the oldest first, to the platform that runs; each is marked at once.

    What is already in the ledger stays as it is, so a replay that was cut off is simply repeated.

    Raises
    ------
    PartFailed
        If nothing answers.
    Unavailable
        If the platform cannot store rewards now; what was sent until then is marked.
    """
    url = http_url(settings.host, settings.ports.fast_lane)
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:
        for letter in sorted(letters, key=lambda letter: letter.id):
            if letter.done:
                yield Replayed(letter, letter.outcome or "")
                continue
            if not letter.whole:
                outcome = f"not sent: of {letter.body_bytes} bytes, {BODY_BYTES} at most are kept"
            else:
                outcome = _send(client, letter)
            mark_letter(connection, letter.id, outcome)
            yield Replayed(letter, outcome)


def _content_type(body: bytes) -> str:
    """A CloudEvent says so itself."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    cloud_event = isinstance(content, dict) and "specversion" in content
    return "application/cloudevents+json" if cloud_event else "application/json"


def _send(client: httpx.Client, letter: StoredLetter) -> str:
    try:
        answer = client.post(
            letter.path, content=letter.body, headers={"content-type": _content_type(letter.body)}
        )
    except httpx.HTTPError as error:
        raise PartFailed(
            f"nothing answers at {client.base_url}: start the platform with `llmopt up`"
        ) from error
    try:
        content = answer.json()
    except ValueError:
        raise PartFailed(
            f"the platform answered {answer.status_code}: {answer.text[:200]}"
        ) from None
    if answer.status_code == 503:
        detail = str(content.get("detail", "the ledger"))
        raise Unavailable(detail.partition(" is away")[0], int(content.get("retry_after_s", 1)))
    if not answer.is_success:
        return f"refused: {content.get('detail', answer.status_code)}"
    items = content.get("items")
    if items is None:
        return DUPLICATE if content["duplicate"] else ACCEPTED
    refused = sum("accepted" not in item for item in items)
    # Those that were refused are letters of their own now.
    return ACCEPTED if not refused else f"accepted, but for {refused} of {len(items)} items"


def show_decision(connection: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    """Everything the ledger has about a decision.

    Parameters
    ----------
    name
        The `decision_id` as a caller has it, or the UUID that the tables have.

    Returns
    -------
    ``decision_id`` (UUID), ``decision`` (the line of the log, None if it is not there), ``events``
    (in their order), ``known`` (what all of them come to), ``response`` (the facts about it that
    are known, by name; None if no response was told).

    Raises
    ------
    UnknownName
        If there is nothing.
    """
    decision_id, token = _read_name(name)
    where = "decision_id = %s"
    given: list[Any] = [decision_id]
    if token is not None:  # the week is known: no need to look into all of them
        where += " AND decided_at = %s"
        given.append(decided_at(token))
    with connection.cursor(row_factory=dict_row) as cursor:
        logged = cursor.execute(
            f"SELECT * FROM decisions WHERE {where} LIMIT 1",  # noqa: S608
            given,
        ).fetchone()
        rows = cursor.execute(
            f"SELECT * FROM rewards WHERE {where} ORDER BY position",  # noqa: S608
            given,
        ).fetchall()
        told = cursor.execute(
            f"SELECT facts_id, facts FROM response_facts WHERE {where}",  # noqa: S608
            given,
        ).fetchone()
    if logged is None and not rows:
        remedy = "a decision that is in the log or has a reward; the log may be a second behind"
        raise UnknownName("decision_id", name, remedy)
    # Further numbers may stand behind the four parts.
    known = dict(zip(_PARTS, rows[-1]["known_after"], strict=False)) if rows else None
    raw = bytes((rows[-1] if rows else logged or {})["token"])
    return {
        "decision_id": str(decision_id),
        "decision_point": (logged or rows[-1])["decision_point"],
        "decided_at": decided_at(raw).isoformat(timespec="milliseconds"),
        "decision": None if logged is None else _shown(logged),
        "events": [_shown(row) for row in rows],
        "known": known,
        "response": None if told is None else _facts(told["facts_id"], told["facts"]),
    }


def _facts(facts_id: int, facts: list[float]) -> dict[str, float]:
    """Those that are known, none of another version's."""
    if facts_id != FACTS_ID:
        return {}
    found = zip(RESPONSE_FACTS, facts, strict=True)
    return {name: value for name, value in found if not math.isnan(value)}


def _read_name(name: str) -> tuple[uuid.UUID, bytes | None]:
    try:
        return uuid.UUID(name), None
    except ValueError:
        pass
    try:
        raw = urlsafe_b64decode(name.encode("ascii") + b"=" * (-len(name) % 4))
        decision = parse(raw)
    except (ValueError, IndexError, InvalidToken, struct.error):
        shown = name if len(name) <= 40 else name[:37] + "..."
        remedy = "the decision_id of a decision, whole, or its UUID"
        raise InvalidInput("decision_id", shown, remedy) from None
    return uuid.UUID(bytes=decision.decision_id), raw


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is for machines."""
    return {
        name: value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
        for name, value in row.items()
        if name not in _HIDDEN
    }


def export_rewards(
    connection: psycopg.Connection[Any], start: datetime, end: datetime, file: Path
) -> int:
    """Write the rewards of decisions of a span of time to a parquet file; gives how many.

    The rows stream, and the file gets its name when it is complete.

    Parameters
    ----------
    start, end
        With time zone; the end is not included.

    Raises
    ------
    InvalidInput
        If the file is no parquet file or cannot be written, or the span is empty.
    """
    from feature_repo.archive import write_rows

    if file.suffix != ".parquet":
        raise InvalidInput("out", str(file), "a file whose name ends in .parquet")
    if start >= end:
        raise InvalidInput("until", end.isoformat(), f"later than since={start.isoformat()}")
    query = sql.SQL(
        "SELECT * FROM rewards WHERE decided_at >= {} AND decided_at < {} "
        "ORDER BY decision_point, position"
    ).format(start, end)
    part = file.with_suffix(".part")
    try:
        with connection.transaction():
            rows = write_rows(connection, query, part, "rewards")
        part.replace(file)
    except OSError as error:
        raise InvalidInput("out", str(file), f"cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return rows
