"""The picture of `llmopt pareto`: cost against quality, with intervals and the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_front"]

_LOG_FROM = 10.0
"""Costs that span more than so many times are drawn on a logarithmic axis."""

_COLOURS = {
    "front": "#0b7a4b",
    "perhaps front": "#5bb98c",
    "perhaps dominated": "#e0a030",
    "dominated": "#c2453c",
    "unknown": "#9a9a9a",
}
_MARKERS = {"arm": "o", "policy": "D"}
_LINE = "#34495e"
_NEAR_RIGHT = 0.8
"""Names of points beyond this share of the width stand to the left of them."""


def draw_front(result: dict[str, Any], file: Path) -> None:
    """Draw it as a PNG.

    Parameters
    ----------
    result
        As `infra.pareto_cli.run_pareto` gives it.

    Raises
    ------
    InvalidInput
        If no candidate has a known cost and quality, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [
        one
        for one in result["candidates"]
        if all(name in one and one[name]["value"] is not None for name in ("quality", "cost_usd"))
    ]
    if not points:
        raise InvalidInput("plot", str(file), "no quality and cost are known to be drawn")
    points.sort(key=lambda one: (one["cost_usd"]["value"], -one["quality"]["value"]))
    figure = Figure(figsize=(9.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _scale(axes, points)
    _line(axes, points)
    for one in points:
        _point(axes, one)
    _names(axes, points)
    _dress(axes, result, points)
    try:
        figure.savefig(file, dpi=140, format="png")
    except OSError as error:
        raise InvalidInput("plot", str(file), f"a file to write to ({error})") from error


def _scale(axes: Axes, points: list[dict[str, Any]]) -> None:
    costs = [1000 * one["cost_usd"]["value"] for one in points]
    logarithmic = min(costs) > 0 and max(costs) > _LOG_FROM * min(costs)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 2.2, max(costs) * 2.6)
    else:
        room = 0.15 * (max(costs) - min(costs) or max(costs) or 1.0)
        axes.set_xlim(max(0.0, min(costs) - room), max(costs) + 2 * room)
    qualities = [one["quality"]["value"] for one in points]
    ends = [
        one["quality"][end]
        for one in points
        for end in ("low", "high")
        if one["quality"][end] is not None
    ]
    top, bottom = max(qualities + ends), min(qualities + ends)
    room = 0.06 * (top - bottom or 0.1)
    axes.set_ylim(bottom - room, top + room)


def _line(axes: Axes, points: list[dict[str, Any]]) -> None:
    """The most quality at each cost, by point estimates: a staircase."""
    costs: list[float] = []
    qualities: list[float] = []
    for one in points:
        if not qualities or one["quality"]["value"] > qualities[-1]:
            costs.append(1000 * one["cost_usd"]["value"])
            qualities.append(one["quality"]["value"])
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    costs, qualities = [costs[0], *costs, right], [bottom, *qualities, qualities[-1]]
    axes.step(costs, qualities, where="post", color=_LINE, lw=1.4, ls=(0, (5, 2)), zorder=2)
    axes.fill_between(costs, qualities, bottom, step="post", color=_LINE, alpha=0.045, lw=0)


def _point(axes: Axes, one: dict[str, Any]) -> None:
    cost, quality = one["cost_usd"], one["quality"]
    x, y, colour = 1000 * cost["value"], quality["value"], _COLOURS[one["standing"]]
    left = axes.get_xlim()[0]
    across = None
    if cost["low"] is not None:
        low = max(1000 * cost["low"], left)
        across = [[max(x - low, 0.0)], [max(1000 * cost["high"] - x, 0.0)]]
    up = None
    if quality["low"] is not None:
        up = [[max(y - quality["low"], 0.0)], [max(quality["high"] - y, 0.0)]]
    axes.errorbar(x, y, yerr=up, xerr=across, color=colour, lw=1.5, capsize=3, alpha=0.65, zorder=3)
    axes.plot(
        x,
        y,
        _MARKERS[one["kind"]],
        ms=10,
        color=colour,
        mec="white",
        mew=1.3,
        zorder=4,
    )


def _names(axes: Axes, points: list[dict[str, Any]]) -> None:
    """A name beside each point, above or below it so that neighbours' names don't meet."""
    from matplotlib.patheffects import withStroke

    taken: list[tuple[float, float]] = []
    for one in points:
        place = axes.transData.transform((1000 * one["cost_usd"]["value"], one["quality"]["value"]))
        x, y = float(place[0]), float(place[1])
        offset = next((lift for lift in (9, -17, 22, -30, 35, -43) if _free(x, y + lift, taken)), 9)
        taken.append((x, y + offset))
        to_left = float(axes.transAxes.inverted().transform(place)[0]) > _NEAR_RIGHT
        name = one["name"].rpartition("/")[2]
        late = one.get("latency_s")
        more = "" if late is None or late["value"] is None else f"  {late['value']:.2g} s"
        axes.annotate(
            name + more,
            (1000 * one["cost_usd"]["value"], one["quality"]["value"]),
            xytext=(-9 if to_left else 9, offset),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold" if one["kind"] == "policy" else "normal",
            color="#222222",
            ha="right" if to_left else "left",
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> bool:
    return all(abs(y - other_y) > 12 or abs(x - other_x) > 160 for other_x, other_y in taken)


def _dress(axes: Axes, result: dict[str, Any], points: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    axes.set_xlabel("USD per 1,000 requests (less is better)")
    axes.set_ylabel("quality (more is better)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(
        f"{result['source']}\n{result['decisions']:,} decisions; bars are intervals that hold "
        f"together at {100 * result['level']:g} %, at any time",
        loc="left",
        fontsize=10,
        color="#333333",
    )
    shown = {one["standing"] for one in points}
    handles = [
        Line2D([], [], marker="s", ls="", ms=8, color=colour, label=standing)
        for standing, colour in _COLOURS.items()
        if standing in shown
    ]
    kinds = {one["kind"] for one in points}
    handles += [
        Line2D([], [], marker=marker, ls="", ms=7, color="#777777", label=kind)
        for kind, marker in _MARKERS.items()
        if kind in kinds
    ]
    handles.append(
        Line2D([], [], color=_LINE, lw=1.4, ls=(0, (5, 2)), label="front by point estimates")
    )
    figure = axes.figure
    assert figure is not None
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, frameon=False
    )
