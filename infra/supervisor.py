"""The supervisor: starts the parts in their order, watches and restarts them, stops them.

One thread that looks around ten times a second; a signal only leaves a note for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from infra.parts import Part
from infra.processes import sweep
from infra.state import PartState, StackState, StateFile
from optimizer.errors import InvalidInput, PartFailed

__all__ = ["Supervisor"]

_TICK_S = 0.1
_RECHECK_S = 0.25
_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 60.0
"""A part that lived this long and dies is restarted without a wait again."""

_LONGEST_DELAY_S = 60.0
_LAST_SWEEP_S = 2.0


@dataclass
class _Child:
    """What the supervisor knows about one part."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    created_s: float = 0.0
    start_at_s: float = 0.0
    restarts: int = 0
    failures: int = 0
    ready: bool = False
    complained: bool = False
    check: Future[None] | None = None
    checked_s: float = 0.0
    kill_at_s: float | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Runs the parts until it is told to stop.

    Parameters
    ----------
    parts
        Each after those that it needs.
    stack_id
        The mark that the parts' processes carry, see `infra.processes`.
    state_file
        Kept up to date.
    logs
        Folder of the parts' logs, to name them in messages.
    say
        Told each message for people.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        stack_id: str,
        state_file: StateFile,
        logs: Path,
        say: Callable[[str], None],
    ) -> None:
        self._children = {part.name: _Child(part) for part in parts}
        self._stack_id = stack_id
        self._state_file = state_file
        self._logs = logs
        self._say = say
        self._stop = threading.Event()
        self._kill = threading.Event()
        self._began_s = monotonic()
        self._written: StackState | None = None
        self._checks = ThreadPoolExecutor(len(parts), thread_name_prefix="check")

    @property
    def ready(self) -> bool:
        """Whether all that is essential works: decisions can be made."""
        return all(child.ready for child in self._children.values() if child.part.essential)

    @property
    def complete(self) -> bool:
        """Whether every part works."""
        return all(child.ready for child in self._children.values())

    def request_stop(self) -> None:
        """Ask for an orderly stop; asked again, everything is killed at once."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    def run(
        self,
        on_tick: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Start everything and watch it until a stop is requested, then stop everything.

        Parameters
        ----------
        on_tick
            Called after each look around.
        on_stop
            Called before the parts are stopped.

        Raises
        ------
        PartFailed
            If an essential part can't be brought up; everything is stopped then, too.
        InvalidInput
            If what is prepared refuses the settings; everything is stopped then, too.
        """
        try:
            while not self._stop.is_set():
                for child in self._children.values():
                    self._advance(child)
                self._write()
                on_tick()
                self._stop.wait(_TICK_S)
        finally:
            on_stop()
            self._stop_all()

    def _advance(self, child: _Child) -> None:
        """Take one part one step further."""
        part, now_s = child.part, monotonic()
        if part.start is not None and not child.alive:
            if child.process is not None:
                self._note_death(child, child.process.returncode)
            elif now_s >= child.start_at_s and self._met(part) and self._has_room(part):
                self._start(child)
            return
        if not child.ready and self._met(part):
            self._check(child, now_s)

    def _met(self, part: Part) -> bool:
        return all(self._children[name].ready for name in part.needs if name in self._children)

    def _has_room(self, part: Part) -> bool:
        return part.may_start() or monotonic() - self._began_s > _LONGEST_DELAY_S

    def _start(self, child: _Child) -> None:
        assert child.part.start is not None
        child.started_s = monotonic()
        child.process = child.part.start()
        child.created_s = psutil.Process(child.process.pid).create_time()

    def _check(self, child: _Child, now_s: float) -> None:
        """Ask in the background whether the part works; say so once it does."""
        if child.check is None:
            if now_s - child.checked_s >= _RECHECK_S:
                child.check = self._checks.submit(_is_up, child.part)
            return
        if not child.check.done():
            return
        error = child.check.exception()
        child.check, child.checked_s = None, now_s
        if isinstance(error, InvalidInput):  # to try again would not help
            raise error
        if error is None:
            child.ready, child.complained = True, False
            after_s = now_s - self._began_s
            self._say(f"{child.part.label} is ready after {after_s:.1f} s{_at(child.part)}")
        elif now_s - (child.started_s or self._began_s) > child.part.start_s:
            self._give_up(child, error)

    def _give_up(self, child: _Child, error: BaseException) -> None:
        """The process lives, or is the user's, and doesn't answer for too long."""
        part = child.part
        reason = " ".join(str(error).split())
        message = f"{part.label} does not answer after {part.start_s:.0f} s ({reason})"
        where = self._log_of(part) if part.start is not None else f"it is looked for{_at(part)}"
        if part.essential and not child.restarts:
            raise PartFailed(f"{message}; {where}")
        if not child.complained:
            child.complained = True
            self._say(f"{message}; {where}; the rest goes on")

    def _note_death(self, child: _Child, status: int) -> None:
        part, lived_s = child.part, monotonic() - child.started_s
        if child.ready and lived_s > _STEADY_S:
            child.failures = 0
        wait_s = _BACKOFF_S[min(child.failures, len(_BACKOFF_S) - 1)]
        child.failures += 1
        if part.essential and not child.ready and not child.restarts and child.failures > 2:
            raise PartFailed(f"{part.label} ended with status {status}; {self._log_of(part)}")
        if child.ready:
            child.restarts += 1
        self._say(
            f"{part.label} ended with status {status}; starting it again in {wait_s:.0f} s; "
            f"{self._log_of(part)}"
        )
        child.process, child.ready, child.check = None, False, None
        child.start_at_s = monotonic() + wait_s
        # What it left behind would hold its ports.
        sweep(self._stack_id, part.name, grace_s=1.0)

    def _log_of(self, part: Part) -> str:
        return f"see {self._logs / f'{part.name}.log'}"

    def _write(self) -> None:
        state = self._state()
        if state != self._written:
            self._state_file.write(state)
            self._written = state

    def _state(self) -> StackState:
        return StackState(
            self._stack_id,
            os.getpid(),
            self.ready,
            self.complete,
            {
                name: PartState(
                    child.part.endpoint.address,
                    child.process.pid if child.process is not None else None,
                    child.created_s,
                    child.ready,
                    child.restarts,
                )
                for name, child in self._children.items()
            },
        )

    def _stop_all(self) -> None:
        """Stop each part once those that need it are gone, then whatever is left."""
        self._checks.shutdown(wait=False, cancel_futures=True)
        living = {name: child for name, child in self._children.items() if child.alive}
        while living and not self._kill.is_set():
            for name, child in list(living.items()):
                if not child.alive:
                    del living[name]
                elif not any(name in other.part.needs for other in living.values()):
                    _urge(child)
            self._kill.wait(_TICK_S)
        sweep(
            self._stack_id,
            grace_s=0.0 if self._kill.is_set() else _LAST_SWEEP_S,
            known=self._state().processes(),
        )
        for child in self._children.values():
            if child.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=1)


def _is_up(part: Part) -> None:
    """Raise where the part doesn't work yet."""
    part.endpoint.check()
    part.prepare()


def _urge(child: _Child) -> None:
    """Ask the process to end; kill it when its time is over."""
    assert child.process is not None
    now_s = monotonic()
    if child.kill_at_s is None:
        child.kill_at_s = now_s + child.part.stop_s
        child.process.send_signal(
            signal.SIGINT if child.part.stop_signal_is_interrupt else signal.SIGTERM
        )
    elif now_s > child.kill_at_s:
        child.process.kill()


def _at(part: Part) -> str:
    return f" at {part.endpoint.address}" if part.endpoint.address else ""
