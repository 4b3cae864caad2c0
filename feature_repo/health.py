"""Whether the features that a replica has are fresh, whole and in range.

**Fresh** online means: at most 1 s ago the values were all that the learner knew. The learner looks
four times a second whether an outcome came. If one did, it pushes; if none did, it says in its
report that the values pushed last are still current. So an idle platform stays fresh though nothing
is pushed for seconds, and a learner that hangs, dies or can't reach the store makes every view
stale. Without a report, or where somebody has put older values into the store, the age is that of
the values. How far the learner is behind the ledger is another figure: `learned` against `rewards`
of the decision point. Ages compare clocks of two machines where learner and replica are on two.

**Missing** is an arm without a value. That alone is no fault: an arm without any outcome has no
statistics. It is one if the learner had pushed values of more arms than the store gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from feature_repo.report import FeatureReport
from optimizer.settings import FeatureLimits

__all__ = ["REASONS", "VIEWS", "Alert", "Reason", "ViewHealth", "feature_alerts", "view_health"]

VIEWS = ("arm_statistics", "arm_windows", "model_facts")
_ONCE_IN_A_WHILE = "model_facts"
"""Facts of the settings, written at start and each half hour: online, too, an hour is their age."""

Reason = Literal["stale", "offline_stale", "missing", "out_of_range"]
REASONS: tuple[Reason, ...] = get_args(Reason)

_ROUNDED_S = 1e-3
"""Times of values come back from the store in whole microseconds."""


@dataclass(frozen=True, slots=True)
class ViewHealth:
    """A feature view at a decision point, as a replica sees it; ages are in seconds.

    Attributes
    ----------
    online_age_s
        Since the values were all that the learner knew, see the module; null if there were none.
    offline_age_s
        Since values were last logged for training; null if that is not known.
    arms, missing
        Configured models, and those of them without a value; null where replicas don't read them.
    lost
        Models that the learner has pushed values of and the store does not give.
    violation_age_s
        Since a value last was out of range or not finite; null if none was.
    """

    view: str
    decision_point: str
    online_age_s: float | None
    offline_age_s: float | None
    arms: int
    missing: int | None
    lost: int
    violation_age_s: float | None

    @property
    def missing_share(self) -> float | None:
        """In [0, 1]."""
        return None if self.missing is None else self.missing / self.arms


@dataclass(frozen=True, slots=True)
class Alert:
    """What is wrong with a view at a decision point, for people in ``detail``."""

    view: str
    decision_point: str
    reason: Reason
    detail: str


def view_health(
    view: str,
    decision_point: str,
    arms: int,
    found: Mapping[str, float] | None,
    report: FeatureReport | None,
    violated_at: float | None,
    now: float,
) -> ViewHealth:
    """Health of what was read.

    Parameters
    ----------
    view, decision_point
        Their names.
    arms
        Configured models, 1 or more.
    found
        Times of the values that were read, by model; None where replicas don't read the view.
    report
        The learner's, read before the values.
    violated_at
        When a value last was out of range or not finite, as far as this replica knows.
    now
        Like all times here, Unix time in seconds.
    """
    report = report or FeatureReport()
    pushed = report.pushed.get(view, {}).get(decision_point)
    times = sorted((found or {}).values(), reverse=True)
    current_at: float | None = None
    lost = 0
    if pushed is None:
        current_at = min(times, default=None)
    else:
        # Only as many as were pushed: values of an arm that is no longer pushed may still be there.
        times = times[: pushed.arms]
        lost = 0 if found is None else pushed.arms - len(times)
        older = bool(times) and times[-1] < pushed.at_s - _ROUNDED_S
        current_at = times[-1] if older else pushed.current_at
        if found is not None and pushed.arms and not times:
            current_at = None
    violations = (violated_at, report.violated_at.get(view, {}).get(decision_point))
    return ViewHealth(
        view=view,
        decision_point=decision_point,
        online_age_s=_age(current_at, now),
        offline_age_s=_age(report.logged_at.get(view, {}).get(decision_point), now),
        arms=arms,
        missing=None if found is None else max(arms - len(found), 0),
        lost=lost,
        violation_age_s=_age(max((at for at in violations if at is not None), default=None), now),
    )


def feature_alerts(views: Iterable[ViewHealth], limits: FeatureLimits) -> list[Alert]:
    """What is wrong, in the order of the views.

    Parameters
    ----------
    views
        As `view_health` sees them.
    limits
        In seconds. An age equal to its limit is within it. Online, nothing at all counts as stale;
        offline it does not, since the learner tells from its start on and logs within seconds.

    Examples
    --------
    >>> late = ViewHealth("arm_windows", "chat", 2.5, 9.0, 2, 0, 0, None)
    >>> [(alert.reason, alert.detail) for alert in feature_alerts([late], FeatureLimits())]
    [('stale', '2.5 s old online, limit 1 s')]
    """
    alerts: list[Alert] = []
    for one in views:
        found: dict[Reason, str] = {}
        online_s = limits.offline_s if one.view == _ONCE_IN_A_WHILE else limits.online_s
        if one.online_age_s is None:
            found["stale"] = "nothing was ever read online"
        elif one.online_age_s > online_s:
            found["stale"] = f"{one.online_age_s:.1f} s old online, limit {online_s:g} s"
        if one.offline_age_s is not None and one.offline_age_s > limits.offline_s:
            found["offline_stale"] = (
                f"last logged {one.offline_age_s:.0f} s ago, limit {limits.offline_s:g} s"
            )
        if one.lost > 0:
            found["missing"] = f"{one.lost} of {one.arms} models lost what was pushed of them"
        if one.violation_age_s is not None and one.violation_age_s <= limits.violation_s:
            found["out_of_range"] = (
                f"a value was out of range or not finite {one.violation_age_s:.0f} s ago"
            )
        alerts += [
            Alert(one.view, one.decision_point, reason, found[reason])
            for reason in REASONS
            if reason in found
        ]
    return alerts


def _age(at_s: float | None, now: float) -> float | None:
    return None if at_s is None else max(now - at_s, 0.0)
