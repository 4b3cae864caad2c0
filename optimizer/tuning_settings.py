"""Settings of the search for a model's parameters: what judges them, and what may be tried."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["TuningSettings"]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"{list(ends)} must be [lowest, highest], or left empty to tune it not")
    return ends


Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
MaxTokens = Annotated[int, Field(ge=1, le=1_000_000)]


class TuningSettings(BaseModel):
    """How temperature, top_p and max_tokens of every model are tuned, for each task type."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    evaluator: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`package.module:function` that judges parameters, see "
        "`optimizer.parameter_tuning`; only what was logged is compared if left out",
    )
    trials: int = Field(
        30, ge=1, le=1000, description="settings that an evaluator judges, by model and task type"
    )
    temperature: Annotated[tuple[Temperature, Temperature], AfterValidator(_ordered)] | None = (
        Field((0.0, 1.5), description="lowest and highest; not tuned if empty")
    )
    top_p: Annotated[tuple[TopP, TopP], AfterValidator(_ordered)] | None = Field(
        (0.2, 1.0), description="lowest and highest; not tuned if empty"
    )
    max_tokens: Annotated[tuple[MaxTokens, MaxTokens], AfterValidator(_ordered)] | None = Field(
        (64, 2048), description="lowest and highest; not tuned if empty"
    )
    share: float = Field(
        0.2, gt=0, le=1, description="of the units, for the experiment that is drafted"
    )

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Of what is tuned."""
        named = {
            "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens
        }  # fmt: skip
        return {name: ends for name, ends in named.items() if ends is not None}
