"""Everything that drift looks at in one window, put together, with a sentence for each finding."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pandas as pd

from optimizer.anomalies import scores
from optimizer.drift import LEAST_ROWS, ColumnDrift, compare
from optimizer.drift_settings import DriftSettings
from optimizer.quality_drop import QualityDrop, find_drop

__all__ = ["FIGURES", "Anomaly", "DriftCheck", "Finding", "check"]

FIGURES = ("latency", "cost", "errors", "quality")
"""Mean of a minute; latency and cost as logarithms, whose distribution is closer to normal."""

_FLOORS = np.array([0.05, 0.05, 0.01, 0.01])
_LEAST_PER_MINUTE = 5
_SHARES = {"columns": 0.5, "quality": 0.5}
"""How the share of false alarms is divided; minutes that stand out are too rare to take one."""


class Anomaly(msgspec.Struct, frozen=True):
    """A figure of which several minutes stand out: how many, and the farthest, in sigmas."""

    figure: str
    minutes: int
    sigmas: float


class Finding(msgspec.Struct, frozen=True):
    """One kind of drift that was found.

    Attributes
    ----------
    what
        Field of `optimizer.drift_settings.DriftRules`.
    reason
        A sentence for people.
    evidence
        The figures that it rests on.
    """

    what: str
    reason: str
    evidence: dict[str, Any]


class DriftCheck(msgspec.Struct, frozen=True):
    """What was found in one window.

    Attributes
    ----------
    reference_rows, current_rows
        Decisions that were looked at.
    message
        Why nothing could be checked; "" if something could.
    """

    reference_rows: int
    current_rows: int
    columns: tuple[ColumnDrift, ...] = ()
    drop: QualityDrop | None = None
    anomalies: tuple[Anomaly, ...] = ()
    message: str = ""

    def findings(self) -> list[Finding]:
        """What rules act upon."""
        found = []
        for what in ("features", "decisions", "predictions"):
            drifted = [one for one in self.columns if one.what == what and one.drifted]
            if drifted:
                names = ", ".join(f"{one.name} (PSI {one.psi:.2f})" for one in drifted[:5])
                more = f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
                evidence = {"columns": [msgspec.to_builtins(one) for one in drifted[:20]]}
                found.append(Finding(what, f"{what} have changed: {names}{more}", evidence))
        if (drop := self.drop) is not None:
            reason = f"quality went from {drop.before:.3f} to {drop.after:.3f}"
            found.append(Finding("quality", reason, msgspec.to_builtins(drop)))
        if self.anomalies:
            told = ", ".join(
                f"{one.figure} in {one.minutes} minutes (up to {one.sigmas:.0f} sigmas)"
                for one in self.anomalies
            )
            evidence = {"anomalies": [msgspec.to_builtins(one) for one in self.anomalies]}
            found.append(Finding("anomalies", f"unusual: {told}", evidence))
        return found


def check(reference: pd.DataFrame, current: pd.DataFrame, settings: DriftSettings) -> DriftCheck:
    """Compare a window with a reference.

    Parameters
    ----------
    reference, current
        One row a decision, in time order. Columns ``decided_at``, ``arm``, ``error`` (0 or 1),
        ``quality``, ``cost_usd``, ``latency_s`` (NaN where unknown); ``feature__<name>`` for each
        feature, and ``prediction`` where a quality was foreseen.
    settings
        When an alarm is raised.
    """
    rows = len(reference), len(current)
    if min(rows) < LEAST_ROWS:
        return DriftCheck(
            *rows,
            message=f"{rows[0]} decisions in the reference and {rows[1]} in the window, "
            f"{LEAST_ROWS} are needed in each",
        )
    what = {name: "features" for name in map(str, reference) if name.startswith("feature__")}
    what |= {"arm": "decisions"}
    if "prediction" in reference and "prediction" in current:
        what |= {"prediction": "predictions"}
    columns = compare(
        reference,
        current,
        what,
        settings.false_alarm_share * _SHARES["columns"],
        settings.smallest_psi,
    )
    return DriftCheck(
        *rows,
        tuple(columns),
        _quality(reference, current, settings),
        tuple(_anomalies(reference, current, settings)),
    )


def _quality(
    reference: pd.DataFrame, current: pd.DataFrame, settings: DriftSettings
) -> QualityDrop | None:
    before, after = (frame[frame["quality"].notna()] for frame in (reference, current))
    arms = pd.Index(before["arm"].unique())
    after = after[after["arm"].isin(arms)]
    return find_drop(
        before["quality"].to_numpy(float),
        arms.get_indexer(before["arm"]),
        after["quality"].to_numpy(float),
        arms.get_indexer(after["arm"]),
        settings.quality_drop,
        settings.false_alarm_share * _SHARES["quality"],
    )


def _anomalies(
    reference: pd.DataFrame, current: pd.DataFrame, settings: DriftSettings
) -> list[Anomaly]:
    before, after = _minutes(reference), _minutes(current)
    used = [name for name in FIGURES if before[name].notna().any() and after[name].notna().any()]
    if not used or after.empty:
        return []
    places = [FIGURES.index(name) for name in used]
    found = scores(
        settings.anomaly_method, before[used].to_numpy(), after[used].to_numpy(), _FLOORS[places]
    )
    names = used if found.shape[1] == len(used) else ["latency, cost, errors, quality together"]
    far = found >= settings.anomaly_sigmas
    return [
        Anomaly(name, int(far[:, place].sum()), float(np.nanmax(found[:, place])))
        for place, name in enumerate(names)
        if far[:, place].sum() >= settings.anomaly_minutes
    ]


def _minutes(decisions: pd.DataFrame) -> pd.DataFrame:
    """`FIGURES` of each minute with enough decisions."""
    figures = pd.DataFrame(
        {
            "minute": decisions["decided_at"].dt.floor("min"),
            "latency": np.log(decisions["latency_s"] + 1e-3),
            "cost": np.log(decisions["cost_usd"] + 1e-7),
            "errors": decisions["error"],
            "quality": decisions["quality"],
        }
    )
    grouped = figures.groupby("minute")[list(FIGURES)]
    return grouped.mean().where(grouped.count() >= _LEAST_PER_MINUTE)
