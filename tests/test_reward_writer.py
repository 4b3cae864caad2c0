"""Group commit on a real PostgreSQL: what can't be stored holds up nothing else."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from optimizer.errors import LlmoptError, Unavailable
from optimizer.records import Outcome
from optimizer.settings import Settings
from serving import ledger
from serving.ledger import RewardEvent
from serving.reward_writer import RewardWriter


@pytest.fixture
def dsn(settings: Callable[..., Settings]) -> str:
    return settings().postgres_dsn()


@pytest.fixture
def writer(dsn: str) -> Iterator[RewardWriter]:
    made = RewardWriter(dsn)
    yield made
    made.close()


def event(number: int, event_id: str = "", token: Any = b"token") -> RewardEvent:
    return RewardEvent("chat", number.to_bytes(16), event_id, Outcome(quality=0.5), False, token)


@pytest.mark.parametrize(
    "bad",
    [
        event(7, event_id="no\0text"),  # PostgreSQL refuses it
        event(7, token=7),  # it can't even be encoded
    ],
)
def test_one_that_cannot_be_stored_holds_up_no_other(
    writer: RewardWriter, dsn: str, bad: RewardEvent
) -> None:
    async def run() -> list[Any]:
        requests = [[event(number)] for number in range(5)]
        requests.insert(2, [bad])
        stored = [writer.store(events) for events in requests]
        return await asyncio.gather(*stored, return_exceptions=True)

    answers = asyncio.run(run())
    refused = answers.pop(2)
    assert answers == [[False]] * 5
    assert isinstance(refused, LlmoptError)
    assert not isinstance(refused, Unavailable)  # or callers would try for ever
    with psycopg.connect(dsn) as connection:
        assert ledger.head(connection, "chat") == 5
