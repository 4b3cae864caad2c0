"""Recorded outcomes: what every model did on every request, for replays and the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from optimizer.errors import InvalidRecording
from optimizer.records import Indices, Matrix, Outcome
from optimizer.reward import Objective, Weights

__all__ = ["RecordedOutcomes"]

_REQUIRED = ("request_id", "prompt", "task", "model", "quality", "cost_usd")


@dataclass(frozen=True)
class RecordedOutcomes:
    """What every model did on every request.

    Attributes
    ----------
    request_ids, prompts, tasks
        Length n, in the order of the recording.
    models
        Length k.
    quality, cost_usd
        Shape (n, k); quality in [0, 1], cost in US dollars.
    latency_s
        Shape (n, k) in seconds, or None where the recording has none.
    users
        Length n: who asked, empty where not told; None where the recording has no ``user_id``.
    """

    request_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    quality: Matrix
    cost_usd: Matrix
    latency_s: Matrix | None
    users: tuple[str, ...] | None = None

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> RecordedOutcomes:
        """Read the long table, one row for each (request, model).

        Raises
        ------
        InvalidRecording
            Naming the column, or the request and model, that is missing or out of range.
        """
        for column in _REQUIRED:
            if column not in frame:
                raise InvalidRecording(
                    column, None, f"a recording has the columns {', '.join(_REQUIRED)}"
                )
        if frame.empty:
            raise InvalidRecording("rows", 0, "a recording has at least one request")
        frame = frame.assign(request_id=frame.request_id.astype(str), model=frame.model.astype(str))
        twice = frame.duplicated(["request_id", "model"])
        if twice.any():
            row = frame[twice].iloc[0]
            raise InvalidRecording(
                f"{row.request_id}, {row.model}", "two rows", "one row for each (request, model)"
            )
        first = frame.drop_duplicates("request_id")
        models = tuple(sorted(frame.model.unique()))
        table = {
            name: _pivot(frame, name, first.request_id, models)
            for name in ("quality", "cost_usd", "latency_s")
        }
        quality, cost, latency = table["quality"], table["cost_usd"], table["latency_s"]
        assert quality is not None and cost is not None
        if ((quality < 0) | (quality > 1)).any():
            raise InvalidRecording("quality", float(quality.max()), "quality lies in [0, 1]")
        if (cost < 0).any():
            raise InvalidRecording("cost_usd", float(cost.min()), "a cost is 0 or more")
        if latency is not None and (latency < 0).any():
            raise InvalidRecording("latency_s", float(latency.min()), "a latency is 0 or more")
        return cls(
            tuple(first.request_id),
            tuple(first.prompt.fillna("").astype(str)),
            tuple(first.task.fillna("").astype(str)),
            models,
            quality,
            cost,
            latency,
            tuple(first.user_id.fillna("").astype(str)) if "user_id" in first else None,
        )

    def objective(self, weights: Weights) -> Objective:
        """Weights with the caps of a replay: the dearest and the slowest model's mean."""
        cost_cap = float(self.cost_usd.mean(axis=0).max())
        latency_cap = None if self.latency_s is None else float(self.latency_s.mean(axis=0).max())
        return Objective(weights, cost_cap or None, latency_cap or None)

    def outcome(self, request: int, model: int) -> Outcome:
        """What ``model`` did on ``request``, both by index."""
        latency = None if self.latency_s is None else float(self.latency_s[request, model])
        return Outcome(
            float(self.quality[request, model]), float(self.cost_usd[request, model]), latency
        )

    def take(self, rows: Indices) -> RecordedOutcomes:
        """The requests at these indices, in their order."""
        latency = self.latency_s
        return RecordedOutcomes(
            tuple(self.request_ids[row] for row in rows),
            tuple(self.prompts[row] for row in rows),
            tuple(self.tasks[row] for row in rows),
            self.models,
            self.quality[rows],
            self.cost_usd[rows],
            None if latency is None else latency[rows],
            None if self.users is None else tuple(self.users[row] for row in rows),
        )

    def only(self, models: Sequence[str]) -> RecordedOutcomes:
        """The same requests with these of the models, in their order."""
        columns = [self.models.index(model) for model in models]
        latency = self.latency_s
        return replace(
            self,
            models=tuple(models),
            quality=self.quality[:, columns],
            cost_usd=self.cost_usd[:, columns],
            latency_s=None if latency is None else latency[:, columns],
        )

    def followed_by(self, later: RecordedOutcomes) -> RecordedOutcomes:
        """These requests, then those of ``later``.

        Raises
        ------
        InvalidRecording
            If ``later`` has other models, or latency where this has none or the other way round.
        """
        if later.models != self.models:
            raise InvalidRecording(
                "models", list(later.models), f"the same models are needed: {list(self.models)}"
            )
        mine, theirs = self.latency_s, later.latency_s
        if (mine is None) != (theirs is None):
            raise InvalidRecording(
                "latency_s",
                None if theirs is None else "recorded",
                "both recordings have latencies, or neither has",
            )
        return RecordedOutcomes(
            self.request_ids + later.request_ids,
            self.prompts + later.prompts,
            self.tasks + later.tasks,
            self.models,
            np.vstack([self.quality, later.quality]),
            np.vstack([self.cost_usd, later.cost_usd]),
            None if mine is None or theirs is None else np.vstack([mine, theirs]),
            None if self.users is None and later.users is None else _told(self) + _told(later),
        )


def _told(recorded: RecordedOutcomes) -> tuple[str, ...]:
    return ("",) * len(recorded.prompts) if recorded.users is None else recorded.users


def _pivot(
    frame: pd.DataFrame, column: str, requests: pd.Series[str], models: tuple[str, ...]
) -> Matrix | None:
    if column not in frame or frame[column].isna().all():
        if column == "latency_s":
            return None
        raise InvalidRecording(column, None, "the column has no values")
    wide = frame.pivot(index="request_id", columns="model", values=column)
    wide = wide.reindex(index=requests, columns=list(models)).astype(float)
    if wide.isna().to_numpy().any():
        row, col = np.argwhere(wide.isna().to_numpy())[0]
        raise InvalidRecording(
            column, None, f"missing for request {requests.iloc[row]} and model {models[col]}"
        )
    values: Matrix = wide.to_numpy()
    if not np.isfinite(values).all():
        raise InvalidRecording(column, "infinite", "values are finite")
    return values
