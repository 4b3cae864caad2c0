"""What logged traffic says of the settings of a model, by task type: off-policy, arm by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.arm_beliefs import arm_means
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.parameter_proposals import Evaluated
from optimizer.records import Arm

__all__ = ["FEWEST_OUTCOMES", "logged_settings", "task_rows"]

FEWEST_OUTCOMES = 200
"""Decisions of a task type with known quality and cost, below which its log says nothing."""

_FEWEST_OF_ARM = 30


def task_rows(
    log: LoggedDecisions, feature_names: Sequence[str], task: str
) -> LoggedDecisions | None:
    """The decisions about a task type; all if it is empty, None where there is none.

    Parameters
    ----------
    feature_names
        Of the log's columns.
    """
    if not task:
        return log
    column = f"task={task}"
    if column not in feature_names:
        return None
    chosen = log.features[:, list(feature_names).index(column)] > 0
    return log.rows(chosen) if chosen.any() else None


def logged_settings(
    log: LoggedDecisions | None, arms: Sequence[Arm], chosen: Sequence[int], elsewhere: str = ""
) -> list[Evaluated]:
    """Doubly robust means of quality and cost of some arms, and their standard errors.

    Parameters
    ----------
    log
        Of one task type, its arms in the order of ``arms``.
    chosen
        Indices of arms.
    elsewhere
        See `Evaluated`.

    Returns
    -------
    Those with 30 outcomes or more; empty where the log is too short.
    """
    if log is None:
        return []
    known = np.isfinite(log.quality) & np.isfinite(log.cost_usd)
    if known.sum() < FEWEST_OUTCOMES:
        return []
    log = log.rows(known)
    drawn = np.bincount(log.arms, minlength=log.arm_count)
    quality, quality_error = arm_means(log, log.quality, 1.0)
    cost, cost_error = arm_means(log, log.cost_usd, float(log.cost_usd.max()))
    return [
        Evaluated(
            dict(arms[arm].parameters),
            float(np.clip(quality[arm], 0.0, 1.0)),
            max(float(cost[arm]), 0.0),
            float(quality_error[arm]),
            float(cost_error[arm]),
            elsewhere,
        )
        for arm in chosen
        if drawn[arm] >= _FEWEST_OF_ARM
    ]
