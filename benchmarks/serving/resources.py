"""CPU and memory of groups of processes while something runs, by psutil."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import psutil

__all__ = ["Sampler", "Usage", "tree"]

_EVERY_S = 0.25
_MIB = 2**20


@dataclass(frozen=True)
class Usage:
    """Of one group of processes.

    Attributes
    ----------
    cores
        CPU seconds a second, of user and system together.
    memory_mib
        Most that was resident; memory that processes share counts in each of them.
    """

    cores: float
    memory_mib: float


def tree(pid: int) -> set[psutil.Process]:
    """A process and all below it; empty where it is gone."""
    try:
        root = psutil.Process(pid)
        return {root, *root.children(recursive=True)}
    except psutil.Error:
        return set()


class Sampler:
    """Looks at processes four times a second, from entering until leaving.

    Parameters
    ----------
    groups
        Processes by the name of their group.
    """

    def __init__(self, groups: Mapping[str, Iterable[psutil.Process]]) -> None:
        self._groups = {name: set(processes) for name, processes in groups.items()}
        self._seen: dict[str, dict[psutil.Process, list[tuple[float, float]]]] = {}
        self._memory: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def add(self, group: str, pid: int) -> None:
        """Also look at the process and at what is below it now."""
        with self._lock:
            self._groups.setdefault(group, set()).update(tree(pid))
        self._look()

    def usage(self) -> dict[str, Usage]:
        """Of each group, over the time that each of its processes was seen."""
        return {
            group: Usage(
                sum(_rate(samples) for samples in self._seen.get(group, {}).values()),
                self._memory.get(group, 0.0),
            )
            for group in self._groups
        }

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            for group, processes in self._groups.items():
                resident = 0.0
                for process in processes:
                    with suppress(psutil.Error):
                        with process.oneshot():
                            times = process.cpu_times()
                            if process.status() == psutil.STATUS_ZOMBIE:
                                continue
                            resident += process.memory_info().rss
                        sample = (time.monotonic(), times.user + times.system)
                        self._seen.setdefault(group, {}).setdefault(process, []).append(sample)
                self._memory[group] = max(self._memory.get(group, 0.0), resident / _MIB)


def _rate(samples: list[tuple[float, float]]) -> float:
    (begin, before), (end, after) = samples[0], samples[-1]
    return (after - before) / (end - begin) if end > begin else 0.0
