"""``python -m benchmarks.forecast RATES.csv``: forecasts of a recorded series, rolling origin.

The file has a column ``t_s`` (seconds, a row each ten minutes) and a column of requests a second
for each series. Methods are compared over the four days before the last four; the one that won is
judged over the last four, hour by hour, beside naive ones. Writes benchmarks/results/forecast.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.processor import processor
from optimizer.forecast_intervals import interval_widths
from optimizer.forecasting import HORIZONS_H, METHODS, backtest
from optimizer.records import Matrix

LEVEL = 0.9
LEAST, MOST = 0.85, 0.95
TESTED_H = 96
RESULT = Path("benchmarks/results/forecast.md")


def main() -> None:
    """Measure, and write the page."""
    file = Path(sys.argv[1])
    series = pd.read_csv(file).drop(columns="t_s")
    began = time.perf_counter()
    lines = [
        "# Forecasts of recorded traffic",
        "",
        f"`python -m benchmarks.forecast {file.name}`, {processor()}. Error an hour ahead "
        f"(WAPE) over the last {TESTED_H} hours; chosen is the method that erred least over "
        f"the {TESTED_H} hours before. Coverage of intervals at {LEVEL:.0%} by adaptive conformal "
        "inference, each made of the errors known then; its step was chosen on the days before.",
        "",
        f"| series | chosen before | chosen | {' | '.join(METHODS)} | "
        + " | ".join(f"covered, {hours} h" for hours in HORIZONS_H)
        + " |",
        "|" + "---|" * (3 + len(METHODS) + len(HORIZONS_H)),
    ]
    for name in series.columns[series.tail(6 * TESTED_H).sum() > 0]:  # two end before
        rates = series[name].to_numpy()
        tested = {method: backtest(rates, method, 2 * TESTED_H) for method in METHODS}
        before = {method: wape(found[1][:TESTED_H]) for method, found in tested.items()}
        after = {method: wape(found[1][-TESTED_H:]) for method, found in tested.items()}
        chosen = min(METHODS, key=lambda method: before[method])
        covered = [coverage(tested[chosen][hours], hours) for hours in HORIZONS_H]
        cells = [name, chosen, f"{after[chosen]:.3f}"]
        cells += [f"{after[method]:.3f}" for method in METHODS]
        cells += [f"{share:.1%}" for share in covered]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"What luck does: made random walks, each with an interval that covers {LEVEL:.0%} of all "
        f"cases. Covered at {LEAST:.0%} to {MOST:.0%} of the origins of one such span are "
        + ", ".join(f"{within_by_luck(hours):.0%} at {hours} h" for hours in HORIZONS_H)
        + ". Neighbouring origins a day ahead share nearly all of their hours: four days are few.",
        "",
        f"All of it took {time.perf_counter() - began:.0f} s.",
        "",
    ]
    RESULT.write_text("\n".join(lines))
    print("\n".join(lines))


def wape(pairs: Matrix) -> float:
    """Sum of absolute errors divided by the sum of rates."""
    return float(np.abs(pairs[:, 0] - pairs[:, 1]).sum() / pairs[:, 1].sum())


def coverage(pairs: Matrix, hours: int) -> float:
    """Share of truths of the last hours that lay in an interval made of what was known."""
    said, came = np.log1p(pairs).T
    covered = np.abs(said - came) <= interval_widths(pairs, hours, LEVEL)[: len(pairs)]
    return float(covered[-TESTED_H + hours - 1 :].mean())


def within_by_luck(hours: int, walks: int = 4000) -> float:
    """Share of random walks that a right interval covers neither too seldom nor too often."""
    steps = np.random.default_rng(0).normal(size=(walks, TESTED_H + 1))
    walk = np.cumsum(steps, axis=1)
    means = np.lib.stride_tricks.sliding_window_view(walk[:, 1:], hours, axis=1).mean(axis=2)
    errors = np.abs(means - walk[:, : means.shape[1]])
    covered = (errors <= np.quantile(errors, LEVEL)).mean(axis=1)
    return float(((covered >= LEAST) & (covered <= MOST)).mean())


if __name__ == "__main__":
    main()
