"""Which experiment and variant a unit falls into: a pure function of hashes, about a microsecond.

The experiments of a decision point take disjoint stretches of one layer [0, 1), on which a unit's
place is fixed by its hash: no unit is in two of them. The variant comes from another hash, keyed by
the experiment, so that units of one variant are spread evenly over the variants of the next
experiment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

from optimizer.rollout.plan import RunningExperiment

__all__ = ["Assigner", "Assignment"]

_DIGEST_BYTES = 8
_KEY_BYTES = 64
_HASH_RANGE = float(2**64)
_LAYER = blake2b(digest_size=_DIGEST_BYTES, key=b"experiments")


class Assignment(NamedTuple):
    """Where a unit falls.

    Attributes
    ----------
    variant
        Index into the experiment's variants; None where the champion's policy chooses among
        ``arms`` (a contextual allocation).
    arms
        Indices, in the decision point's order, of the arms that may be drawn.
    propensity
        Probability of the variant, in (0, 1]; 1 where ``variant`` is None. The propensity of the
        decision is this times that of the arm among ``arms``.
    """

    experiment_id: str
    variant: int | None
    arms: tuple[int, ...]
    propensity: float


class _Stretch(NamedTuple):
    begin: float
    end: float
    share: float
    salt: blake2b
    sticky: bool
    bounds: tuple[float, ...]
    choices: tuple[Assignment, ...]
    arms: frozenset[int]


class Assigner:
    """Assigns the units of a decision point.

    Parameters
    ----------
    experiments
        Those of the routing plan.
    arm_ids
        Of the decision point's arms, in the order of probabilities.

    Attributes
    ----------
    left_out
        Ids of experiments with an arm that is not configured (any more): they get no units.

    Examples
    --------
    >>> arms = (b"a" * 8, b"b" * 8)
    >>> running = RunningExperiment("e1", 1.0, ((arms[0].hex(),), (arms[1].hex(),)), (0.5, 0.5))
    >>> assigner = Assigner((running,), arms)
    >>> assigner.variant("user-42", 0.1) == assigner.variant("user-42", 0.9)
    True
    >>> assigner.variant(None, 0.9)
    Assignment(experiment_id='e1', variant=1, arms=(1,), propensity=0.5)
    """

    def __init__(self, experiments: Sequence[RunningExperiment], arm_ids: Sequence[bytes]) -> None:
        index = {arm_id.hex(): place for place, arm_id in enumerate(arm_ids)}
        stretches = []
        left_out = []
        for one in experiments:
            if all(arm in index for arms in one.arms for arm in arms):
                stretches.append(_stretch(one, index))
            else:
                left_out.append(one.experiment_id)
        self._stretches = tuple(stretches)
        self.left_out = tuple(left_out)

    def __bool__(self) -> bool:
        return bool(self._stretches)

    def variant(
        self, unit_id: str | None, uniform: float, allowed: Collection[int] | None = None
    ) -> Assignment | None:
        """Where a unit falls, or None if it is in no experiment.

        Parameters
        ----------
        unit_id
            None where each request is a unit of its own.
        uniform
            Drawn for this request alone, in [0, 1); used for nothing else.
        allowed
            Indices of the arms this request may get, all if None. A request that could not get
            every arm of an experiment is not in it, whichever variant it would have had: else the
            variants would get different kinds of requests.
        """
        if not self._stretches:
            return None
        place = uniform if unit_id is None else _place(unit_id, _LAYER)
        for begin, end, share, salt, sticky, bounds, choices, arms in self._stretches:
            if begin <= place < end:
                if allowed is not None and not arms.issubset(allowed):
                    return None
                if unit_id is None:
                    # Where a request falls within its stretch is uniform, too.
                    point = (place - begin) / share
                else:
                    point = _place(unit_id, salt) if sticky else uniform
                return choices[bisect_right(bounds, point)]
        return None


def _stretch(one: RunningExperiment, index: dict[str, int]) -> _Stretch:
    arms = tuple(tuple(index[arm] for arm in variant) for variant in one.arms)
    every = tuple(sorted({arm for variant in arms for arm in variant}))
    choices: tuple[Assignment, ...] = (Assignment(one.experiment_id, None, every, 1.0),)
    bounds: tuple[float, ...] = ()
    if not one.contextual:
        # A variant without weight has no room between two bounds, so it is left out: nothing has
        # the propensity 0. The last bound is no bound: whatever is above the others is the last's.
        there = [(place, weight) for place, weight in enumerate(one.weights) if weight > 0]
        choices = tuple(
            Assignment(one.experiment_id, place, arms[place], weight) for place, weight in there
        )
        bounds = tuple(accumulate(weight for _, weight in there))[:-1]
    return _Stretch(
        one.begin,
        one.begin + one.share,
        one.share,
        blake2b(digest_size=_DIGEST_BYTES, key=one.experiment_id.encode()[:_KEY_BYTES]),
        one.sticky,
        bounds,
        choices,
        frozenset(every),
    )


def _place(unit_id: str, salt: blake2b) -> float:
    """In [0, 1). A copy of a hash that has its key costs two thirds of a new one."""
    copy = salt.copy()
    copy.update(unit_id.encode())
    return int.from_bytes(copy.digest(), "big") / _HASH_RANGE
