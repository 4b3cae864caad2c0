"""What people and programs see: JSON on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.errors import InvalidInput, LlmoptError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Json", "errors_shown", "on_stderr", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
"""The option of every command that a program may read."""


def on_stderr() -> Console:
    """The console of progress bars, tables and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def print_json(value: object) -> None:
    """Write the one JSON object of a command to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextmanager
def errors_shown(as_json: bool) -> Iterator[None]:
    """End the command with exit status 1 and one clear message where an error is ours.

    Parameters
    ----------
    as_json
        Print ``{"error": {...}}`` on standard output instead of a line on standard error.
    """
    try:
        yield
    except LlmoptError as error:
        if as_json:
            print_json({"error": _problem(error)})
        else:
            sys.stderr.write(f"llmopt: {error}\n")
        raise SystemExit(1) from None


def _problem(error: LlmoptError) -> dict[str, Any]:
    problem: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, InvalidInput):
        value = error.value
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no word for it
        problem |= {"field": error.field, "value": value, "remedy": error.remedy}
    return problem
