"""A picture of recent rates and of what is forecast after them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.forecasting import Forecasts
from optimizer.near_forecast import STEP_S
from optimizer.records import Vector

__all__ = ["draw_forecast"]

_SHOWN_STEPS = 3 * 144
_STEP = timedelta(seconds=STEP_S)


def draw_forecast(rates: Vector, made_at: datetime, made: Forecasts, file: Path) -> None:
    """Draw the last three days and the next one into a PNG file.

    Means of the next 1, 6 and 24 hours are level lines over these hours, each with its interval;
    the next three hours also stand step by step, with the margin that capacity is asked for with.

    Parameters
    ----------
    rates
        Requests a second, means over ten minutes, the last of which ends at ``made_at``.
    made_at
        With time zone.
    made
        The forecast.
    file
        Where the picture goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.5))
    shown = np.asarray(rates, dtype=float)[-_SHOWN_STEPS:]
    axes.plot(_times(made_at - len(shown) * _STEP, len(shown)), shown, color="0.35", label="came")
    for one, colour in zip(made.horizons, ("C0", "C1", "C2"), strict=True):
        span = _times(made_at, 2, timedelta(hours=one.hours))
        axes.plot(span, [one.rate] * 2, color=colour, label=f"mean of the next {one.hours} h")
        if one.low is not None and one.high is not None:
            axes.fill_between(span, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
    if made.near is not None:
        near = np.array(made.near.rates)
        at = _times(made_at, len(near))
        room = np.expm1(np.log1p(near) + made.near.margin)
        axes.plot(at, near, color="C3", label="step by step")
        axes.plot(at, room, color="C3", linestyle=":", label=f"room, {made.near.level:.0%}")
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    figure.autofmt_xdate()
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _times(start: datetime, count: int, step: timedelta = _STEP) -> Any:
    """A list of times; matplotlib takes them, its annotations only numbers."""
    return [start + number * step for number in range(count)]
