"""How a training looks: Markdown, table rows and the calibration plot."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from flows.artifacts import markdown_table

if TYPE_CHECKING:
    from optimizer.quality_trial import Trial
    from serving.quality_training import Trained

__all__ = ["CORRELATION", "draw", "page", "table"]

CORRELATION = 0.7
"""What one would like to have; noise of the requests can put it out of reach."""

_CALIBRATION = 0.1


def page(name: str, end: datetime, trained: Trained, message: str, version: int | None) -> str:
    """What came of a training, as Markdown."""
    serves = "none serves" if version is None else f"version {version} serves"
    lines = [
        f"# Quality model of {name}",
        "",
        f"{end:%Y-%m-%d %H:%M} UTC; {serves}.",
        "",
        f"{message[:1].upper()}{message[1:]}.",
    ]
    if trained.trial is None:
        return "\n".join([*lines, ""])
    trial, own = trained.trial, trained.trial.scores["model"]
    lines += [
        "",
        f"Trained on {trial.trained} decisions, judged on the {trial.judged} newest.",
        "",
        *_verdicts(trial),
        "",
    ]
    lines += markdown_table(table(trial))
    if own.pearson is None or own.pearson < CORRELATION:
        lines += [
            "",
            "A correlation is capped by what a request does not tell: with chances of 0.4 to 0.6 "
            "no model of single answers that are good or bad comes near 1.",
        ]
    return "\n".join([*lines, ""])


def table(trial: Trial) -> list[dict[str, str]]:
    """One row a model or baseline."""
    return [
        {
            "by": name,
            "Pearson": _number(one.pearson),
            "Spearman": _number(one.spearman),
            "AUC": _number(one.auc),
            "squared error": _number(one.brier, 4),
            "calibration error": _number(one.calibration_error),
        }
        for name, one in trial.scores.items()
    ]


def draw(bins: list[tuple[float, float, int]], file: Path) -> None:
    """Plot mean quality against mean prediction, a point a bin, as a PNG."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="tab:grey", linestyle="--")
    axis.plot([one[0] for one in bins], [one[1] for one in bins], marker="o")
    axis.set(xlabel="predicted quality", ylabel="quality", xlim=(0, 1), ylim=(0, 1))
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def _verdicts(trial: Trial) -> list[str]:
    own, simple = trial.scores["model"], trial.scores["mean of the arm on the task"]
    correlated = own.pearson is not None and own.pearson > CORRELATION
    calibrated = own.calibration_error < _CALIBRATION
    said = [
        f"- {_light(correlated)} Correlation with the truth {_number(own.pearson)}, wanted above "
        f"{CORRELATION}.",
        f"- {_light(calibrated)} Calibration error {_number(own.calibration_error)}, wanted under "
        f"{_CALIBRATION}.",
    ]
    if own.brier > simple.brier:
        said.append("- 🟠 The mean of the arm on the task predicts better than the model.")
    return said


def _light(good: bool) -> str:
    return "🟢" if good else "🟠"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
