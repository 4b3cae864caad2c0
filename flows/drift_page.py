"""What a drift check says to people: a page, a table, figures, and Evidently's report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from optimizer.drift_check import DriftCheck, Finding

__all__ = ["draw", "figures", "page", "table"]

_SHOWN = 30
"""Columns in Evidently's page, the least probable ones: a plot of each makes it 60 kB larger."""


def page(name: str, end: datetime, checked: DriftCheck, findings: Sequence[Finding]) -> str:
    """Markdown."""
    lines = [
        f"# Drift at {name}, until {end:%Y-%m-%d %H:%M} UTC",
        "",
        f"{checked.current_rows} decisions against {checked.reference_rows} before.",
        "",
    ]
    if checked.message:
        lines.append(f"Not checked: {checked.message}.")
    elif not findings:
        lines.append(f"No drift in {len(checked.columns)} columns, quality and anomalies.")
    lines += [f"- **{one.what}**: {one.reason}" for one in findings]
    return "\n".join(lines) + "\n"


def table(checked: DriftCheck) -> list[dict[str, Any]]:
    """One row a column, the least probable first."""
    return [
        {
            "column": one.name,
            "of": one.what,
            "test": one.test,
            "statistic": round(one.statistic, 4),
            "adjusted p": f"{one.adjusted:.3g}",
            "PSI": round(one.psi, 4),
            "drifted": one.drifted,
        }
        for one in checked.columns[:200]
    ]


def figures(checked: DriftCheck) -> dict[str, float]:
    """For MLflow."""
    told = {
        "columns": float(len(checked.columns)),
        "columns_drifted": float(sum(one.drifted for one in checked.columns)),
        "quality_dropped": float(checked.drop is not None),
        "anomalies": float(len(checked.anomalies)),
    }
    if checked.columns:
        told["largest_psi"] = max(one.psi for one in checked.columns)
    if checked.drop is not None:
        told |= {"quality_before": checked.drop.before, "quality_after": checked.drop.after}
    return told


def draw(checked: DriftCheck, reference: pd.DataFrame, current: pd.DataFrame, file: Path) -> int:
    """Write Evidently's page about the least probable columns; how many it calls drifted.

    It adjusts nothing for the number of columns, so it says more often than we do that one has.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    shown = checked.columns[:_SHOWN]
    if not shown:
        file.write_text("<p>No column could be compared.</p>", encoding="utf-8")
        return 0
    numbers = [one.name for one in shown if one.test == "ks"]
    categories = [one.name for one in shown if one.test == "chi2"]
    with warnings.catch_warnings():  # its own, on import and about empty bins
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
        before, after = (_shown(frame, numbers, categories) for frame in (reference, current))
        preset = DataDriftPreset(num_method="ks", cat_method="chisquare", threshold=0.01)
        made = Report([preset]).run(
            Dataset.from_pandas(after, definition), Dataset.from_pandas(before, definition)
        )
        made.save_html(str(file))
        first = made.dict()["metrics"][0]["value"]
    return int(first["count"])


def _shown(frame: pd.DataFrame, numbers: list[str], categories: list[str]) -> pd.DataFrame:
    part = frame[[*numbers, *categories]].copy()
    part[categories] = part[categories].astype(str)
    return part
