"""The supervisor with small real processes in place of the servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.parts import Endpoint, Part
from infra.processes import PART_MARK, STACK_MARK, find_marked, sweep
from infra.state import StateFile
from infra.supervisor import Supervisor
from optimizer.errors import PartFailed

SLEEP = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "open(sys.argv[1], 'w').close(); time.sleep(60)"
)


class Stack:
    """A supervisor in a thread, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack_id = uuid.uuid4().hex
        self.state_file = StateFile(folder)
        self.said: list[str] = []
        self.starts: list[str] = []
        self.error: BaseException | None = None

    def part(
        self,
        name: str,
        *needs: str,
        program: str = SLEEP,
        check: Callable[[], None] = lambda: None,
        essential: bool = True,
        **more: object,
    ) -> Part:
        def start() -> subprocess.Popen[bytes]:
            self.starts.append(name)
            return subprocess.Popen(
                [sys.executable, "-c", program, str(self.folder / name)],
                env={**os.environ, STACK_MARK: self.stack_id, PART_MARK: name},
                start_new_session=True,
            )

        endpoint = Endpoint(name, name, f"http://{name}", check)
        return Part(endpoint, start, needs=needs, essential=essential, **more)  # type: ignore[arg-type]

    def run(self, *parts: Part) -> None:
        self.supervisor = Supervisor(
            parts, self.stack_id, self.state_file, self.folder, self.said.append
        )

        def work() -> None:
            try:
                self.supervisor.run()
            except PartFailed as error:
                self.error = error

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def stop(self) -> float:
        """Ask it to stop; the seconds that took."""
        began = time.monotonic()
        self.supervisor.request_stop()
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()
        return time.monotonic() - began

    def process(self, name: str) -> psutil.Process:
        state = self.state_file.read()
        assert state is not None
        pid = state.parts[name].pid
        assert pid is not None
        return psutil.Process(pid)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path)
    yield made
    if made.thread.is_alive():
        made.stop()
    assert sweep(made.stack_id, grace_s=0) == 0, "the supervisor left processes"


def test_parts_start_after_what_they_need_and_all_end(stack: Stack) -> None:
    stack.run(stack.part("base"), stack.part("middle", "base"), stack.part("top", "middle"))
    stack.until(lambda: stack.supervisor.complete)

    assert stack.starts == ["base", "middle", "top"]
    assert [message.split()[0] for message in stack.said] == ["base", "middle", "top"]
    state = stack.state_file.read()
    assert state is not None
    assert state.ready
    assert state.complete
    assert state.parts["top"].address == "http://top"
    stack.stop()
    assert find_marked(stack.stack_id) == set()


def test_nothing_is_stopped_before_what_needs_it(stack: Stack, tmp_path: Path) -> None:
    note = "open({!r}, 'a').write(sys.argv[1].rpartition('/')[2] + ' ')"
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    {note.format(str(tmp_path / 'order'))}; sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open(sys.argv[1], 'w').close()\n"
        "time.sleep(60)"
    )

    def named(name: str, *needs: str) -> Part:
        return stack.part(name, *needs, program=program, check=(tmp_path / name).read_text)

    stack.run(named("base"), named("middle", "base"), named("top", "middle"))
    stack.until(lambda: stack.supervisor.complete)
    stack.stop()

    assert (tmp_path / "order").read_text() == "top middle base "


def test_preparation_comes_before_what_needs_the_part(stack: Stack) -> None:
    done: list[str] = []
    base = stack.part("base", prepare=lambda: done.append(",".join(stack.starts)))
    stack.run(base, stack.part("top", "base"))
    stack.until(lambda: stack.supervisor.complete)

    assert done == ["base"]


def test_part_that_dies_is_started_again_and_it_is_said(stack: Stack) -> None:
    stack.run(stack.part("base"), stack.part("top", "base"))
    stack.until(lambda: stack.supervisor.complete)
    stack.until(lambda: (state := stack.state_file.read()) and state.complete)
    first, top = stack.process("base"), stack.process("top")

    first.send_signal(signal.SIGKILL)
    stack.until(lambda: len(stack.starts) == 3)
    stack.until(lambda: stack.supervisor.complete)

    assert stack.starts == ["base", "top", "base"]
    assert any("base ended with status -9" in message for message in stack.said)
    assert top.is_running()
    stack.until(lambda: (state := stack.state_file.read()) and state.parts["base"].restarts == 1)


def test_what_a_dead_part_left_is_ended_before_it_starts_again(stack: Stack) -> None:
    program = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
        "start_new_session=True); open(sys.argv[1], 'w').close(); time.sleep(60)"
    )
    flag = stack.folder / "base"
    stack.run(stack.part("base", program=program, check=flag.read_text))
    stack.until(lambda: (state := stack.state_file.read()) and state.complete)
    parent = stack.process("base")
    (child,) = parent.children()

    parent.send_signal(signal.SIGKILL)
    stack.until(lambda: len(stack.starts) == 2)

    assert not child.is_running()


def test_essential_part_that_keeps_dying_ends_everything(stack: Stack) -> None:
    stack.run(stack.part("base"), stack.part("top", "base", program="raise SystemExit(3)"))
    stack.thread.join(timeout=30)

    assert isinstance(stack.error, PartFailed)
    assert "top ended with status 3" in str(stack.error)
    assert str(stack.folder / "top.log") in str(stack.error)
    assert find_marked(stack.stack_id) == set()


def test_other_part_that_keeps_dying_is_no_reason_to_end(stack: Stack) -> None:
    stack.run(stack.part("base"), stack.part("extra", program="exit(3)", essential=False))
    stack.until(lambda: stack.starts.count("extra") >= 3)

    assert stack.supervisor.ready
    assert not stack.supervisor.complete
    assert stack.error is None


def test_part_that_never_answers(stack: Stack) -> None:
    def refuse() -> None:
        raise ConnectionError("nobody home")

    stack.run(stack.part("base", check=refuse, start_s=0.5))
    stack.thread.join(timeout=30)

    assert "does not answer after 0 s (nobody home)" in str(stack.error)


def test_users_own_server_is_only_checked(stack: Stack) -> None:
    own = Part(Endpoint("own", "own", "http://own", lambda: None), None, essential=True)
    stack.run(own, stack.part("top", "own"))
    stack.until(lambda: stack.supervisor.complete)

    assert stack.starts == ["top"]
    state = stack.state_file.read()
    assert state is not None
    assert state.parts["own"].pid is None


def test_start_waits_while_it_would_disturb(stack: Stack) -> None:
    room = threading.Event()
    stack.run(stack.part("base"), stack.part("later", may_start=room.is_set))
    stack.until(lambda: stack.supervisor._children["base"].ready)
    assert stack.starts == ["base"]
    room.set()
    stack.until(lambda: stack.supervisor.complete)


def stubborn(stack: Stack, stop_s: float) -> Part:
    flag = stack.folder / "base"
    return stack.part("base", program=STUBBORN, check=flag.read_text, stop_s=stop_s)


def test_what_does_not_end_is_killed_after_its_time(stack: Stack) -> None:
    stack.run(stubborn(stack, stop_s=0.5))
    stack.until(lambda: stack.supervisor.complete)

    assert 0.5 <= stack.stop() < 10


def test_second_request_kills_at_once(stack: Stack) -> None:
    stack.run(stubborn(stack, stop_s=60))
    stack.until(lambda: stack.supervisor.complete)
    stack.supervisor.request_stop()
    time.sleep(0.3)

    assert stack.stop() < 15
