"""What `llmopt replay` shows: lines below the table, the picture and the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.comparison import COLUMNS, comparison_lines
from infra.replays import ReplayRequest, ReplayRun
from optimizer.errors import InvalidInput
from optimizer.replay_seeds import Curve
from optimizer.replay_summary import FLOOR_WINDOW, SETTLED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report_folder", "sentences", "title", "write_report"]

_PICTURE, _PAGE = "replay.png", "replay.html"


def title(request: ReplayRequest, run: ReplayRun) -> str:
    """What was replayed, under which conditions."""
    conditions = {
        "rewards late by": None if request.delay is None else f"{request.delay} requests",
        "rewards missing": f"{100 * request.missing:g} %" if request.missing else None,
        "half-way the world becomes": request.shift,
        "half-way arrives": request.new_arm,
        "budget": None if request.budget_usd is None else f"{request.budget_usd:g} USD",
        "quality floor": request.quality_floor,
        "a point of quality is worth": None
        if request.quality_price_usd is None
        else f"{request.quality_price_usd:g} USD",
        "features": None if request.features == "small" else request.features,
        "traits of models": None if request.traits is None else request.traits.name,
        "frozen after": None
        if request.frozen_after is None
        else f"{request.frozen_after} requests",
    }
    told = [f"{name} {value}" for name, value in conditions.items() if value is not None]
    return "; ".join([f"{request.data}: {run.result['requests']} requests", *told])


def sentences(request: ReplayRequest, run: ReplayRun) -> list[str]:
    """What the table does not hold, in words."""
    lines = [
        _regret(name, one, several=len(run.policies) > 1) for name, one in run.policies.items()
    ]
    if "static" in run.policies:
        lines.append(f"static always takes the dearest model, {run.static_model}")
    for name, one in run.policies.items():
        lines += [f"{name}: {line}" for line in _conditional(one)]
        difference = one.get("reward_minus_first")
        if difference is not None:
            first = next(iter(run.policies))
            lines.append(f"{name}: reward minus that of {first} {_signed(difference)}")
    last_seed = request.seed + request.seeds - 1
    if request.seeds == 1:
        lines.append(f"seed {request.seed}")
    else:
        covers = run.result["seeds"]["covers"]
        lines.append(f"means over seeds {request.seed} to {last_seed}; ± marks {covers}")
    return lines


def report_folder(folder: Path) -> Path:
    """Make the folder of a report, before time is spent on what shall go there.

    Raises
    ------
    InvalidInput
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("report", str(folder), f"a folder to write to ({error})") from error
    return folder


def write_report(request: ReplayRequest, run: ReplayRun, folder: Path) -> dict[str, str]:
    """Write the curves as PNG, and one HTML page with table and curves that needs no other file.

    Returns
    -------
    The paths, as ``png`` and ``html``.

    Raises
    ------
    InvalidInput
        If they cannot be written.
    """
    memory = BytesIO()
    _drawn(run).savefig(memory, dpi=120, format="png")
    picture, page = folder / _PICTURE, folder / _PAGE
    try:
        picture.write_bytes(memory.getvalue())
        page.write_text(_page(request, run, memory.getvalue()), encoding="utf-8")
    except OSError as error:
        raise InvalidInput("report", str(folder), f"a folder to write to ({error})") from error
    return {"png": str(picture), "html": str(page)}


def _regret(name: str, one: Mapping[str, Any], *, several: bool) -> str:
    timing = one["decision_us"]
    return (
        (f"{name}: " if several else "")
        + f"regret {100 * one['regret_share']:.2f} % of the oracle's reward; a decision took "
        f"{timing['p50']:.0f} µs (p50), {timing['p99']:.0f} µs (p99)"
    )


def _conditional(one: Mapping[str, Any]) -> list[str]:
    """What only some conditions bring."""
    lines = []
    if "rewards" in one:
        rewards = one["rewards"]
        lines.append(
            f"{rewards['learned']:g} rewards learned, {rewards['lost']:g} lost, "
            f"{rewards['not_learned_yet']:g} not learned by the end"
        )
    if "budget_usd" in one:
        lines.append(f"spent {one['spent_usd']:.4f} of {one['budget_usd']:g} USD")
    if "quality_share" in one:
        lines.append(
            f"{100 * one['quality_share']:.2f} % of the quality of the best single model, "
            f"{100 * one['saving']:.1f} % cheaper (the best mix of two models at this quality: "
            f"{100 * one['mix_saving']:.1f} %); below the floor in "
            f"{100 * one['floor_violation_rate']:.0f} % of the windows of {FLOOR_WINDOW} requests"
        )
    if "net_value_usd" in one:
        ours, single, oracle = (
            1000 * one[name]
            for name in ("net_value_usd", "best_single_net_value_usd", "oracle_net_value_usd")
        )
        lines.append(
            f"quality at its price minus cost: {ours:.3f} USD per 1,000 requests (best single "
            f"model {single:.3f}, oracle {oracle:.3f})"
        )
    change = one.get("change")
    by_reward = not one.keys() & {"quality_share", "budget_usd", "net_value_usd"}
    if by_reward and change is not None and change["excess_regret"] is not None:
        back = "back" if change["excess_regret"] <= 0 else "not back"
        lines.append(
            f"regret a request {change['regret_before']:.4f} before the change (best single model "
            f"{change['best_single_regret_before']:.4f}), {change['regret_after']:.4f} from "
            f"{SETTLED} requests after it on (best single model "
            f"{change['best_single_regret_after']:.4f}): {back} within 5 %"
        )
    return lines


def _signed(value: Mapping[str, float | None]) -> str:
    text = f"{value['mean']:+.4f}"
    low, high = value["low"], value["high"]
    return text if low is None or high is None else f"{text} ({low:+.4f} to {high:+.4f})"


def _drawn(run: ReplayRun) -> Figure:
    """Cumulative regret of each policy, with a band of its intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in run.curves.items():
        (line,) = axes.plot(curve.requests, curve.mean, label=name)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.requests, curve.low, curve.high, color=line.get_color(), alpha=0.2, lw=0
            )
    change = run.result.get("change")
    if change is not None:
        axes.axvline(change["at"], ls="--", lw=1, c="grey", label="the world changes")
    axes.set_xlabel("requests")
    axes.set_ylabel("cumulative regret (reward of the oracle minus ours)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _page(request: ReplayRequest, run: ReplayRun, picture: bytes) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *COLUMNS))
    body = "\n".join(
        f"<tr{' class=ours' if line.ours else ''}><th>{escape(line.label)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line.cells)
        + "</tr>"
        for line in comparison_lines(run.policies)
    )
    told = "\n".join(f"<p>{escape(line)}</p>" for line in sentences(request, run))
    image = base64.b64encode(picture).decode()
    heading = escape(title(request, run))
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>llmopt replay: {heading}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; }}
td {{ text-align: right; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: normal; white-space: pre; }}
.ours * {{ font-weight: bold; }}
img {{ max-width: 100%; }}
</style>
<h1>Replay</h1>
<p>{heading}</p>
<table>
<tr>{head}</tr>
{body}
</table>
{told}
<h2>Cumulative regret</h2>
<img alt="cumulative regret of each policy over the requests" src="data:image/png;base64,{image}">
<p>{escape(_reading(run.curves))}</p>
</html>
"""


def _reading(curves: Mapping[str, Curve]) -> str:
    banded = any(curve.low is not None for curve in curves.values())
    return (
        "Regret is the reward of an oracle that sees the outcome of every model in advance, minus "
        "ours: no policy brings it to 0, and the flatter the curve the better."
        + (" Bands are the intervals over seeds, at each point by itself." if banded else "")
    )
