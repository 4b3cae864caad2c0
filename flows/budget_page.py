"""A budget plan as a page, a table and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.artifacts import markdown_table

if TYPE_CHECKING:
    from serving.budget_store import StoredPlan

__all__ = ["figures", "page", "table"]

_SIGNS = {"planned": "🟢", "floors give way": "🟡", "infeasible": "🔴", "no data": "⚪"}


def page(plan: StoredPlan) -> str:
    """Markdown for people."""
    lines = [
        "# Budget",
        "",
        f"{plan.period_start} to {plan.period_end}, planned at {plan.at}",
        "",
        f"{_SIGNS[plan.status]} **{plan.status}**: {plan.message}",
        "",
        f"{plan.spent_usd:.6g} of {plan.budget_usd:.6g} USD were spent by then. "
        f"{plan.unpriced} decisions have no known cost yet.",
    ]
    if plan.price is not None:
        lines += [
            "",
            f"One dollar more would bring {plan.price:.6g} units of value.",
            "",
            "A policy follows the plan with `quality_price_usd` of its decision point as in the "
            "last column; empty means that the best quality is affordable.",
            "",
            *markdown_table(table(plan)),
        ]
    return "\n".join([*lines, ""])


def table(plan: StoredPlan) -> list[dict[str, Any]]:
    """One row for each decision point and hour."""
    return [
        {
            "decision point": row["service"],
            "hour": row["hour"],
            "requests": f"{row['requests']:.4g}",
            "shares": ", ".join(
                f"{name} {share:.0%}" for name, share in row["shares"].items() if share > 0.005
            ),
            "quality": f"{row['quality']:.4f}",
            "floor": f"{row['quality_floor'] - row['quality_short']:.4f}",
            "USD": f"{row['cost_usd']:.4g}",
            "price of quality": ""
            if row["quality_price_usd"] is None
            else f"{row['quality_price_usd']:.4g}",
        }
        for row in plan.rows
    ]


def figures(plan: StoredPlan) -> dict[str, float]:
    """Numbers that can be compared over time."""
    requests = sum(row["requests"] for row in plan.rows)
    found = {
        "budget_usd": plan.budget_usd,
        "spent_usd": plan.spent_usd,
        "planned_usd": sum(row["cost_usd"] for row in plan.rows),
        "planned_requests": requests,
    }
    if plan.price is not None:
        found["value_of_a_dollar"] = plan.price
    if requests:
        found["planned_quality"] = (
            sum(row["quality"] * row["requests"] for row in plan.rows) / requests
        )
    return found
