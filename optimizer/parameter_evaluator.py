"""What users write to judge parameters, and how little of it is enough.

An evaluator is named in the settings (`tuning.evaluator`) and called in the process of the flow::

    def judge(model: str, parameters: dict, task: str) -> tuple[float, float]:
        ...  # quality in [0, 1], cost of a request in US dollars

It may give such pairs one after the other, as a generator, one for each request of a test set and
in the same order for every setting. Then a trial is pruned as soon as its requests show that
another setting is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from optimizer.errors import InvalidInput
from optimizer.records import Matrix
from optimizer.worth import Worth

__all__ = ["Evaluator", "hopeless", "parts_of"]

Evaluator = Callable[[str, dict[str, Any], str], Any]

_LEAST_PARTS = 8
_HOPELESS = 0.02
"""Level of the test that prunes. It looks after every part, so it is a strict one."""


def parts_of(given: Any) -> Iterator[tuple[float, float]]:
    """Pairs of quality and cost, of an evaluator that gives one or several.

    Raises
    ------
    InvalidInput
        Showing what it gave.
    """
    single = _is_pair(given)
    if not single and not isinstance(given, Iterable):
        raise _wrong(given, "a pair (quality, cost_usd), or an iterable of pairs")
    for pair in (given,) if single else given:
        if not _is_pair(pair):
            raise _wrong(pair, "a pair of numbers (quality, cost_usd)")
        quality, cost = float(pair[0]), float(pair[1])
        if not (0 <= quality <= 1 and 0 <= cost < math.inf):
            raise _wrong(pair, "quality in [0, 1], and a finite cost in US dollars, 0 or more")
        yield quality, cost


def hopeless(parts: Sequence[tuple[float, float]], others: Sequence[Matrix], worth: Worth) -> bool:
    """Whether a finished setting is better on the same requests, and neither worse nor dearer.

    The last keeps what belongs on the Pareto front. The test is Wilcoxon's signed ranks on pairs.
    """
    number = len(parts)
    if number < _LEAST_PARTS:
        return False
    mine = np.array(parts)
    for other in others:
        if len(other) <= number:
            continue
        theirs = other[:number]
        if theirs[:, 0].mean() < mine[:, 0].mean() or theirs[:, 1].mean() > mine[:, 1].mean():
            continue
        ahead = worth(theirs[:, 0], theirs[:, 1]) - worth(mine[:, 0], mine[:, 1])
        if ahead.any() and stats.wilcoxon(ahead, alternative="greater").pvalue < _HOPELESS:
            return True
    return False


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, Sequence)
        and len(given) == 2
        and all(isinstance(one, int | float | np.number) for one in given)
    )


def _wrong(value: Any, remedy: str) -> InvalidInput:
    return InvalidInput("tuning.evaluator", value, f"it must give {remedy}")
