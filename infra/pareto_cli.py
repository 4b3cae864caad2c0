"""`llmopt pareto`: the front over quality, cost and latency of arms and policies, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from infra.logged_sources import OnStep
    from optimizer.settings import Settings

__all__ = ["ParetoRequest", "pareto", "pareto_table", "run_pareto"]

_ALPHA = 0.05
_COLUMNS = {
    "quality": ("quality", 1.0, 3),
    "cost_usd": ("USD per 1,000", 1000.0, 3),
    "latency_s": ("seconds", 1.0, 2),
}
_STYLES = {
    "front": "bold green",
    "perhaps front": "green",
    "perhaps dominated": "yellow",
    "dominated": "red",
    "unknown": "dim",
}


@dataclass(frozen=True)
class ParetoRequest:
    """What the command was asked.

    Attributes
    ----------
    log
        A file of logged decisions; the live ledger if None.
    decision_point
        Whose ledger; of a file, whose arms. May be left out if there is one, or with a file.
    since
        Start of the span of time that is read from the ledger; a week if None.
    plot
        PNG to write.
    """

    log: Path | None = None
    decision_point: str | None = None
    since: str | None = None
    plot: Path | None = None


def run_pareto(
    request: ParetoRequest,
    settings: Callable[[], Settings],
    now: datetime,
    on_step: OnStep = lambda done, total, label: None,
) -> dict[str, Any]:
    """Find the front, and draw it if asked to.

    Parameters
    ----------
    request
        What is asked.
    settings
        Gives the settings, where a decision point or a server is needed.
    now
        End of the span of time that is read from the ledger.
    on_step
        Called with the steps done, of all, and what is being done.

    Returns
    -------
    The object of ``--json``: source, span, level, and each candidate with its measures, standing
    and those that dominate it.

    Raises
    ------
    InvalidInput
        Naming the option, the file, the column or the row that is refused.
    Unavailable
        If PostgreSQL is needed and away.
    """
    from threadpoolctl import threadpool_limits

    from infra.logged_sources import find_source
    from optimizer.pareto import candidates, place

    with threadpool_limits(1):
        source = find_source(
            settings,
            now,
            log=request.log,
            decision_point=request.decision_point,
            since=request.since,
            on_step=on_step,
        )
        placed = place(candidates(source.decisions, _ALPHA))
    decided_at = source.decisions.decided_at
    notes = [note for note in source.notes if not note.startswith("Caps")]
    if source.decisions.roles is None:
        notes.append(
            "The log does not tell who decided (column role): only arms are compared, by all rows."
        )
    result: dict[str, Any] = {
        "source": source.name,
        "decision_point": None if source.point is None else source.point.name,
        "from": _time(decided_at[0]),
        "to": _time(decided_at[-1]),
        "decisions": len(source.decisions),
        "level": 1.0 - _ALPHA,
        "candidates": [
            {
                "name": one.candidate.name,
                "kind": one.candidate.kind,
                **{name: asdict(found) for name, found in one.candidate.measures.items()},
                "standing": one.standing,
                "dominated_by": list(one.dominated_by),
            }
            for one in placed
        ],
        "notes": notes,
    }
    if request.plot is not None:
        from infra.pareto_plot import draw_front

        draw_front(result, request.plot)
        result["plot"] = str(request.plot)
    return result


def pareto_table(result: dict[str, Any]) -> Table:
    """Every candidate, best quality first; intervals below the values.

    Parameters
    ----------
    result
        As `run_pareto` gives it.
    """
    from rich.table import Table

    table = Table(title=f"front of {result['source']}", title_justify="left", show_lines=True)
    found = sorted(result["candidates"], key=_quality, reverse=True)
    known = [name for name in _COLUMNS if name in found[0]]
    table.add_column("", overflow="fold")
    for name in known:
        table.add_column(_COLUMNS[name][0], justify="right")
    table.add_column("standing")
    table.add_column("dominated by", overflow="fold")
    for one in found:
        label = one["name"] if one["kind"] == "arm" else f"policy: {one['name']}"
        cells = [_cell(name, one[name]) for name in known]
        style = _STYLES[one["standing"]]
        standing = f"[{style}]{one['standing']}[/]"
        table.add_row(label, *cells, standing, "\n".join(one["dominated_by"]))
    return table


def pareto(
    decision_point: Annotated[
        str | None, typer.Option(help="Whose ledger; of a file, whose arms.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Start in the ledger: 24h, 7d, or a date.  [default: 7d]")
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Logged decisions (parquet, CSV, JSONL); the live ledger if left out."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw cost against quality (PNG).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which arms and policies no other beats in quality, cost and latency together."""
    with errors_shown(as_json):
        from infra.home import find_settings
        from infra.progress import steps

        request = ParetoRequest(log, decision_point, since, plot)
        with steps("pareto") as on_step:
            result = run_pareto(request, lambda: find_settings()[0], datetime.now(UTC), on_step)
        console = on_stderr()
        console.print(pareto_table(result))
        for line in (reading(result), *result["notes"]):
            console.print(line, markup=False)
        if plot is not None:
            console.print(f"picture: {plot}", markup=False)
        if as_json:
            print_json(result)


def reading(result: dict[str, Any]) -> str:
    """How the table is to be read."""
    return (
        f"{result['decisions']} decisions from {result['from']} to {result['to']}. All intervals "
        f"hold together at {100 * result['level']:g} %, however often they are looked at. front "
        "and dominated are certain at that level; with perhaps, only the point estimates say so."
    )


def _quality(one: dict[str, Any]) -> float:
    known = one.get("quality")
    return -1.0 if known is None or known["value"] is None else float(known["value"])


def _cell(name: str, estimate: dict[str, Any]) -> str:
    _, factor, digits = _COLUMNS[name]
    if estimate["value"] is None:
        return "never seen"
    text = f"{factor * estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return text
    low, high = (f"{factor * estimate[end]:.{digits}f}" for end in ("low", "high"))
    return f"{text}\n[dim]{low} to {high}[/]"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
