"""The end of the demo: a table, a picture, and what to make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from infra.comparison import comparison_table
from infra.demo import DemoRun, Sent
from infra.progress import steps
from infra.replays import dearest_model

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["draw", "show", "watching"]

_WINDOW = 300


@contextmanager
def watching() -> Iterator[Callable[[list[Sent], int], None]]:
    """A live progress bar with quality and cost so far."""
    quality, cost_usd = 0.0, 0.0
    with steps("demo") as on_step:

        def on_sent(sent: list[Sent], total: int) -> None:
            nonlocal quality, cost_usd
            quality += sent[-1].outcome.quality or 0.0
            cost_usd += sent[-1].outcome.cost_usd or 0.0
            done = len(sent)
            on_step(
                done,
                total,
                f"demo: quality {quality / done:.4f}, "
                f"{1000 * cost_usd / done:.3f} USD per 1,000 requests",
            )

        yield on_sent


def show(console: Console, run: DemoRun, result: dict[str, Any]) -> None:
    """Print what came out, and how it is to be read."""
    rules = result["baselines"]
    title = f"{result['requests']} requests at decision point {run.decision_point!r}"
    console.print(comparison_table({"this platform": result}, title))
    shares = ", ".join(f"{model} {100 * share:.1f} %" for model, share in result["models"].items())
    versions, timing = result["policy_version"], result["decision_ms"]
    lines = [
        f"share of each model: {shares}",
        f"a decision took {timing['p50']:.1f} ms (p50), {timing['p99']:.1f} ms (p99) as the client "
        f"saw it; policy version {versions['before']} before, {versions['after']} after; "
        f"{result['fallbacks']} decided by the static rule; {result['retried']} calls repeated, "
        "none lost",
        _reading(run, result, rules["best_single"]),
        "Quality and cost are recorded outcomes (the set in the wheel paretobandit): no LLM was "
        "called. Decisions, rewards and learning were live.",
    ]
    if "picture" in result:
        lines.append(f"picture: {result['picture']}")
    for line in lines:
        console.print(line, markup=False)


def _reading(run: DemoRun, result: dict[str, Any], single: dict[str, Any]) -> str:
    """What the saving is made of."""
    dearest = dearest_model(run.recorded)
    index = run.recorded.models.index(dearest)
    rows = [one.row for one in run.sent]
    dear_cost = float(run.recorded.cost_usd[rows, index].mean())
    dear_quality = float(run.recorded.quality[rows, index].mean())
    ours, alone = 1 - result["cost_usd"] / dear_cost, 1 - single["cost_usd"] / dear_cost
    return (
        f"Beside always taking {dearest}: {100 * ours:.1f} % cheaper, quality "
        f"{100 * (result['quality'] - dear_quality):+.2f} points. One strong cheap model is most "
        f"of the saving: {single['model']} alone is {100 * alone:.1f} % cheaper, quality "
        f"{100 * (single['quality'] - dear_quality):+.2f} points."
    )


def draw(run: DemoRun, result: dict[str, Any], path: Path) -> None:
    """Write the picture: quality over cost beside the fixed rules, and the reward over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plane, time = figure.subplots(1, 2)
    rules = result["baselines"]
    mix = {"quality": rules["equal_cost_mix"]["quality"], "cost_usd": result["cost_usd"]}
    points = {
        "this platform": (result, "*"),
        "its last third": (result["last_third"], "P"),
        f"best single model\n({rules['best_single']['model']})": (rules["best_single"], "o"),
        f"cheapest model\n({rules['cheapest']['model']})": (rules["cheapest"], "v"),
        "uniform random": (rules["random"], "s"),
        "oracle (sees every outcome)": (rules["oracle"], "^"),
        "best mix of two models at our cost": (mix, "x"),
    }
    for label, (means, marker) in points.items():
        plane.plot(
            1000 * means["cost_usd"], means["quality"], marker, markersize=10, ls="", label=label
        )
    plane.set_xscale("log")
    plane.set_xlabel("USD per 1,000 requests")
    plane.set_ylabel("quality")
    plane.legend(fontsize="x-small")
    rewards = pd.Series([one.reward for one in run.sent])
    window = min(_WINDOW, len(rewards))
    time.plot(rewards.rolling(window).mean(), label=f"this platform, mean of {window}")
    time.axhline(rules["best_single"]["reward"], ls="--", c="C2", label="best single model")
    time.axhline(rules["random"]["reward"], ls=":", c="C4", label="uniform random")
    time.set_xlabel("requests")
    time.set_ylabel("reward")
    time.legend(fontsize="x-small")
    figure.suptitle("Recorded outcomes, live decisions", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
