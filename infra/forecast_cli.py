"""``llmopt forecast``: the load that is expected, and how many replicas it needs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from optimizer.forecasting import Forecasts
    from optimizer.settings import Settings

__all__ = ["forecast"]

Found = tuple["datetime", "Forecasts"] | None


def forecast(
    as_json: Json = False,
) -> None:
    """Show the newest forecast of each decision point, and the replicas that all of them need."""
    with errors_shown(as_json):
        import psycopg

        from infra.home import find_settings
        from optimizer.errors import Unavailable
        from serving.traffic import newest_forecast

        settings = find_settings()[0]
        try:
            found = {
                point.name: newest_forecast(settings.postgres_dsn(), point.name)
                for point in settings.decision_points
            }
        except psycopg.OperationalError as error:
            raise Unavailable("PostgreSQL") from error
        now = datetime.now(UTC)
        answer = {
            "decision_points": [_point(name, one, now) for name, one in found.items()],
            "replicas": _replicas(settings, found, now),
        }
        _show(answer)
        if as_json:
            print_json(answer)


def _point(name: str, found: Found, now: datetime) -> dict[str, Any]:
    from dataclasses import asdict

    if found is None:
        return {"name": name, "made_at": None}
    made_at, made = found
    return {
        "name": name,
        "made_at": made_at.isoformat(),
        "age_s": (now - made_at).total_seconds(),
        "method": made.method,
        "horizons": [asdict(one) for one in made.horizons],
        "near": None if made.near is None else asdict(made.near),
    }


def _replicas(settings: Settings, found: dict[str, Found], now: datetime) -> dict[str, Any]:
    """What the sum over decision points needs, and whether the policy goes by it."""
    from optimizer.capacity import outlook, replicas_for, required_rate
    from optimizer.settings import Autoscaling

    scaling = settings.serving.autoscaling
    rule = scaling or Autoscaling()
    known = [
        ((now - one[0]).total_seconds(), one[1].near)
        for one in found.values()
        if one is not None and one[1].near is not None
    ]
    expected = outlook(known, rule.ahead_s) if len(known) == len(found) else None
    answer: dict[str, Any] = {
        "autoscaling": scaling is not None,
        "ahead_s": rule.ahead_s,
        "decisions_per_s": rule.decisions_per_s,
        "min_replicas": rule.min_replicas,
        "max_replicas": rule.max_replicas,
        "expected_now_per_s": None,
        "required_per_s": None,
        "wanted": None,
        "why": _why(settings, expected is not None),
    }
    if expected is not None:
        required = required_rate(expected.now, expected)
        wanted = replicas_for(required, rule.decisions_per_s)
        answer |= {
            "expected_now_per_s": expected.now,
            "required_per_s": required,
            "wanted": min(max(wanted, rule.min_replicas), rule.max_replicas),
        }
    return answer


def _why(settings: Settings, reaches: bool) -> str:
    scaling = settings.serving.autoscaling
    if scaling is None:
        return f"serving.autoscaling is not set: there are always {settings.replicas}"
    if scaling.ahead_s == 0:
        return "serving.autoscaling.ahead_s is 0: the measured load alone decides"
    if not reaches:
        return "not every decision point has a forecast that reaches so far: measured load decides"
    return f"asked for {scaling.ahead_s:g} s ahead of load, if the load now is as was forecast"


def _show(answer: dict[str, Any]) -> None:
    from rich.table import Table

    console = on_stderr()
    table = Table(title="expected load, requests/s (90 % interval)")
    for column in ("decision point", "made at (UTC)", "method", "1 h", "6 h", "24 h"):
        table.add_column(column)
    for one in answer["decision_points"]:
        if one["made_at"] is None:
            table.add_row(one["name"], "none yet: the flow `forecast` makes one each hour")
            continue
        made_at = datetime.fromisoformat(one["made_at"]).astimezone(UTC)
        cells = [_cell(horizon) for horizon in one["horizons"]]
        table.add_row(one["name"], f"{made_at:%Y-%m-%d %H:%M}", one["method"], *cells)
    console.print(table, markup=False)
    replicas = answer["replicas"]
    if replicas["wanted"] is not None:
        console.print(
            f"room needed for {replicas['required_per_s']:.4g} requests/s, at "
            f"{replicas['decisions_per_s']:g} a replica: {replicas['wanted']} replicas (from "
            f"{replicas['min_replicas']} to {replicas['max_replicas']} are allowed)",
            markup=False,
        )
    console.print(replicas["why"], markup=False)


def _cell(horizon: dict[str, Any]) -> str:
    rate = f"{horizon['rate']:.4g}"
    if horizon["low"] is None or horizon["high"] is None:
        return rate
    return f"{rate} ({horizon['low']:.4g} to {horizon['high']:.4g})"
