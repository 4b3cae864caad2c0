"""The whole platform: `llmopt up` and `llmopt down`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from infra.environment import UNWANTED, stack_environment
from infra.home import Home
from infra.parts import make_parts
from infra.ports import check_ports
from infra.processes import PART_MARK, sweep
from infra.state import StackState, StateFile
from infra.supervisor import Supervisor
from optimizer.errors import PartFailed
from optimizer.settings import Settings
from registry.prompts import check_prompts

__all__ = ["down", "running", "up", "up_detached"]

_PAUSE_S = 0.2
_DOWN_S = 40.0
_EXIT_S = 5.0
_DEMO_STOP_S = 2.0

Say = Callable[[str], None]


def running(settings: Settings) -> StackState | None:
    """The state of the platform that runs in this home, or None."""
    file = StateFile(Home(settings.home).folder)
    return file.read() if file.held() else None


def up(
    settings: Settings,
    settings_file: Path,
    say: Say,
    *,
    demo: bool = False,
    on_complete: Callable[[], None] = lambda: None,
) -> None:
    """Start the platform and keep it up until SIGINT or SIGTERM; a second one kills at once.

    Parameters
    ----------
    settings
        Read from ``settings_file`` and the user's variables.
    settings_file
        Absolute path, for the children.
    say
        Told each message for people.
    demo
        Send the recorded prompts once decisions can be made.
    on_complete
        Called once, when every part works and the demo is over.

    Raises
    ------
    InvalidSettings
        If an arm names a prompt variant that has no file.
    PartFailed
        If a port is taken, or an essential part can't be brought up.
    """
    check_prompts(settings)
    home = Home(settings.home)
    home.make()
    state_file = StateFile(home.folder)
    if not state_file.acquire():
        raise PartFailed(f"a platform already runs in {home.folder}; `llmopt down` stops it")
    try:
        _sweep_after_crash(state_file, say)
        parts = make_parts(settings, home)
        check_ports(settings.host, [port for part in parts for port in part.ports])
        stack_id = uuid.uuid4().hex
        os.environ.update(stack_environment(settings, settings_file, home, stack_id))
        for name in UNWANTED:
            os.environ.pop(name, None)
        supervisor = Supervisor(parts, stack_id, state_file, home.logs, say)
        _stop_on_signals(supervisor)
        companion = _Companion(supervisor, demo, on_complete)
        supervisor.run(companion.tick, companion.stop)
        state_file.remove()
        shutil.rmtree(home.temporary, ignore_errors=True)
    finally:
        state_file.release()


def up_detached(settings: Settings, say: Say, *, demo: bool = False) -> None:
    """Start `up` in the background; return once decisions can be made.

    Raises
    ------
    PartFailed
        If it ended before; with its last message.
    """
    home = Home(settings.home)
    home.make()
    command = [sys.executable, "-m", "infra.cli", "up", *(["--demo"] if demo else [])]
    with home.up_log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
    say(f"starting in the background (log: {home.up_log})")
    state_file = StateFile(home.folder)
    while True:
        state = state_file.read()
        if state is not None and state.supervisor == process.pid and state.ready:
            return
        if process.poll() is not None:
            text = home.up_log.read_text(errors="replace")
            raise PartFailed(text.rpartition("llmopt: ")[2].strip() or "it ended without a word")
        time.sleep(_PAUSE_S)


def down(settings: Settings) -> bool:
    """Stop the platform of this home and all that is left of it; whether there was any.

    Raises
    ------
    PartFailed
        If the supervisor does not end.
    """
    state_file = StateFile(Home(settings.home).folder)
    state = state_file.read()
    if state is None:
        return False
    if state_file.held():
        with suppress(ProcessLookupError):
            os.kill(state.supervisor, signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_S
        while state_file.held():
            if time.monotonic() > deadline:
                os.kill(state.supervisor, signal.SIGKILL)
                sweep(state.stack_id, grace_s=0.0, known=state.processes())
                raise PartFailed(
                    f"the supervisor (pid {state.supervisor}) did not end in {_DOWN_S:.0f} s and "
                    "was killed with all its processes"
                )
            time.sleep(_PAUSE_S)
        # It lets go of the file a moment before it ends.
        with suppress(psutil.Error):
            psutil.Process(state.supervisor).wait(_EXIT_S)
    sweep(state.stack_id, known=state.processes())
    state_file.remove()
    return True


def _sweep_after_crash(state_file: StateFile, say: Say) -> None:
    old = state_file.read()
    if old is not None:
        count = sweep(old.stack_id, known=old.processes())
        state_file.remove()
        if count:
            say(f"ended {count} processes that a killed platform had left")


def _stop_on_signals(supervisor: Supervisor) -> None:
    """Install handlers explicitly: a shell starts background jobs with SIGINT ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        supervisor.request_stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


class _Companion:
    """What happens beside the parts: the demo, and one word when all is done."""

    def __init__(self, supervisor: Supervisor, demo: bool, on_complete: Callable[[], None]) -> None:
        self._supervisor = supervisor
        self._demo_is_due = demo
        self._demo: subprocess.Popen[bytes] | None = None
        self._on_complete: Callable[[], None] | None = on_complete

    def tick(self) -> None:
        """Start the demo when decisions can be made; tell when everything works."""
        if self._demo_is_due and self._supervisor.ready:
            self._demo_is_due = False
            self._demo = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "demo"],
                env={**os.environ, PART_MARK: "demo"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        over = not self._demo_is_due and (self._demo is None or self._demo.poll() is not None)
        if self._on_complete is not None and over and self._supervisor.complete:
            self._on_complete()
            self._on_complete = None

    def stop(self) -> None:
        """End the demo before what it talks to."""
        if self._demo is None or self._demo.poll() is not None:
            return
        self._demo.send_signal(signal.SIGINT)
        try:
            self._demo.wait(timeout=_DEMO_STOP_S)
        except subprocess.TimeoutExpired:
            self._demo.kill()
