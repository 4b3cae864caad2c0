"""The watch beside a policy: whether it predicts well, and is worth more than a fixed choice.

It is told each row of the ledger before the policy learns from it, and is as much a function of the
ledger as the policy is: the same rows give the same figures and the same alarms, however they are
cut, and a learner that is killed finds its watch where it was. It changes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from optimizer.control_regret import ControlRegret
from optimizer.drift_stream import GRID, DriftStream
from optimizer.errors import IncompatibleState
from optimizer.prediction_accuracy import PredictionAccuracy
from optimizer.records import Indices, Matrix, Vector
from optimizer.reward import Objective

__all__ = ["Alarm", "LearnerWatch", "WatchedRows"]

_RECENT = 1000
"""Rows after which recent figures start anew; those before stand until the next are complete."""

_WARM_UP = 300
"""Rewards of an arm, or of all arms together, before their streams are watched: a policy that has
hardly begun is wrong without any change of the world."""

_REST = 500
"""Rewards after an alarm in which none follows: one change is one alarm."""

_ALARMS_KEPT = 20


class Alarm(msgspec.Struct, frozen=True):
    """Something has changed.

    Attributes
    ----------
    position
        The row of the ledger at which it was seen.
    stream
        ``reward`` (it falls), ``residual`` (reward minus what was predicted), or ``memory``: the
        policy itself has seen the change, and forgot.
    arm
        Id of the arm in hexadecimal; "" of all arms together.
    detector
        ``adwin`` or ``page_hinkley``; ``cusum`` of ``memory``.
    before, after
        Mean of the stream before, and of its last 100 numbers; of ``memory`` 1, and the share of
        what was learned of the arm that is kept.
    error_before, error_after
        Mean absolute residual of all arms together, likewise.
    """

    position: int
    stream: str
    arm: str
    detector: str
    before: float
    after: float
    error_before: float
    error_after: float

    @property
    def worse(self) -> bool:
        """Whether predictions have become worse: only then is there something to forget."""
        return self.error_after > self.error_before


@dataclass(frozen=True, slots=True)
class WatchedRows:
    """Who decided, row by row; beside the observations that a policy learns from.

    Attributes
    ----------
    arm_ids
        Ids of the arms that were drawn.
    control
        Whether control drew them.
    propensities
        With which probability.
    positions
        In the ledger, rising.
    """

    arm_ids: Sequence[bytes]
    control: Sequence[bool]
    propensities: Sequence[float]
    positions: Sequence[int]

    def cut(self, start: int, stop: int) -> WatchedRows:
        """The rows from ``start`` up to ``stop``."""
        part = slice(start, stop)
        return WatchedRows(
            self.arm_ids[part], self.control[part], self.propensities[part], self.positions[part]
        )


class LearnerWatch:
    """Figures and alarms of one policy.

    Parameters
    ----------
    arm_ids
        The arms that may be chosen; rows of others count for predictions only.
    objective
        Makes the reward of outcomes.
    control_share
        The probability of control, in [0, 1).

    Attributes
    ----------
    since
        The position of the ledger that it starts after.
    alarms
        The newest, the latest last.
    raised
        Alarms so far.
    """

    def __init__(
        self, arm_ids: Sequence[bytes], objective: Objective, control_share: float
    ) -> None:
        self._arm_ids = tuple(arm_ids)
        self._place = {arm_id: index for index, arm_id in enumerate(self._arm_ids)}
        self._weights = objective.reward_weights()
        self._used = np.flatnonzero(self._weights)
        self._control_share = control_share
        self.start(0)

    def start(self, position: int) -> None:
        """Forget everything, and begin after a position of the ledger."""
        number = len(self._arm_ids)
        self.since = position
        self.alarms: list[Alarm] = []
        self.raised = 0
        self._seen = self._rest = 0
        self._learned = [0] * (number + 1)
        self._accuracy = [PredictionAccuracy(), PredictionAccuracy(), PredictionAccuracy()]
        self._regret = ControlRegret(number, self._control_share)
        self._rewards = [DriftStream("down") for _ in range(number + 1)]
        self._residuals = [DriftStream("both") for _ in range(number + 1)]
        self._errors = DriftStream("both")

    def see(self, rows: WatchedRows, expected: Matrix, before: Matrix, after: Matrix) -> None:
        """Take rows in that the policy has not learned from yet.

        Parameters
        ----------
        rows
            Who decided.
        expected
            Shape (n, targets): what the policy foresees, NaN where nothing.
        before, after
            Shape (n, targets): what is known, as in `optimizer.policies.sums.Rows`.
        """
        count, start = len(rows.positions), 0
        while start < count:
            stop = min(count, start + _RECENT - self._seen % _RECENT)
            part = slice(start, stop)
            self._see(rows.cut(start, stop), expected[part], before[part], after[part])
            self._seen += stop - start
            if self._seen % _RECENT == 0:
                self._accuracy[1:] = self._accuracy[2], PredictionAccuracy()
            start = stop

    def _see(self, rows: WatchedRows, expected: Matrix, before: Matrix, after: Matrix) -> None:
        was, reward, guess = (self._reward(table) for table in (before, after, expected))
        complete = np.isnan(was) & ~np.isnan(reward)
        seen = np.column_stack(
            [
                np.where(np.isnan(before[:, :4]), after[:, :4], np.nan),
                np.where(complete, reward, np.nan),
            ]
        )
        foreseen = np.column_stack([expected[:, :4], guess])
        self._accuracy[0].add(foreseen, seen)
        self._accuracy[2].add(foreseen, seen)
        arm = np.array([self._place.get(arm_id, -1) for arm_id in rows.arm_ids])
        counted = np.flatnonzero(complete & (arm >= 0))
        if not counted.size:
            return
        control = np.array(rows.control, dtype=bool)
        odds = np.where(control, rows.propensities, 1.0)
        self._regret.add(arm[counted], control[counted].tolist(), odds[counted], reward[counted])
        self._look(rows.positions, counted, arm, reward, reward - guess)

    def _look(
        self,
        positions: Sequence[int],
        counted: Indices,
        arms: Indices,
        rewards: Vector,
        residuals: Vector,
    ) -> None:
        """Feed the streams, row by row, until and after alarms."""
        everyone = len(self._arm_ids)
        learned = self._learned
        known = ~np.isnan(residuals)
        reward_units = _units(rewards)
        residual_units = _units(residuals)
        drawn, predicted = arms.tolist(), known.tolist()
        for row in counted.tolist():
            arm, reward, residual = drawn[row], reward_units[row], residual_units[row]
            learned[everyone] += 1
            learned[arm] += 1
            if self._rest:
                self._rest -= 1
                continue
            if predicted[row] and learned[everyone] > _WARM_UP:
                self._errors.update(abs(residual))
            for place in (everyone, arm):
                if learned[place] <= _WARM_UP:
                    continue
                found = "reward" if (told := self._rewards[place].update(reward)) else ""
                if not found and predicted[row]:
                    told = self._residuals[place].update(residual)
                    found = "residual" if told else ""
                if found:
                    self._raise(positions[row], found, place, told)
                    break

    def _raise(self, position: int, stream: str, place: int, detector: str) -> None:
        streams = self._rewards if stream == "reward" else self._residuals
        before, after = streams[place].means() or (0.0, 0.0)
        arm = self._arm_ids[place].hex() if place < len(self._arm_ids) else ""
        errors = self._errors.means() or (0.0, 0.0)
        self._tell(Alarm(position, stream, arm, detector, before, after, *errors))
        for one in (*self._rewards, *self._residuals, self._errors):
            one.reset()
        self._rest = _REST

    def forgot(self, position: int, arm_id: bytes, kept: float) -> None:
        """The policy forgot after the row at ``position``, which has been seen, and no later one.

        Parameters
        ----------
        arm_id
            The arm of which it forgot most.
        kept
            The share of what was learned of it that still counts, in [0, 1].
        """
        errors = self._errors.means() or (0.0, 0.0)
        self._tell(Alarm(position, "memory", arm_id.hex(), "cusum", 1.0, kept, *errors))

    def _tell(self, alarm: Alarm) -> None:
        self.alarms = [*self.alarms, alarm][-_ALARMS_KEPT:]
        self.raised += 1

    def _reward(self, targets: Matrix) -> Vector:
        """Shape (n,): NaN while a part that counts is missing."""
        used = self._used
        reward: Vector = (targets[:, used] * self._weights[used]).sum(axis=1)
        return reward

    def figures(self) -> dict[str, Any]:
        """All of it, as plain numbers.

        ``recent`` are the last 1,000 to 2,000 rows. See `PredictionAccuracy.figures` and
        `ControlRegret.figures`.
        """
        regret = self._regret.figures()
        if (best := regret.pop("best_arm", None)) is not None:
            regret["best_arm"] = self._arm_ids[best].hex()
        full = self._accuracy[1].figures()
        return {
            "since": self.since,
            "rows": self._seen,
            "predictions": self._accuracy[0].figures(),
            "recent": full or self._accuracy[2].figures(),
            "regret": regret,
            "alarms_raised": self.raised,
            "alarms": [{**msgspec.to_builtins(one), "worse": one.worse} for one in self.alarms],
        }

    def to_bytes(self) -> bytes:
        """Everything seen, the same bytes for the same rows."""
        streams = (*self._rewards, *self._residuals, self._errors)
        return msgspec.msgpack.encode(
            {
                "belongs": self._belongs(),
                "since": self.since,
                "seen": [self._seen, self._rest, self.raised, *self._learned],
                "alarms": self.alarms,
                "accuracy": [one.state() for one in self._accuracy],
                "regret": self._regret.state(),
                "streams": [one.state() for one in streams],
            }
        )

    def from_bytes(self, data: bytes) -> None:
        """Take what `to_bytes` gave.

        Raises
        ------
        IncompatibleState
            If it cannot be read, or is of other arms, another reward, or another control share.
        """
        try:
            content = msgspec.msgpack.decode(data)
            if content["belongs"] != self._belongs():
                raise IncompatibleState("the watch of other arms, reward or control share")
            self._seen, self._rest, self.raised, *self._learned = content["seen"]
            self.since = content["since"]
            self.alarms = msgspec.convert(content["alarms"], list[Alarm])
            for one, state in zip(self._accuracy, content["accuracy"], strict=True):
                one.restore(state)
            self._regret.restore(content["regret"])
            streams = (*self._rewards, *self._residuals, self._errors)
            for stream, state in zip(streams, content["streams"], strict=True):
                stream.restore(state)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise IncompatibleState(f"not a watch: {error}") from error

    def _belongs(self) -> bytes:
        """Names what the figures are of."""
        weights, share = self._weights.tobytes(), np.float64(self._control_share).tobytes()
        return b"1" + b"".join(self._arm_ids) + weights + share


def _units(values: Vector) -> list[int]:
    """Numbers in [-1, 1] on the grid of `DriftStream`; 0 for NaN."""
    clipped = np.clip(np.nan_to_num(values), -1.0, 1.0)
    units: list[int] = np.rint(clipped / GRID).astype(int).tolist()
    return units
