"""Finding our processes again, and ending them; with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.processes import PART_MARK, STACK_MARK, find_marked, sweep
from infra.stack import down, running
from optimizer.settings import Settings

SLEEP = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "open({!r}, 'w').close(); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    "start_new_session=True, env={}); time.sleep(60)"
)


Start = Callable[..., psutil.Process]


@pytest.fixture
def stack_id() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield name
    sweep(name, grace_s=0)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a marked Python process; all are gone at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(stack_id: str, part: str, program: str = SLEEP) -> psutil.Process:
        environment = {**os.environ, STACK_MARK: stack_id, PART_MARK: part}
        command = [sys.executable, "-c", program]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return psutil.Process(started[-1].pid)

    yield run
    for process in started:
        process.kill()
        process.wait()


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for_children(process: psutil.Process) -> None:
    deadline = time.monotonic() + 20
    while not process.children() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_only_marked_processes_end(stack_id: str, start: Start) -> None:
    ours, other = start(stack_id, "one"), start(uuid.uuid4().hex, "one")

    assert find_marked(stack_id) == {ours}
    assert sweep(stack_id) == 1
    assert gone(ours)
    assert not gone(other)


def test_only_that_part_ends(stack_id: str, start: Start) -> None:
    one, two = start(stack_id, "one"), start(stack_id, "two")

    sweep(stack_id, "one")

    assert gone(one)
    assert find_marked(stack_id) == {two}


def test_child_without_the_mark_in_a_session_of_its_own_ends_too(
    stack_id: str, start: Start
) -> None:
    parent = start(stack_id, "one", PARENT)
    wait_for_children(parent)
    (child,) = parent.children()

    assert sweep(stack_id) == 2
    assert gone(child)


def test_what_ignores_the_request_is_killed(stack_id: str, start: Start, tmp_path: Path) -> None:
    flag = tmp_path / "deaf"
    process = start(stack_id, "one", STUBBORN.format(str(flag)))
    while not flag.exists():
        time.sleep(0.02)

    sweep(stack_id, grace_s=0.3)

    assert gone(process)


def test_known_process_ends_without_a_mark(stack_id: str) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as plain:
        process = psutil.Process(plain.pid)
        assert sweep(stack_id, known=[process]) == 1
        assert gone(process)


SUPERVISOR = """
import os, sys, uuid
from pathlib import Path
from infra.parts import Endpoint, Part
from infra.processes import STACK_MARK
from infra.state import StateFile
from infra.supervisor import Supervisor
import subprocess

home = Path(sys.argv[1])
state = StateFile(home)
assert state.acquire()
stack = uuid.uuid4().hex
os.environ[STACK_MARK] = stack
part = Part(
    Endpoint("one", "one", "", lambda: None),
    lambda: subprocess.Popen(["/bin/sleep", "60"], start_new_session=True),
    essential=True,
)
Supervisor([part], stack, state, home, lambda message: None).run()
"""


def test_down_ends_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, decision_points=[{"name": "a", "arms": [{"model": "m"}]}])
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)])
    deadline = time.monotonic() + 30
    while (state := running(settings)) is None or not state.ready:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = state.parts["one"].pid
    assert pid is not None
    left = psutil.Process(pid)
    supervisor.kill()
    supervisor.wait()
    assert left.is_running()
    assert running(settings) is None

    assert down(settings)

    assert gone(left)
    assert not (tmp_path / "stack.json").exists()
    assert not down(settings)
