"""Progress on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.terminal import on_stderr

__all__ = ["OnStep", "steps"]

_REDRAW_S = 0.1


class OnStep(Protocol):
    """Called after each step."""

    def __call__(self, done: int, total: int, label: str | None = None) -> None:
        """``done`` of ``total`` steps are over; ``label`` replaces the text beside the bar."""


@contextmanager
def steps(label: str) -> Iterator[OnStep]:
    """A progress bar, moved by calling what is yielded."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=on_stderr(), transient=True) as bar:
        task = bar.add_task(label, total=None)
        drawn_s = 0.0

        def on_step(done: int, total: int, label: str | None = None) -> None:
            nonlocal drawn_s
            now_s = monotonic()
            if done == total or now_s - drawn_s > _REDRAW_S:
                drawn_s = now_s
                bar.update(task, completed=done, total=total, description=label)

        yield on_step
