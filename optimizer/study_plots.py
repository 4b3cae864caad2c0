"""Pictures of a search: how it went, and which settings mattered."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["draw_study"]

_FOR_IMPORTANCE = 4


def draw_study(study: Any, folder: Path) -> list[Path]:
    """PNG files of an Optuna study; of importance only where there are enough trials.

    Parameters
    ----------
    study
        `optuna.Study` with one objective.
    folder
        Where they go.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    drawn: list[tuple[str, Callable[[Any], Any]]] = [("history", plots.plot_optimization_history)]
    finished = [one for one in study.trials if one.state == TrialState.COMPLETE]
    if len({one.value for one in finished}) >= _FOR_IMPORTANCE:
        drawn.append(("importance", plots.plot_param_importances))
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        for name, plot in drawn:
            axes = plot(study)
            files.append(folder / f"{name}.png")
            axes.figure.savefig(files[-1], dpi=110, bbox_inches="tight")
            pyplot.close(axes.figure)
    return files
