"""Logged decisions: what was drawn, with which probability, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from optimizer.errors import InvalidRecording
from optimizer.records import Indices, Matrix, Outcome, Vector
from optimizer.reward import Objective, Weights

__all__ = ["FEATURE_PREFIX", "LoggedDecisions", "LoggedRow"]

FEATURE_PREFIX = "feature_"
OUTCOMES = ("quality", "cost_usd", "latency_s", "feedback")
_REQUIRED = ("decided_at", "model", "propensity")


class LoggedRow(NamedTuple):
    """One decision, as `LoggedDecisions.from_rows` takes it."""

    features: Vector
    arm: int
    propensity: float
    decided_at: float
    outcome: Outcome
    role: str | None = None


@dataclass(frozen=True)
class LoggedDecisions:
    """Decisions in time order, a row each; an outcome that is not known is NaN.

    Attributes
    ----------
    features
        Shape (n, d), finite, as each decision saw them; the first column is 1 everywhere.
    arms
        Shape (n,): index into ``arm_names`` of the arm that was drawn.
    propensities
        Shape (n,), in (0, 1]: the probability with which it was drawn.
    decided_at
        Shape (n,): Unix time in seconds, not decreasing.
    quality, feedback
        Shape (n,), in [0, 1] or NaN.
    cost_usd, latency_s
        Shape (n,), US dollars and seconds, 0 or more or NaN.
    arm_names
        Length k: the model of each arm, or a longer name where a model has several arms.
    roles
        Shape (n,): who decided ("champion", "control"); None where the log does not tell.
    """

    features: Matrix
    arms: Indices
    propensities: Vector
    decided_at: Vector
    quality: Vector
    cost_usd: Vector
    latency_s: Vector
    feedback: Vector
    arm_names: tuple[str, ...]
    roles: npt.NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        rows = len(self.arms)
        if rows == 0:
            raise InvalidRecording("rows", 0, "an evaluation needs at least one logged decision")
        if self.features.ndim != 2 or self.features.shape[1] == 0:
            raise InvalidRecording("features", self.features.shape, "a table with a column or more")
        for name in ("features", "propensities", "decided_at", *OUTCOMES):
            if len(getattr(self, name)) != rows:
                raise InvalidRecording(name, len(getattr(self, name)), f"{rows} rows, as of arms")
        _refuse("features", self.features, ~np.isfinite(self.features), "features are finite")
        _refuse("model", self.arms, (self.arms < 0) | (self.arms >= self.arm_count), "a known arm")
        drawn = (self.propensities > 0) & (self.propensities <= 1)
        _refuse(
            "propensity",
            self.propensities,
            ~drawn,
            "the probability with which the arm was drawn, in (0, 1]",
        )
        if self.roles is not None and len(self.roles) != rows:
            raise InvalidRecording("role", len(self.roles), f"{rows} rows, as of arms")
        later = np.diff(self.decided_at, prepend=-np.inf) >= 0
        _refuse("decided_at", self.decided_at, ~later, "known, and in the order of time")
        for name in OUTCOMES:
            bounded = name in ("quality", "feedback")
            values = getattr(self, name)
            wrong = (values < 0) | (values > (1.0 if bounded else np.finfo(float).max))
            _refuse(name, values, wrong, "in [0, 1]" if bounded else "finite and 0 or more")

    def __len__(self) -> int:
        return len(self.arms)

    @property
    def arm_count(self) -> int:
        """Number of arms, k."""
        return len(self.arm_names)

    def rows(self, chosen: npt.NDArray[np.bool_] | slice) -> LoggedDecisions:
        """Some of the rows, in the same order.

        Raises
        ------
        InvalidRecording
            If none is left.
        """
        names = ("features", "arms", "propensities", "decided_at", *OUTCOMES)
        kept = {name: getattr(self, name)[chosen] for name in names}
        return replace(self, **kept, roles=None if self.roles is None else self.roles[chosen])

    def of_role(self, role: str) -> LoggedDecisions | None:
        """Decisions of one role; None if there is none, or the log does not tell roles."""
        if self.roles is None or role not in self.roles:
            return None
        return self.rows(self.roles == role)

    def after(self, seconds: float) -> LoggedDecisions | None:
        """Decisions made after a Unix time; None if there is none."""
        later = self.decided_at > seconds
        return self.rows(later) if later.any() else None

    def outcome(self, row: int) -> Outcome:
        """What is known about one decision."""
        values = (float(getattr(self, name)[row]) for name in OUTCOMES)
        return Outcome(*(None if np.isnan(value) else value for value in values))

    def objective(self, weights: Weights) -> Objective:
        """Weights with caps of this log, where no decision point gives any.

        A cap is the largest mean over arms, as in a replay; none where nothing is known.
        """
        caps = []
        for values in (self.cost_usd, self.latency_s):
            means = [
                float(values[rows].mean())
                for arm in range(self.arm_count)
                if (rows := (self.arms == arm) & np.isfinite(values)).any()
            ]
            caps.append(max(means, default=0.0) or None)
        return Objective(weights, *caps)

    def rewards(self, objective: Objective) -> Vector:
        """Shape (n,): the reward of each decision; NaN while a part that counts is missing."""
        shares = objective.shares()
        known = [
            getattr(self, name) if share else np.zeros(len(self))
            for name, share in zip(OUTCOMES, shares, strict=True)
        ]
        result: Vector = objective.rewards(known[0], known[1], known[2]) + shares[3] * known[3]
        return result

    @classmethod
    def from_rows(cls, rows: Sequence[LoggedRow], arm_names: tuple[str, ...]) -> LoggedDecisions:
        """Put rows, in time order, into columns."""
        known = np.array([row.outcome.values() for row in rows], dtype=np.float64)
        return cls(
            np.array([row.features for row in rows]),
            np.array([row.arm for row in rows], dtype=np.int64),
            np.array([row.propensity for row in rows]),
            np.array([row.decided_at for row in rows]),
            **dict(zip(OUTCOMES, known.T, strict=True)),
            arm_names=arm_names,
            roles=_roles([row.role for row in rows]),
        )

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, arm_names: tuple[str, ...] | None = None
    ) -> LoggedDecisions:
        """Read a table with one row a decision; it is put in the order of time.

        Parameters
        ----------
        frame
            Columns ``decided_at`` (date and time, or Unix seconds), ``model``, ``propensity``; what
            is known of ``quality, cost_usd, latency_s, feedback``; ``role``, if known; and any
            number of columns whose names begin with ``feature_``. A column of ones is put first
            unless it is there.
        arm_names
            All arms, in order; those that were drawn, by name, if None.

        Raises
        ------
        InvalidRecording
            Naming the column and the row that is missing or out of range.
        """
        for column in _REQUIRED:
            if column not in frame:
                raise InvalidRecording(
                    column, None, f"logged decisions have the columns {', '.join(_REQUIRED)}"
                )
        if frame["model"].isna().any():
            raise InvalidRecording("model", None, "every row names the model that was drawn")
        frame = frame.assign(decided_at=_seconds(frame["decided_at"]))
        frame = frame.sort_values("decided_at", kind="stable")
        models = frame["model"].astype(str)
        names = tuple(sorted(models.unique())) if arm_names is None else arm_names
        unknown = ~models.isin(names)
        if unknown.any():
            raise InvalidRecording("model", models[unknown].iloc[0], f"one of {list(names)}")
        arms = models.map({name: index for index, name in enumerate(names)})
        columns = [name for name in frame if str(name).startswith(FEATURE_PREFIX)]
        features = np.column_stack(
            [np.empty((len(frame), 0)), *(_numbers(frame[c]) for c in columns)]
        )
        if not columns or not (features[:, 0] == 1.0).all():
            features = np.column_stack([np.ones(len(frame)), features])
        known = {
            name: _numbers(frame[name]) if name in frame else np.full(len(frame), np.nan)
            for name in OUTCOMES
        }
        return cls(
            features,
            arms.to_numpy(dtype=np.int64),
            _numbers(frame["propensity"]),
            _numbers(frame["decided_at"]),
            arm_names=names,
            roles=_roles(frame["role"].tolist()) if "role" in frame else None,
            **known,
        )

    def to_frame(self) -> pd.DataFrame:
        """The table that `from_frame` reads."""
        frame = pd.DataFrame(
            {
                "decided_at": pd.to_datetime(self.decided_at, unit="s", utc=True),
                "model": np.array(self.arm_names)[self.arms],
                "propensity": self.propensities,
                **{name: getattr(self, name) for name in OUTCOMES},
                **({} if self.roles is None else {"role": self.roles}),
            }
        )
        names = [f"{FEATURE_PREFIX}{index}" for index in range(self.features.shape[1])]
        return pd.concat([frame, pd.DataFrame(self.features, columns=names)], axis=1)


def _roles(roles: Sequence[str | None]) -> npt.NDArray[np.str_] | None:
    """None where it is not told of every row."""
    told = [role for role in roles if isinstance(role, str)]
    return np.array(told) if len(told) == len(roles) else None


def _seconds(column: pd.Series[float]) -> Vector:
    """Unix seconds of a column of dates or of numbers; NaN where there is none."""
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column, dtype=np.float64)
    try:
        dates = pd.to_datetime(column, utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise InvalidRecording(
            "decided_at", str(column.iloc[0]), f"a date and time in ISO 8601, or seconds: {error}"
        ) from None
    return np.asarray((dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), dtype=np.float64)


def _numbers(column: pd.Series[float]) -> Vector:
    """A column as numbers; NaN where it is empty."""
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = numbers.isna() & column.notna()
    if wrong.any():
        raise InvalidRecording(str(column.name), str(column[wrong].iloc[0]), "a number is needed")
    return np.asarray(numbers, dtype=np.float64)


def _refuse(name: str, values: Matrix | Indices, wrong: npt.NDArray[np.bool_], rule: str) -> None:
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        value = values[row][wrong[row]][0] if values.ndim == 2 else values[row]
        raise InvalidRecording(f"{name}, row {row + 1}", value.item(), rule)
