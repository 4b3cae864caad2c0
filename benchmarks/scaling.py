"""``python -m benchmarks.scaling RATES.csv``: replicas ahead of load against replicas after it.

The file has a column ``t_s`` (seconds, a row each ten minutes) and a column of requests a second
for each series. Each rule is tuned on days 5 to 10 (fewest replica-hours within the SLA) and judged
on the four days after them, in which nothing is chosen. Writes benchmarks/results/scaling.md.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.processor import processor
from benchmarks.scaling_world import STEP_S, Hour, ask, hourly_walks, load, outcome, ready
from optimizer.capacity import outlook, required_rate
from optimizer.near_forecast import near_forecast
from optimizer.records import Matrix, Vector

RESULT = Path("benchmarks/results/scaling.md")
DAY = 86400 // STEP_S
FIRST_DAY, JUDGED_DAYS, ALL_DAYS = 4, 4, 14
STARTS_S = (30, 120, 600)
MEAN_REPLICAS = 10
DISPERSION = 10.0
SLAS = (0.01, 0.001)
FLOW_S = 180
GOAL = 0.2

USES = np.linspace(0.40, 1.20, 33)
HOLDS_S = (0, 120, 300, 600, 1800)
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
LONGER_S = (0, 600)


@dataclass(frozen=True)
class Tried:
    """A rule with all settings that were tried: what they are, and what came of them.

    Attributes
    ----------
    settings
        In words, one for each setting.
    tuned, judged
        Replica-hours, share of time and share of requests beyond capacity; shapes (settings,).
    """

    settings: tuple[str, ...]
    tuned: tuple[Vector, Vector, Vector]
    judged: tuple[Vector, Vector, Vector]

    def best(self, sla: float) -> int | None:
        """The setting with the fewest replica-hours within the SLA on the days of tuning."""
        hours, beyond, _ = self.tuned
        fits = np.flatnonzero(beyond <= sla)
        return int(fits[np.argmin(hours[fits])]) if len(fits) else None


def main() -> None:
    """Measure, and write the page."""
    file = Path(sys.argv[1])
    series = pd.read_csv(file).drop(columns="t_s").iloc[: ALL_DAYS * 144]
    began = time.perf_counter()
    rows = []
    for name in series.columns[series.tail(JUDGED_DAYS * 144).sum() > 0]:  # two end before
        rates = series[name].to_numpy()
        hours = hourly_walks(rates, FIRST_DAY)
        path = load(rates, DISPERSION, seed=1)
        per_replica = float(rates[: -JUDGED_DAYS * 144].mean()) / MEAN_REPLICAS
        for start_s in STARTS_S:
            tried = {
                "reactive": reactive(path, per_replica, start_s),
                "predictive": predictive(path, hours, per_replica, start_s),
                "clairvoyant": clairvoyant(path, per_replica, start_s),
            }
            for sla in SLAS:
                rows += list(lines_of(name, start_s, sla, tried))
            print(name, start_s, f"{time.perf_counter() - began:.0f} s", flush=True)
    RESULT.write_text("\n".join(page(file.name, rows, time.perf_counter() - began)))


def reactive(path: Vector, per_replica: float, start_s: int) -> Tried:
    """By what was measured in the last half minute."""
    return judge("", seen(path), path, per_replica, start_s)


def predictive(path: Vector, hours: dict[int, Hour], per_replica: float, start_s: int) -> Tried:
    """By that and the forecast, with the rule of `optimizer.capacity`."""
    parts = []
    for level, longer in itertools.product(LEVELS, LONGER_S):
        required = ahead_of(path, hours, float(start_s + longer), level)
        told = f", {level:.0%} of cases {start_s + longer} s ahead"
        parts.append(judge(told, required, path, per_replica, start_s))
    return joined(parts)


def clairvoyant(path: Vector, per_replica: float, start_s: int) -> Tried:
    """Knows the load to come; no strict bound, since it uses none of the violations allowed."""
    window = start_s // STEP_S + 1
    ahead = pd.Series(path[::-1]).rolling(window, min_periods=1).max().to_numpy()[::-1]
    return judge("", ahead, path, per_replica, start_s)


def seen(path: Vector) -> Vector:
    """What is measured when each half minute begins."""
    return np.r_[path[0], path[:-1]]


def ahead_of(path: Vector, hours: dict[int, Hour], lead_s: float, level: float) -> Vector:
    """The rate there must be room for; before the first day of forecasts, what is measured."""
    required = seen(path)
    near = {
        hour: near_forecast(one.rates, one.tested, lead_s, level) for hour, one in hours.items()
    }
    for step in range(FIRST_DAY * DAY, len(path)):
        hour = (step * STEP_S - FLOW_S) // 3600
        made = near.get(hour)
        age_s = float(step * STEP_S - hour * 3600)
        expected = None if made is None else outlook([(age_s, made)], lead_s)
        required[step] = required_rate(required[step], expected)
    return required


def judge(told: str, required: Vector, path: Vector, per_replica: float, start_s: int) -> Tried:
    """Try every use of replicas and every hold time."""
    grid = list(itertools.product(USES, HOLDS_S))
    uses, holds_s = np.array(grid).T
    wanted: Matrix = np.maximum(np.ceil(required[:, None] / (uses * per_replica)), 1.0)
    asked = ask(wanted, holds_s)
    serving, split = ready(asked, start_s), (ALL_DAYS - JUDGED_DAYS) * DAY
    tuned, judged = (
        outcome(asked[span], serving[span], path[span], per_replica)
        for span in (slice(FIRST_DAY * DAY, split), slice(split, None))
    )
    return Tried(
        tuple(f"use {use:.1%}, hold {hold:.0f} s{told}" for use, hold in grid), tuned, judged
    )


def joined(parts: list[Tried]) -> Tried:
    """All settings of several."""
    return Tried(
        tuple(itertools.chain.from_iterable(one.settings for one in parts)),
        _joined([one.tuned for one in parts]),
        _joined([one.judged for one in parts]),
    )


def _joined(parts: list[tuple[Vector, Vector, Vector]]) -> tuple[Vector, Vector, Vector]:
    hours, times, requests = (np.concatenate(one) for one in zip(*parts, strict=True))
    return hours, times, requests


def lines_of(
    name: str, start_s: int, sla: float, tried: dict[str, Tried]
) -> Iterator[dict[str, Any]]:
    """What each rule came to on the judged days, beside the reactive one."""
    base = tried["reactive"].best(sla)
    before = None if base is None else [float(part[base]) for part in tried["reactive"].judged]
    for rule, one in tried.items():
        chosen = one.best(sla)
        row: dict[str, Any] = {"series": name, "start_s": start_s, "sla": sla, "rule": rule}
        if chosen is None:
            yield {**row, "setting": "none of those tried keeps the SLA"}
            continue
        hours, times, requests = (float(part[chosen]) for part in one.judged)
        row |= {"setting": one.settings[chosen], "hours": hours, "times": times}
        row |= {"requests": requests}
        if before is not None:
            row["saved"] = 1.0 - hours / before[0]
            row["no_more"] = times <= before[1] and requests <= before[2]
        yield row


def page(file: str, rows: list[dict[str, Any]], took_s: float) -> list[str]:
    """The page's lines."""
    table = pd.DataFrame(rows)
    cases = len(table) // table["rule"].nunique()
    compared = table.dropna(subset=["saved"])
    ahead = compared[compared["rule"] == "predictive"]
    bound = compared[compared["rule"] == "clairvoyant"]
    no_more = ahead["no_more"].astype(bool)
    goal = int(((ahead["saved"] >= GOAL) & no_more).sum())
    lines = [
        "# Replicas ahead of load",
        "",
        f"`python -m benchmarks.scaling {file}`, {processor()}, {took_s:.0f} s. Tuned on days "
        f"{FIRST_DAY + 1} to {ALL_DAYS - JUDGED_DAYS} (fewest replica-hours with at most the SLA's "
        f"share of half minutes beyond capacity), judged on the last {JUDGED_DAYS} days. A replica "
        f"serves a {MEAN_REPLICAS}th of the mean rate before the judged days and is paid for from "
        "when it is asked for. Between ten-minute means the load is a straight line with noise "
        f"(index of dispersion {DISPERSION:g}). Rules choose how full replicas are planned (use) "
        "and how long they are held; the predictive one also its level and how far it looks ahead. "
        "Clairvoyant knows the load to come; no strict bound, since it hardly has violations.",
        "",
        f"**The goal, {GOAL:.0%} fewer replica-hours at no more violations, is met in {goal} of "
        f"{len(ahead)} cases.** Median saving {ahead['saved'].median():.1%} (from "
        f"{ahead['saved'].min():.1%} to {ahead['saved'].max():.1%}); no more violations of either "
        f"kind in {int(no_more.sum())} of {len(ahead)}, and there the median saving is "
        f"{ahead.loc[no_more, 'saved'].median():.1%}. Of {cases} cases {cases - len(ahead)} cannot "
        "be compared, since one of the two rules keeps the SLA with no setting on the days of "
        f"tuning. Clairvoyant saves {bound['saved'].median():.1%} in the median, and {GOAL:.0%} or "
        f"more in {int((bound['saved'] >= GOAL).sum())} of {len(bound)}.",
        "",
        "| series | start-up | SLA | rule | setting | replica-hours | saved | time beyond | "
        "requests beyond | no more violations |",
        "|" + "---|" * 10,
    ]
    for one in rows:
        cells = [one["series"], f"{one['start_s']} s", f"{one['sla']:.1%}", one["rule"]]
        cells.append(one["setting"])
        cells += [f"{one['hours']:.0f}"] if "hours" in one else [""]
        known = "saved" in one and one["rule"] != "reactive"
        cells += [f"{one['saved']:.1%}" if known else ""]
        cells += [f"{one['times']:.2%}", f"{one['requests']:.3%}"] if "hours" in one else ["", ""]
        cells.append(("yes" if one["no_more"] else "no") if known else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
