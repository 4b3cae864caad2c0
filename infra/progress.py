"""Progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.terminal import on_stderr

__all__ = ["steps"]

_REDRAW_S = 0.1


@contextmanager
def steps(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by calling what is yielded with (done, total) after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=on_stderr(), transient=True) as bar:
        task = bar.add_task(label, total=None)
        drawn_s = 0.0

        def on_step(done: int, total: int) -> None:
            nonlocal drawn_s
            now_s = monotonic()
            if done == total or now_s - drawn_s > _REDRAW_S:
                drawn_s = now_s
                bar.update(task, completed=done, total=total)

        yield on_step
