"""Pictures of a search: how it went, which settings mattered, and what was traded for what."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["draw_study"]

_FOR_IMPORTANCE = 4


def draw_study(
    study: Any,
    folder: Path,
    *,
    value: Callable[[Any], float] | None = None,
    value_name: str = "Objective Value",
    objectives: tuple[str, str] | None = None,
) -> list[Path]:
    """PNG files of an Optuna study; of importance only where there are enough trials.

    Parameters
    ----------
    study
        `optimizer.policy_tuning` makes it with one objective, `optimizer.parameter_tuning` with
        two.
    folder
        Where they go.
    value
        Of a trial, more is better; needed with two objectives, where history and importance are
        those of this value.
    value_name
        Written at its axis.
    objectives
        Names of the two, which are then drawn as a Pareto front.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.trial import TrialState
    from optuna.visualization import matplotlib as plots

    told: dict[str, Any] = {} if value is None else {"target": value, "target_name": value_name}
    drawn: list[tuple[str, Callable[[], Any]]] = [
        ("history", lambda: plots.plot_optimization_history(study, **told))
    ]
    finished = [one for one in study.trials if one.state == TrialState.COMPLETE]
    if len({tuple(one.values) for one in finished}) >= _FOR_IMPORTANCE:
        drawn.append(("importance", lambda: plots.plot_param_importances(study, **told)))
    if objectives is not None and finished:
        names = list(objectives)
        drawn.append(("pareto", lambda: plots.plot_pareto_front(study, target_names=names)))
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        for name, plot in drawn:
            axes = plot()
            files.append(folder / f"{name}.png")
            axes.figure.savefig(files[-1], dpi=110, bbox_inches="tight")
            pyplot.close(axes.figure)
    return files
