"""Signals: the ways in which an application can tell how a decision went, and what each means.

A signal has a kind, whose family says where it comes from, and a raw value in the range of that
kind. It informs one part of the outcome: quality and feedback get a value in [0, 1], cost and
latency get US dollars and seconds as they are. Several signals that inform the same part are
combined by their weights, see `serving.ledger`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optimizer.errors import InvalidInput, UnknownName

__all__ = ["CATALOGUE", "PLAIN_KINDS", "Signal", "SignalSettings", "signal_named", "signals_of"]

PLAIN_KINDS = ("quality", "cost_usd", "latency_s", "feedback")
"""The kinds that are parts of an outcome themselves, in the order of `optimizer.reward.PARTS`."""

_MOST = 1e9
_MOST_HALVES = 60.0
_UNIT_PARTS = ("quality", "feedback")


class SignalSettings(BaseModel):
    """A kind of signal at a decision point: another view of a known kind, or a kind of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Literal["quality", "cost", "latency", "feedback"] | None = Field(
        None, description="the part it informs; that of the catalogue if left out"
    )
    low: float | None = Field(
        None, allow_inf_nan=False, description="least value; it counts as 0 of quality or feedback"
    )
    high: float | None = Field(
        None, allow_inf_nan=False, description="greatest value; it counts as 1"
    )
    less_is_better: bool | None = Field(
        None, description="`low` counts as 1 and `high` as 0 of quality or feedback"
    )
    capped: bool | None = Field(
        None, description="values above `high` count as `high`; they are refused otherwise"
    )
    weight: float = Field(
        1.0,
        ge=1e-6,
        le=1e6,
        description="against other signals of the part; `quality`, `cost_usd`, `latency_s` and "
        "`feedback` have 1",
    )
    half_life_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="the weight halves with each such time between the decision and what the "
        "signal says of `occurred_at`; never if left out",
    )


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of signal.

    Attributes
    ----------
    family
        "explicit" (a user or judge said it), "implicit" (the user's behaviour), "system",
        "business", or "custom" (declared in the settings).
    part
        One of `optimizer.reward.PARTS`.
    low, high
        Range of raw values; ``high`` is None where the settings have to tell it.
    less_is_better
        For quality and feedback: whether ``low`` is worth 1 and ``high`` 0.
    capped
        Whether values above ``high`` count as ``high`` instead of being refused.
    silent_at
        The raw value that says nothing of the part: that a call did not fail is no praise.
    words
        Texts that stand for raw values.
    weight
        Above 0.
    half_life_s
        Seconds, above 0, or None.

    Examples
    --------
    >>> CATALOGUE["stars"].read(4)
    (4.0, 0.75)
    >>> CATALOGUE["thumbs"].read("down")
    (-1.0, 0.0)
    >>> CATALOGUE["error"].read(False)
    (0.0, None)
    """

    name: str
    family: str
    part: str
    low: float
    high: float | None
    less_is_better: bool = False
    capped: bool = False
    silent_at: float | None = None
    words: Mapping[str, float] | None = None
    weight: float = 1.0
    half_life_s: float | None = None

    def read(self, value: float | bool | str) -> tuple[float, float | None]:
        """The raw number of a value, and what it means for the part; None if nothing.

        Raises
        ------
        InvalidInput
            Naming the value and what this kind takes.
        """
        if self.high is None:
            raise InvalidInput(
                "kind", self.name, f"set signals.{self.name}.high at the decision point first"
            )
        raw = (self.words or {}).get(value) if isinstance(value, str) else float(value)
        if raw is None or not (self.low <= raw and (self.capped or raw <= self.high)):
            raise InvalidInput("value", value, f"for {self.name}: {self.accepted()}")
        if raw == self.silent_at:
            return raw, None
        if self.part not in _UNIT_PARTS:
            return raw, min(raw, self.high)
        share = (min(raw, self.high) - self.low) / (self.high - self.low)
        return raw, 1.0 - share if self.less_is_better else share

    def accepted(self) -> str:
        """The raw values that it takes, in words."""
        words = "".join(f", or {word!r}" for word in self.words or ())
        if self.capped:
            return f"a number from {self.low:g} on, {self.high:g} and more are the same{words}"
        return f"a number in [{self.low:g}, {self.high:g}]{words}"

    def weight_after(self, delay_s: float) -> float:
        """Its weight if it tells of a time so many seconds after the decision.

        Examples
        --------
        >>> week = 7 * 86400.0
        >>> signals_of({"stars": SignalSettings(half_life_s=week)})["stars"].weight_after(2 * week)
        0.25
        """
        if self.half_life_s is None or delay_s <= 0.0:
            return self.weight
        # At some point a weight is as good as none, and it must stay above 0.
        return float(self.weight * 0.5 ** min(delay_s / self.half_life_s, _MOST_HALVES))


CATALOGUE: Mapping[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal("quality", "explicit", "quality", 0, 1),
        Signal("feedback", "explicit", "feedback", 0, 1),
        Signal(
            "thumbs", "explicit", "feedback", -1, 1, words={"up": 1.0, "neutral": 0.0, "down": -1.0}
        ),
        Signal("stars", "explicit", "feedback", 1, 5),
        Signal("task_done", "implicit", "quality", 0, 1),
        Signal("retry", "implicit", "quality", 0, 3, less_is_better=True, capped=True),
        Signal("edit_distance", "implicit", "quality", 0, 1, less_is_better=True),
        Signal("latency_s", "system", "latency", 0, _MOST),
        Signal("cost_usd", "system", "cost", 0, _MOST),
        Signal("error", "system", "quality", 0, 1, less_is_better=True, silent_at=0),
        Signal("conversion", "business", "quality", 0, 1),
        Signal("revenue_usd", "business", "quality", 0, None, capped=True),
    )
}
"""The kinds that every decision point knows."""


def signals_of(settings: Mapping[str, SignalSettings]) -> dict[str, Signal]:
    """The kinds of a decision point: those of the catalogue and its own.

    Raises
    ------
    InvalidInput
        Naming the setting that is missing or wrong.
    """
    known = dict(CATALOGUE)
    for name, given in settings.items():
        known[name] = _signal(name, given)
    return known


def signal_named(known: Mapping[str, Signal], name: str) -> Signal:
    """The kind of that name.

    Raises
    ------
    UnknownName
        If there is none.
    """
    if name in known:
        return known[name]
    raise UnknownName(
        "kind", name, f"one of {', '.join(known)}; declare others in the decision point's `signals`"
    )


def _signal(name: str, given: SignalSettings) -> Signal:
    at = f"signals.{name}"
    if name in PLAIN_KINDS:
        raise InvalidInput(
            at, given.model_dump(exclude_unset=True), "it is a part itself and cannot be changed"
        )
    if not name.isidentifier() or len(name) > 63:
        raise InvalidInput("signals", name, "a name of at most 63 letters, digits and underscores")
    said = {key: value for key, value in given.model_dump().items() if value is not None}
    base = CATALOGUE.get(name)
    if base is None:
        for key in ("part", "low", "high"):
            if key not in said:
                raise InvalidInput(f"{at}.{key}", None, "a kind of your own needs part, low, high")
        base = Signal(name, "custom", said["part"], said["low"], said["high"])
    made = replace(base, **said)
    if made.high is not None and not made.low < made.high:
        raise InvalidInput(f"{at}.high", made.high, f"above low, which is {made.low:g}")
    if made.part not in _UNIT_PARTS and (base.part != made.part) and base.family != "custom":
        raise InvalidInput(
            f"{at}.part", made.part, f"{name} is no amount of {made.part}; use {base.part}"
        )
    if made.part not in _UNIT_PARTS and (made.low < 0 or made.less_is_better):
        raise InvalidInput(
            at, given.model_dump(exclude_unset=True), f"{made.part} is 0 or more, low already good"
        )
    return made
