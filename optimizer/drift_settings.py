"""Settings of drift: how sure an alarm must be, and what is done about it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Action", "DriftRules", "DriftSettings"]

Action = Literal["none", "alert", "forget", "retrain", "rollback", "static"]


class DriftRules(BaseModel):
    """What is done about each kind of drift.

    ``none`` writes it down only. Whatever else is done, an alert tells of it. ``forget`` makes the
    champion's policy anew with discounted rewards, ``retrain`` runs the deployment `train`,
    ``rollback`` ends the running canary or brings back the champion before, and ``static`` makes
    the static rule the champion.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Action = Field("alert", description="requests are other ones than before")
    decisions: Action = Field(
        "none", description="arms are drawn otherwise; a policy that learns does that on purpose"
    )
    predictions: Action = Field("alert", description="other qualities are foreseen than before")
    quality: Action = Field("alert", description="arms are worse than they were")
    online: Action = Field("alert", description="the learner's own detectors raised an alarm")
    anomalies: Action = Field("alert", description="latency, cost, errors or quality stand out")


class DriftSettings(BaseModel):
    """When drift is told, see docs/drift-detection.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    false_alarm_share: float = Field(
        0.01, gt=0, le=0.5, description="share of windows without any drift that may raise an alarm"
    )
    smallest_psi: float = Field(
        0.1,
        ge=0,
        description="population stability index under which a change is too small to tell",
    )
    quality_drop: float = Field(
        0.03, gt=0, lt=1, description="loss of an arm's quality that is borne, relative"
    )
    anomaly_method: Literal["z", "iqr", "mad", "mahalanobis"] = Field(
        "mad", description="how far a minute lies from those before; see `optimizer.anomalies`"
    )
    anomaly_sigmas: float = Field(
        5.0, gt=0, description="distance at which a minute stands out, in standard deviations"
    )
    anomaly_minutes: int = Field(
        2, ge=1, le=60, description="so many minutes of a window must stand out, in one figure"
    )
    cooldown_s: float = Field(
        6 * 3600.0, ge=0, description="time in which the same kind of drift is acted upon once"
    )
    forget_horizon: float = Field(
        1000.0, ge=10, description="rewards that the policy made by `forget` keeps"
    )
    rules: DriftRules = Field(DriftRules(), description="what is done about each kind of drift")
