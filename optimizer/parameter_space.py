"""The settings that may be tried: temperature, top_p and max_tokens within ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.errors import InvalidInput
from optimizer.records import Matrix, Vector

__all__ = ["ParameterSpace"]

_COUNTED = "max_tokens"
_USUAL = {"temperature": 1.0, "top_p": 1.0}
"""What APIs take where nothing is said; without max_tokens they give as many as there may be."""


@dataclass(frozen=True)
class ParameterSpace:
    """A box, seen as the unit cube; max_tokens on a logarithmic scale.

    Parameters
    ----------
    ranges
        By name, lowest and highest of what is tuned; one or more.

    Examples
    --------
    >>> space = ParameterSpace({"temperature": (0.0, 1.5), "max_tokens": (64, 1024)})
    >>> space.place({"temperature": 0.75, "max_tokens": 256}).tolist()
    [0.5, 0.5]
    >>> space.setting(np.array([0.5, 0.25]))
    {'temperature': 0.75, 'max_tokens': 128}
    """

    ranges: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        known = (*_USUAL, _COUNTED)
        if not self.ranges or not set(self.ranges) <= set(known):
            raise InvalidInput("tuning", list(self.ranges), f"one or more of {known} with a range")
        for name, (low, high) in self.ranges.items():
            if not (np.isfinite([low, high]).all() and 0 <= low < high):
                raise InvalidInput(f"tuning.{name}", [low, high], "lowest and highest, 0 or more")
        if _COUNTED in self.ranges and not self.ranges[_COUNTED][0] >= 1:
            raise InvalidInput("tuning.max_tokens", self.ranges[_COUNTED], "1 token or more")

    @property
    def size(self) -> int:
        """How many parameters are tuned."""
        return len(self.ranges)

    def place(self, parameters: Mapping[str, Any]) -> Vector:
        """Shape (size,), in [0, 1]: where parameters lie; at the nearest end if outside.

        A parameter that is missing lies where APIs have it: 1 for temperature and top_p, the upper
        end for max_tokens.
        """
        found = np.empty(self.size)
        for index, (name, ends) in enumerate(self.ranges.items()):
            value = parameters.get(name, _USUAL.get(name, ends[1]))
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidInput(f"parameters.{name}", value, "a number")
            scaled = np.array([min(max(value, ends[0]), ends[1]), *ends], dtype=np.float64)
            if name == _COUNTED:
                scaled = np.log(scaled)
            found[index] = (scaled[0] - scaled[1]) / (scaled[2] - scaled[1])
        return found

    def places(self, settings: list[Mapping[str, Any]]) -> Matrix:
        """Shape (n, size)."""
        return np.array([self.place(one) for one in settings]).reshape(-1, self.size)

    def setting(self, place: Vector) -> dict[str, float | int]:
        """The parameters at a place, with two decimals: nobody reads more."""
        found: dict[str, float | int] = {}
        for (name, (low, high)), at in zip(self.ranges.items(), place.tolist(), strict=True):
            if name == _COUNTED:
                found[name] = round(min(max(low * (high / low) ** at, low), high))
            else:
                found[name] = min(max(round(low + at * (high - low), 2), low), high)
        return found
