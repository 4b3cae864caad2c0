"""What the arms did in the last 1, 5, 15 and 60 minutes of event time.

An event is a change of what is known about one decision, and its time is the decision's. Each model
has tumbling panes of 10 s; a sliding window is the sum of the panes that it covers, the one that
contains the present included. All sums are integers (money, quality and seconds in fixed point), so
adding and taking away are exact: the order of events inside the allowed lateness makes no
difference, and a retraction leaves nothing behind.

The watermark is the start of the oldest pane that may still change. It follows the latest event by
the allowed lateness. An event of an older pane is counted as late and left out; so is a correction
of what a pane that is gone had held.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from optimizer.errors import IncompatibleState, InvalidInput
from optimizer.records import Outcome
from optimizer.rollout.quantiles import bin_of, nearest_rank

__all__ = ["COLUMNS", "LATENESS_S", "PANE_S", "WINDOWS_MIN", "ArmWindows", "WindowFeatures"]

WINDOWS_MIN = (1, 5, 15, 60)
PANE_S = 10
LATENESS_S = 3600
"""The longest window: its panes are there anyway, so what came about them may as well count."""

_POINT_BITS = 64
"""Fixed point: a value is cut off below 2 ** -64, 5e-20 of a dollar or second."""
_FORMAT = 1
_NOTHING = Outcome()


@dataclass(frozen=True, slots=True)
class WindowFeatures:
    """One model over one window; None for what no outcome of the window tells.

    Attributes
    ----------
    count
        Decisions of which anything is known, a whole number.
    quality_mean
        In [0, 1].
    cost_usd_mean, cost_usd_sum
        US dollars.
    latency_mean_s
        Seconds.
    latency_p50_s, latency_p95_s
        Seconds: the values of rank ``ceil(0.5 n)`` and ``ceil(0.95 n)`` of the n known, to 1 %.
    error_rate
        Share in [0, 1] of quality exactly 0, among the outcomes whose quality is known.
    """

    count: float = 0.0
    quality_mean: float | None = None
    cost_usd_mean: float | None = None
    cost_usd_sum: float = 0.0
    latency_mean_s: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    error_rate: float | None = None


COLUMNS = tuple(
    f"{field.name}_{minutes}m" for minutes in WINDOWS_MIN for field in fields(WindowFeatures)
)
"""Names of all figures of an arm, in the order of `WINDOWS_MIN` and of `WindowFeatures`."""


class ArmWindows:
    """Windows of each model of one decision point.

    Parameters
    ----------
    lateness_s
        How far behind the latest event another may be and still count: whole panes, 0 or more.

    Attributes
    ----------
    late
        Events left out since the beginning, because their panes were closed.

    Raises
    ------
    InvalidInput
        If the lateness is no multiple of `PANE_S` seconds.

    Examples
    --------
    >>> windows = ArmWindows()
    >>> windows.update("small", 1000.0, Outcome(), Outcome(quality=1.0, cost_usd=0.25))
    >>> windows.update("small", 1100.0, Outcome(), Outcome(quality=0.0, cost_usd=0.5))
    >>> small = windows.values(["small"], now_s=1100.0)["small"]
    >>> small[1].count, small[5].quality_mean, small[5].cost_usd_sum, small[5].error_rate
    (1.0, 0.5, 0.75, 0.5)
    """

    def __init__(self, lateness_s: int = LATENESS_S) -> None:
        if lateness_s < 0 or lateness_s % PANE_S:
            raise InvalidInput("lateness_s", lateness_s, f"a multiple of {PANE_S} seconds")
        self.lateness_s = lateness_s
        self.late = 0
        self._latest: int | None = None
        self._models: dict[str, _Model] = {}

    @property
    def watermark_s(self) -> float:
        """Event time, Unix seconds, before which nothing changes any more; at first -inf."""
        return -math.inf if self._latest is None else float(self._first_open() * PANE_S)

    def update(
        self,
        model: str,
        at_s: float,
        before: Outcome,
        after: Outcome,
        received_s: float = math.inf,
    ) -> None:
        """Take in a change of what is known about one decision.

        Parameters
        ----------
        model
            The decision's model.
        at_s
            When the decision was made, Unix time in seconds: the same for all its changes.
        before, after
            As in `optimizer.records.Observation`.
        received_s
            When the change was stored. The watermark does not pass it, so that one machine whose
            clock is ahead doesn't make everybody else late.
        """
        index = int(at_s // PANE_S)
        self._advance(int(min(at_s, received_s) // PANE_S))
        state = self._models.get(model)
        if state is None:
            state = self._models[model] = _Model()
        fresh = before == _NOTHING
        if index < self._first_open() or not (fresh or index in state.panes):
            self.late += 1
        else:
            state.change(index, before, after)

    def values(self, models: Iterable[str], now_s: float) -> dict[str, dict[int, WindowFeatures]]:
        """The windows of some models that end with the pane of ``now_s`` (Unix time, seconds).

        A window of w minutes so reaches back between 60 w - 10 and 60 w seconds.

        Returns
        -------
        By model and minutes; counts of 0 for a model without any outcome.
        """
        last = int(now_s // PANE_S)
        unseen = {minutes: WindowFeatures() for minutes in WINDOWS_MIN}
        return {
            model: state.values(last) if (state := self._models.get(model)) else dict(unseen)
            for model in models
        }

    def to_bytes(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        models = {
            model: {str(index): pane.to_json() for index, pane in state.panes.items()}
            for model, state in self._models.items()
            if state.panes
        }
        content = {
            "format": _FORMAT,
            "pane_s": PANE_S,
            "lateness_s": self.lateness_s,
            "latest": self._latest,
            "late": self.late,
            "models": models,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, state: bytes) -> ArmWindows:
        """Go on from `to_bytes`.

        Raises
        ------
        IncompatibleState
            If it is of another format or of panes of another length.
        """
        content = json.loads(state)
        kind = content.get("format"), content.get("pane_s")
        if kind != (_FORMAT, PANE_S):
            raise IncompatibleState(
                f"windows of format and pane {kind}, not {(_FORMAT, PANE_S)}; fold the ledger again"
            )
        windows = cls(content["lateness_s"])
        windows.late, windows._latest = content["late"], content["latest"]
        for model, panes in content["models"].items():
            windows._models[model] = _Model(
                {int(index): _Sums.from_json(pane) for index, pane in panes.items()}
            )
        return windows

    def _first_open(self) -> int:
        assert self._latest is not None
        return self._latest - self.lateness_s // PANE_S

    def _advance(self, index: int) -> None:
        if self._latest is None or index > self._latest:
            self._latest = index
            kept = max(self.lateness_s, WINDOWS_MIN[-1] * 60) // PANE_S
            for state in self._models.values():
                state.forget(index - kept)


class _Sums:
    """Whole numbers that add up: of one pane, or of all panes of a window."""

    __slots__ = ("bins", "numbers")

    def __init__(
        self, numbers: list[int] | None = None, bins: dict[int, int] | None = None
    ) -> None:
        self.numbers = [0] * 8 if numbers is None else numbers
        """Outcomes; known qualities, their sum, errors; costs, sum; latencies, sum."""
        self.bins: dict[int, int] = {} if bins is None else bins
        """Latencies by `bin_of`."""

    def add(self, numbers: Iterable[int], bins: Iterable[tuple[int, int]], sign: int) -> None:
        self.numbers = [old + sign * new for old, new in zip(self.numbers, numbers, strict=True)]
        for index, count in bins:
            left = self.bins.get(index, 0) + sign * count
            if left:
                self.bins[index] = left
            else:
                del self.bins[index]

    def features(self) -> WindowFeatures:
        count, qualities, quality, errors, costs, cost, latencies, latency = self.numbers
        return WindowFeatures(
            count=float(count),
            quality_mean=_mean(quality, qualities),
            cost_usd_mean=_mean(cost, costs),
            cost_usd_sum=cost / (1 << _POINT_BITS),
            latency_mean_s=_mean(latency, latencies),
            latency_p50_s=nearest_rank(self.bins, 50),
            latency_p95_s=nearest_rank(self.bins, 95),
            error_rate=errors / qualities if qualities > 0 else None,
        )

    def to_json(self) -> list[object]:
        return [self.numbers, sorted(self.bins.items())]

    @classmethod
    def from_json(cls, content: tuple[list[int], list[tuple[int, int]]]) -> _Sums:
        return cls(content[0], dict(content[1]))


class _Sliding:
    """A window: always the sum of those panes that it covers."""

    def __init__(self, minutes: int) -> None:
        self._length = minutes * 60 // PANE_S
        self._last: int | None = None
        self.sums = _Sums()

    def covers(self, index: int) -> bool:
        return self._last is not None and self._last - self._length < index <= self._last

    def move(self, last: int, panes: Mapping[int, _Sums]) -> None:
        if last == self._last:
            return
        before = {index for index in panes if self.covers(index)}
        self._last = last
        after = {index for index in panes if self.covers(index)}
        for indices, sign in ((before - after, -1), (after - before, 1)):
            for index in indices:
                pane = panes[index]
                self.sums.add(pane.numbers, pane.bins.items(), sign)


class _Model:
    """Panes by their number since 1970, and the windows over them."""

    def __init__(self, panes: dict[int, _Sums] | None = None) -> None:
        self.panes: dict[int, _Sums] = {} if panes is None else panes
        self._windows = {minutes: _Sliding(minutes) for minutes in WINDOWS_MIN}
        self._pending: dict[int, _Sums] = {}
        """What panes have got since the windows were last looked at, and they have not."""

    def change(self, index: int, before: Outcome, after: Outcome) -> None:
        pane = self.panes.setdefault(index, _Sums())
        for outcome, sign in ((before, -1), (after, 1)):
            if outcome != _NOTHING:
                numbers, bins = _counted(outcome)
                pane.add(numbers, bins, sign)
                self._pending.setdefault(index, _Sums()).add(numbers, bins, sign)
        if not any(pane.numbers):
            del self.panes[index]

    def forget(self, first_kept: int) -> None:
        self._settle()
        for index in [index for index in self.panes if index < first_kept]:
            pane = self.panes.pop(index)
            for window in self._covering(index):
                window.sums.add(pane.numbers, pane.bins.items(), -1)

    def values(self, last: int) -> dict[int, WindowFeatures]:
        self._settle()
        for window in self._windows.values():
            window.move(last, self.panes)
        return {minutes: window.sums.features() for minutes, window in self._windows.items()}

    def _settle(self) -> None:
        for index, pending in self._pending.items():
            for window in self._covering(index):
                window.sums.add(pending.numbers, pending.bins.items(), 1)
        self._pending.clear()

    def _covering(self, index: int) -> Iterator[_Sliding]:
        return (window for window in self._windows.values() if window.covers(index))


def _counted(outcome: Outcome) -> tuple[list[int], list[tuple[int, int]]]:
    """What an outcome adds, in the order of `_Sums`."""
    quality, cost_usd, latency_s = outcome.quality, outcome.cost_usd, outcome.latency_s
    numbers = [
        1,
        int(quality is not None),
        _fixed(quality),
        int(quality == 0.0),
        int(cost_usd is not None),
        _fixed(cost_usd),
        int(latency_s is not None),
        _fixed(latency_s),
    ]
    return numbers, [] if latency_s is None else [(bin_of(latency_s), 1)]


def _fixed(value: float | None) -> int:
    if not value:
        return 0
    numerator, denominator = value.as_integer_ratio()
    return (numerator << _POINT_BITS) // denominator


def _mean(total: int, count: int) -> float | None:
    return total / (count << _POINT_BITS) if count > 0 else None
