"""The state file and the lock beside it."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from infra.state import PartState, StackState, StateFile


def test_state_survives_writing_and_reading(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    state = StackState("id", 7, True, False, {"one": PartState("http://x", 8, 1.5, True, 2)})

    file.write(state)

    assert file.read() == state
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]
    file.remove()
    assert file.read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": 1}', json.dumps({"parts": {}})])
def test_unreadable_state_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    assert StateFile(tmp_path).read() is None


def test_number_that_was_given_to_another_process_is_not_taken_for_ours() -> None:
    own = psutil.Process()
    ours = PartState("", own.pid, own.create_time(), True)
    other = PartState("", own.pid, own.create_time() - 3600, True)

    assert StackState("id", 1, parts={"one": ours}).processes() == {own}
    assert StackState("id", 1, parts={"one": other}).processes() == set()


def test_one_holder_of_the_lock(tmp_path: Path) -> None:
    first, second = StateFile(tmp_path), StateFile(tmp_path)
    assert not second.held()
    assert first.acquire()
    assert second.held()
    assert not second.acquire()
    first.release()
    assert not second.held()
    assert second.acquire()
    second.release()
