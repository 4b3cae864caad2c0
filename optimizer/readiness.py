"""Whether the comparison with control can be believed: checks on the machinery that makes it.

Two checks run all the time. The sample ratio: control is drawn with a probability that is set, so
another share says that something else divides traffic, or that some of it is lost. The A/A check:
a coin cuts the units of control in two, so its halves can't differ; where they do, units are not
independent or outcomes are recorded unevenly. Each is false with a probability of 0.1 %, however
often one looks, since its alarm stops every conclusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from optimizer.confidence import ENOUGH
from optimizer.experiments.sample_ratio import RatioCheck, sample_ratio
from optimizer.experiments.self_check import SelfCheck, readiness, self_check, split

__all__ = ["ControlReadiness", "control_readiness"]

_CHECKED = ("quality", "cost_usd", "latency_s")


@dataclass(frozen=True, slots=True)
class ControlReadiness:
    """Whether conclusions may be drawn.

    Attributes
    ----------
    ready
        Whether nothing stands against it.
    reasons
        What does, a sentence each.
    trusted
        False if a check failed: what is shown may be wrong, and is not only too little.
    """

    ready: bool
    reasons: tuple[str, ...]
    trusted: bool


def control_readiness(
    frame: pd.DataFrame, complete: Mapping[str, int], control_share: float
) -> ControlReadiness:
    """Check the decisions of one decision point.

    Parameters
    ----------
    frame
        As `serving.outcomes.outcomes_frame` gives it.
    complete
        Of each role, decisions whose outcome is complete.
    control_share
        The probability of control, in [0, 1).
    """
    if control_share == 0:
        none = ("control_share is 0, so there is no control to compare with",)
        return ControlReadiness(False, none, True)
    checked = readiness(_ratio(frame, control_share), _halves(frame))
    lacking = tuple(
        f"{count} decisions of {role} have a complete outcome, and {ENOUGH} are needed"
        for role in ("champion", "control")
        if (count := complete.get(role, 0)) < ENOUGH
    )
    reasons = checked.reasons + lacking
    return ControlReadiness(not reasons, reasons, checked.ready)


def _ratio(frame: pd.DataFrame, control_share: float) -> RatioCheck:
    """Units of control against all others; the fallback stands in for a policy only."""
    is_control = frame["role"] == "control"
    control, others = (int(frame["unit"][of].nunique()) for of in (is_control, ~is_control))
    return sample_ratio((control, others), (control_share, 1.0 - control_share))


def _halves(frame: pd.DataFrame) -> SelfCheck | None:
    control = frame[frame["role"] == "control"]
    if control.empty:
        return None
    control = control.groupby("unit", sort=False, as_index=False)[list(_CHECKED)].mean()
    # The last bit of the hash; who is control is told by the first ones.
    first = (control["unit"] % 2 == 0).to_numpy(dtype=np.bool_)
    known = [name for name in _CHECKED if control[name].notna().any()]
    measures = {name: split(control[name].to_numpy(dtype=np.float64), first) for name in known}
    # Costs and latencies know no bound; what all decisions have spanned stands for it.
    spans = {name: 1.0 if name == "quality" else float(frame[name].max()) for name in known}
    spans = {name: span for name, span in spans.items() if span > 0}
    size = int(first.sum())
    return self_check(measures, (size, len(control) - size), spans=spans)
