"""Settings of a canary."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CanarySettings"]

_Share = Annotated[float, Field(gt=0, lt=1)]


class CanarySettings(BaseModel):
    """How a challenger is led to all traffic, see `optimizer.rollout.canary`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: tuple[_Share, ...] = Field(
        (0.05, 0.25, 0.50), min_length=1, description="the challenger's shares, growing"
    )
    holdout_share: float = Field(
        0.05, gt=0, lt=1, description="what the champion keeps in the last stage, the watch"
    )
    alpha: float = Field(
        0.05, gt=0, lt=1, description="probability of a wrong conclusion in the whole canary"
    )
    minimum_samples: int = Field(
        200, ge=10, description="qualities that each of the two must have before a stage ends well"
    )
    longest_samples: int = Field(
        100_000, ge=10, description="qualities of each after which a stage without verdict fails"
    )
    shortest_stage_s: float = Field(60.0, ge=0, description="a stage lasts at least so long")
    watch_s: float = Field(3600.0, ge=0, description="and the last stage so long")
    longest_stage_s: float = Field(
        7 * 86400.0, gt=0, description="time after which a stage without verdict fails"
    )
    fallback_share: float = Field(
        0.01, gt=0, le=1, description="share of its requests that a challenger may fail to decide"
    )

    @model_validator(mode="after")
    def _ordered(self) -> CanarySettings:
        shares = self.shares
        if list(shares) != sorted(set(shares)):
            raise ValueError(
                f"stages={self.stages} must grow, and stay below 1 - holdout_share={shares[-1]}"
            )
        if self.minimum_samples > self.longest_samples:
            raise ValueError(
                f"minimum_samples={self.minimum_samples} must not be above "
                f"longest_samples={self.longest_samples}"
            )
        if max(self.shortest_stage_s, self.watch_s) >= self.longest_stage_s:
            raise ValueError(
                f"shortest_stage_s={self.shortest_stage_s} and watch_s={self.watch_s} must be "
                f"below longest_stage_s={self.longest_stage_s}"
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The challenger's share in every stage, the watch included."""
        return (*self.stages, 1.0 - self.holdout_share)
