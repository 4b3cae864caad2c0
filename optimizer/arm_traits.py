"""What is known of an arm before it was ever tried: its price, its context length, its speed.

Policies learn what these say about outcomes from the arms they know, and a new arm starts with it
(see `optimizer.policies.hierarchy`). Nothing is assumed about the direction: a dear model need not
be a good one.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ArmTraits"]

_TYPICAL = (1.0, 3.0, 100_000.0, 80.0)
"""In the order of the fields; a trait counts in powers of ten of this."""


class ArmTraits(BaseModel):
    """Public facts about a model; each may be left out and then counts as typical.

    Examples
    --------
    >>> ArmTraits(price_in_usd=10, context_tokens=10_000).values()
    (1.0, 0.0, -1.0, 0.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    price_in_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="list price of a million input tokens"
    )
    price_out_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="list price of a million output tokens"
    )
    context_tokens: int | None = Field(None, gt=0, description="longest context, in tokens")
    speed_tokens_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="output tokens a second, as announced"
    )

    def values(self) -> tuple[float, ...]:
        """Each in powers of ten of what is typical, 0 where it is not known."""
        given = (self.price_in_usd, self.price_out_usd, self.context_tokens, self.speed_tokens_s)
        return tuple(
            0.0 if value is None else math.log10(value / typical)
            for value, typical in zip(given, _TYPICAL, strict=True)
        )
