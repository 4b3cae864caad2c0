"""Settings of the budget: how much, for how long, and what each decision point is worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BudgetSettings", "ServiceBudget"]


class ServiceBudget(BaseModel):
    """What the budget should know of one decision point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="worth of quality against other decision points"
    )
    quality_floor: float = Field(0.0, ge=0, le=1, description="mean quality to keep each hour")
    critical: bool = Field(False, description="its floor comes before everything else")
    cap_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="most that an hour of it may cost"
    )


class BudgetSettings(BaseModel):
    """Money for all decision points together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd: float = Field(gt=0, allow_inf_nan=False, description="US dollars for each period")
    period: Literal["hour", "day"] = Field("day", description="its length, from 00:00 UTC on")
    services: dict[str, ServiceBudget] = Field(
        default_factory=dict, description="by decision point; the others have the defaults"
    )

    def span(self, at: datetime) -> tuple[datetime, datetime]:
        """Start and end of the period that ``at`` lies in, UTC.

        Examples
        --------
        >>> start, end = BudgetSettings(usd=5).span(datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
        >>> start.isoformat(), (end - start).total_seconds()
        ('2026-01-02T00:00:00+00:00', 86400.0)
        """
        start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if self.period == "hour":
            return start, start + timedelta(hours=1)
        start = start.replace(hour=0)
        return start, start + timedelta(days=1)
