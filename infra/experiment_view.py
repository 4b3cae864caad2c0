"""What `llmopt experiments` shows: tables, a page with a plot, and both in MLflow."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from optimizer.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = ["draw", "list_table", "log_experiment", "page", "report_table"]

_MLFLOW_EXPERIMENT = "experiments"
_PAGE, _PICTURE = "report.md", "intervals_and_shares.png"
_COLUMNS = ("variant", "weight", "decisions", "outcomes", "mean", "difference", "p", "e", "")


def list_table(found: list[dict[str, Any]]) -> Table:
    """One row an experiment."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Experiments", title_justify="left")
    for column in ("id", "name", "decision point", "variants", "allocation", "state", "why"):
        table.add_column(column, overflow="fold")
    for one in found:
        design = one["design"]
        state = f"{one['state']}, promoted" if one["promoted"] else one["state"]
        cells = (
            one["id"],
            design["name"],
            design["decision_point"],
            ", ".join(variant["name"] for variant in design["variants"]),
            f"{design['allocation']}, {100 * design['share']:g} %",
            state,
            one["reason"],
        )
        table.add_row(*(escape(cell) for cell in cells))
    return table


def report_table(found: dict[str, Any]) -> Table:
    """One row a variant; the answer of ``GET /v1/experiments/{id}`` for people."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(_title(found)), title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("variant", "") else "right")
    winner = found["report"]["winner"]
    for cells in _rows(found):
        style = "bold" if cells[0] == winner else None
        table.add_row(*(escape(cell) for cell in cells), style=style)
    return table


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    report, design = found["report"], found["experiment"]["design"]
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS), *_rows(found)]
    body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    level = f"{100 * (1 - report['alpha']):g} %"
    how = (
        "Intervals and p hold however often they are looked at"
        if design["analysis"] == "sequential"
        else f"The test is read once, at {report['planned']} outcomes in each variant"
    )
    lines = [
        f"# {_title(found)}",
        "",
        f"{datetime.fromtimestamp(report['at'], UTC):%Y-%m-%d %H:%M} UTC, after "
        f"{report['ran_s'] / 3600:.1f} h of running",
        "",
        f"**{report['sentence']}**",
        "",
        *body,
        "",
        f"{how}; together they hold at {level}. Where units stay with their variant, a unit counts "
        "once, with the mean over its decisions.",
        "",
        f"![differences from the baseline, and shares]({_PICTURE})",
        "",
    ]
    return "\n".join(lines)


def draw(found: dict[str, Any], file: Path) -> None:
    """Plot the intervals of the differences over time, and where decisions went, as a PNG."""
    from matplotlib.figure import Figure

    report = found["report"]
    looks = report["history"]
    times: list[Any] = [datetime.fromtimestamp(look["at"], UTC) for look in looks]
    names = [variant["name"] for variant in report["variants"]]
    figure = Figure(figsize=(9, 7), layout="constrained")
    differences, shares = figure.subplots(2, 1, sharex=True)
    for place, name in enumerate(names[1:]):
        _draw_intervals(
            differences, times, [look["differences"][place] for look in looks], name, place + 1
        )
    differences.axhline(0.0, color="black", linewidth=0.8, label=names[0])
    differences.set_ylabel(f"{report['measure']} minus that of {names[0]}")
    differences.legend()
    there = [(time, look) for time, look in zip(times, looks, strict=True) if look["shares"]]
    if there:
        shares.stackplot(
            [time for time, _ in there],
            *([look["shares"][place] for _, look in there] for place in range(len(names))),
            labels=names,
            colors=[f"C{place}" for place in range(len(names))],
            alpha=0.6,
        )
        shares.legend(loc="upper left")
    shares.set_ylim(0, 1)
    shares.set_ylabel("share of decisions")
    figure.autofmt_xdate()
    figure.savefig(file, dpi=110)


def log_experiment(found: dict[str, Any], address: str, folder: Path | None) -> dict[str, Any]:
    """Store page and plot as a run in MLflow, and in a folder if one is named.

    Returns
    -------
    ``files``, the paths written, and ``mlflow``, the URL of the run; None if MLflow is away.

    Raises
    ------
    InvalidInput
        If the folder cannot be written.
    """
    from registry.reports import log_report

    experiment, report = found["experiment"], found["report"]
    with TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        try:
            place.mkdir(parents=True, exist_ok=True)
            files = [place / _PAGE, place / _PICTURE]
            files[0].write_text(page(found), encoding="utf-8")
            draw(found, files[1])
        except OSError as error:
            raise InvalidInput("folder", str(place), f"a folder to write to ({error})") from error
        try:
            url = log_report(
                address,
                _MLFLOW_EXPERIMENT,
                files,
                _figures(report),
                {
                    "experiment": experiment["id"],
                    "decision_point": experiment["design"]["decision_point"],
                    "state": experiment["state"],
                    "answer": report["answer"],
                    "winner": report["winner"] or "",
                },
                run_name=f"{experiment['design']['name']} ({experiment['id']})",
            )
        except Unavailable:
            url = None
        return {"files": [str(file) for file in files] if folder else [], "mlflow": url}


def _title(found: dict[str, Any]) -> str:
    experiment = found["experiment"]
    design = experiment["design"]
    return (
        f"{design['name']} on {design['decision_point']}: {found['report']['measure']}, "
        f"{experiment['state']}"
    )


def _rows(found: dict[str, Any]) -> list[list[str]]:
    marks = {None: "", True: "better", False: "worse"}
    return [
        [
            one["name"],
            f"{100 * one['weight']:.1f} %",
            str(one["decisions"]),
            str(one["outcomes"]),
            "" if one["mean"] is None else f"{one['mean']:.4g}",
            _interval(one["difference"]),
            "" if one["p_corrected"] is None else f"{one['p_corrected']:.2g}",
            "" if one["e_value"] is None else f"{one['e_value']:.3g}",
            marks[one["better"]] if place else "baseline",
        ]
        for place, one in enumerate(found["report"]["variants"])
    ]


def _interval(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    text = f"{found['value']:+.4g}"
    if found["low"] is None:
        return text
    return f"{text} ({found['low']:+.4g} to {found['high']:+.4g})"


def _figures(report: dict[str, Any]) -> dict[str, float]:
    """Numbers of a run in MLflow, which allows few characters in their names: by place."""
    known: dict[str, float] = {}
    for place, one in enumerate(report["variants"]):
        known[f"outcomes/{place}"] = one["outcomes"]
        known[f"decisions/{place}"] = one["decisions"]
        for name in ("mean", "p_corrected", "e_value"):
            known |= {} if one[name] is None else {f"{name}/{place}": one[name]}
        for end, value in (one["difference"] or {}).items():
            known |= {} if value is None else {f"difference_{end}/{place}": value}
    return known


def _draw_intervals(
    axes: Axes,
    times: list[Any],
    differences: list[dict[str, Any] | None],
    name: str,
    colour: int,
) -> None:
    there = [
        (time, one)
        for time, one in zip(times, differences, strict=True)
        if one is not None and one["low"] is not None
    ]
    if not there:
        return
    at = [time for time, _ in there]
    axes.plot(at, [one["value"] for _, one in there], label=name, color=f"C{colour}")
    axes.fill_between(
        at,
        [one["low"] for _, one in there],
        [one["high"] for _, one in there],
        color=f"C{colour}",
        alpha=0.2,
        linewidth=0,
    )
