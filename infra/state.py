"""What is running: the file ``stack.json`` in the home folder, and the lock beside it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import psutil

__all__ = ["PartState", "StackState", "StateFile"]

_TRIES = 5
_PAUSE_S = 0.05


@dataclass(frozen=True)
class PartState:
    """One part as the supervisor sees it.

    ``pid`` is None for the user's own server; ``created_s`` is when its process began, in Unix
    time, so that a number that was given to another process is not taken for it.
    """

    address: str
    pid: int | None
    created_s: float
    ready: bool
    restarts: int = 0


@dataclass(frozen=True)
class StackState:
    """A stack: its id (the mark of its processes), its supervisor and its parts."""

    stack_id: str
    supervisor: int
    ready: bool = False
    complete: bool = False
    parts: dict[str, PartState] = field(default_factory=dict)

    def processes(self) -> set[psutil.Process]:
        """The parts' own processes, of those that still run."""
        found = set()
        for part in self.parts.values():
            with suppress(psutil.Error):
                process = psutil.Process(part.pid) if part.pid is not None else None
                if process is not None and abs(process.create_time() - part.created_s) < 1.0:
                    found.add(process)
        return found


class StateFile:
    """Reads and writes the state; the supervisor holds the lock for as long as it lives.

    The lock ends with its process however that ends, so it is what says whether a stack runs; a
    state file without a held lock is what a killed supervisor left.

    Parameters
    ----------
    folder
        The home folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "stack.json"
        self._lock_file = folder / "stack.lock"
        self._lock: IO[str] | None = None

    def acquire(self) -> bool:
        """Take the lock for this process; False where a supervisor holds it."""
        lock = self._lock_file.open("w")
        for _ in range(_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S)  # it may be a short look by `held`
            else:
                self._lock = lock
                return True
        lock.close()
        return False

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def held(self) -> bool:
        """Whether a supervisor, in this process or another, holds the lock."""
        try:
            with self._lock_file.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write(self, state: StackState) -> None:
        """Replace the state as a whole."""
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        draft.replace(self._file)

    def read(self) -> StackState | None:
        """The state, or None where there is none (an unreadable one counts as none)."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=StackState)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def remove(self) -> None:
        """Forget the state; an orderly stop leaves none."""
        self._file.unlink(missing_ok=True)
