"""The user's own judge of parameters, by its dotted path in the settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from optimizer.errors import InvalidInput

if TYPE_CHECKING:
    from optimizer.parameter_evaluator import Evaluator

__all__ = ["load_evaluator"]


def load_evaluator(path: str) -> Evaluator:
    """Import it.

    Parameters
    ----------
    path
        ``package.module:function``; what it must do is in `optimizer.parameter_evaluator`. The
        module has to be importable where flows run: installed, or in a folder of PYTHONPATH.

    Raises
    ------
    InvalidInput
        If the module cannot be imported or has no such function.

    Examples
    --------
    >>> load_evaluator("math:tau")
    Traceback (most recent call last):
    optimizer.errors.InvalidInput: tuning.evaluator='math:tau': the module has no function 'tau'
    """
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise InvalidInput(
            "tuning.evaluator",
            path,
            f"the module cannot be imported ({type(error).__name__}: {error}); install it, or put "
            "its folder on PYTHONPATH of what runs the flows",
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise InvalidInput("tuning.evaluator", path, f"the module has no function {name!r}")
    evaluator: Evaluator = found
    return evaluator
