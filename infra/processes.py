"""Our processes, found by a mark in their environment, and the certain end of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil

__all__ = ["PART_MARK", "STACK_MARK", "find_marked", "sweep"]

STACK_MARK = "_LLMOPT_STACK"
"""Environment variable with the id of the stack; children hand it on to theirs."""

PART_MARK = "_LLMOPT_PART"
"""Environment variable with the name of the part."""

_POSTGRES = "postgres"


def find_marked(stack_id: str, part: str | None = None) -> set[psutil.Process]:
    """Processes that carry the mark of a stack, and all below them, without this one.

    Those below are looked up too, because a program that renames itself (Ray's workers, a backend
    of PostgreSQL) writes over its environment.

    Parameters
    ----------
    stack_id
        Value of `STACK_MARK`.
    part
        Only that part's processes.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(STACK_MARK) == stack_id and part in (
                None,
                environment.get(PART_MARK),
            ):
                found |= {process, *process.children(recursive=True)}
    return {process for process in found if process.pid != os.getpid()}


def sweep(
    stack_id: str,
    part: str | None = None,
    grace_s: float = 3.0,
    known: Iterable[psutil.Process] = (),
) -> int:
    """End what is left of a stack: ask, wait, then kill.

    Parameters
    ----------
    stack_id, part
        As for `find_marked`.
    grace_s
        Seconds between asking and killing; 0 kills at once.
    known
        Processes that are ours, found some other way: Valkey writes over its environment.

    Returns
    -------
    Number of processes that were found.
    """
    found = find_marked(stack_id, part) | set(known)
    if grace_s > 0:
        for process in found:
            _ask_to_end(process)
        psutil.wait_procs(found, timeout=grace_s)
    # Looked up again: who is asked to end may have started another in the meantime.
    remaining = find_marked(stack_id, part) | {process for process in found if process.is_running()}
    for process in remaining:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(remaining, timeout=2)
    return len(found | remaining)


def _ask_to_end(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        if process.name() != _POSTGRES:
            process.terminate()
            return
        # PostgreSQL waits for its clients on SIGTERM, and its helpers end with their parent.
        parent = process.parent()
        if parent is None or parent.name() != _POSTGRES:
            process.send_signal(signal.SIGINT)
