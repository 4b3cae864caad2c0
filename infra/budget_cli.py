"""``llmopt budget``: what was spent, what is planned, and what quality is worth now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from serving.budget_store import StoredPlan

__all__ = ["budget"]


def budget(
    as_json: Json = False,
) -> None:
    """Show spend so far in this period, and the newest plan with its prices."""
    with errors_shown(as_json):
        import psycopg

        from infra.home import find_settings
        from optimizer.errors import InvalidSettings, Unavailable
        from serving import budget_store

        settings = find_settings()[0]
        if settings.budget is None:
            raise InvalidSettings(
                "budget: missing; set `budget: {usd: 20, period: day}` in the settings"
            )
        now = datetime.now(UTC)
        start, end = settings.budget.span(now)
        try:
            with psycopg.connect(settings.postgres_dsn(), connect_timeout=5) as connection:
                spent = budget_store.spent(connection, start, now)
                plan = budget_store.newest(connection)
        except psycopg.OperationalError as error:
            raise Unavailable("PostgreSQL") from error
        if plan is not None and plan.period_start != start.isoformat():
            plan = None
        total = sum(cost for cost, _ in spent.values())
        unpriced = sum(unknown for _, unknown in spent.values())
        console = on_stderr()
        console.print(
            f"{total:.6g} of {settings.budget.usd:.6g} USD spent since {start.isoformat()} "
            f"({unpriced} decisions without a known cost)",
            markup=False,
        )
        if plan is None:
            console.print("no plan for this period yet; the flow `budget` makes it", markup=False)
        else:
            console.print(f"{plan.status}: {plan.message}", markup=False)
            if plan.rows:
                console.print(_table(plan))
        if as_json:
            print_json(
                {
                    "period_start": start.isoformat(),
                    "period_end": end.isoformat(),
                    "budget_usd": settings.budget.usd,
                    "spent_usd": total,
                    "unpriced": unpriced,
                    "spent_usd_by_decision_point": {
                        name: cost for name, (cost, _) in spent.items()
                    },
                    "plan": None if plan is None else plan.__dict__,
                }
            )


def _table(plan: StoredPlan) -> Table:
    from rich.table import Table

    table = Table(title=f"plan of {plan.at}", title_justify="left")
    for name in ("decision point", "hour", "requests", "quality", "USD", "USD per quality"):
        table.add_column(name)
    for row in plan.rows:
        price = row["quality_price_usd"]
        table.add_row(
            row["service"],
            row["hour"],
            f"{row['requests']:.4g}",
            f"{row['quality']:.4f}",
            f"{row['cost_usd']:.4g}",
            "any" if price is None else f"{price:.4g}",
        )
    return table
