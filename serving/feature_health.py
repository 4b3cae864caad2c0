"""Health of the features of a replica, for Prometheus, the log and `GET /v1/features`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from feature_repo.catalogue import of_view
from feature_repo.health import (
    REASONS,
    VIEWS,
    Alert,
    ViewHealth,
    feature_alerts,
    view_health,
)
from feature_repo.report import FeatureReport
from optimizer.settings import FeatureLimits
from serving.arm_features import ArmFeatureReader

__all__ = ["FeatureHealth", "FeaturesHealthResponse"]

_LOG = logging.getLogger(__name__)
_START_S = 30.0
"""Feast and the learner take seconds to start: so long, what was never read is no alert."""


class FeaturesHealthResponse(Struct, frozen=True):
    """Health of every feature view as this replica sees it.

    `read_age_s` are the seconds since the feature store was last read, null if it never was. The
    other counts are by view and feature, or by decision point. `range_violations` counts values
    that this replica read out of range or not finite. The rest counts in the learner's process
    since it started: `push_violations` the same on the way into the store, `outcome_violations`
    outcomes that were clipped before they were counted, `late_outcomes` those that came too late
    for the windows.
    """

    read_age_s: float | None
    alerts: list[Alert]
    views: list[ViewHealth]
    range_violations: dict[str, dict[str, int]]
    push_violations: dict[str, dict[str, int]]
    outcome_violations: dict[str, dict[str, int]]
    late_outcomes: dict[str, int]


class FeatureHealth:
    """Judges what a reader has read.

    Parameters
    ----------
    reader
        Of the replica.
    limits
        When to raise alerts.
    """

    def __init__(self, reader: ArmFeatureReader, limits: FeatureLimits) -> None:
        self._reader = reader
        self._limits = limits
        self._started_at = time.monotonic()
        self._told: dict[tuple[str, str, str], Alert] = {}

    def views(self) -> list[ViewHealth]:
        """All views at all decision points, now."""
        reader, now = self._reader, time.time()
        return [
            view_health(
                view,
                name,
                len(set(models)),
                reader.times(view, name),
                reader.report,
                reader.violated_at.get((view, name)),
                now,
            )
            for view in VIEWS
            for name, models in reader.models.items()
        ]

    def alerts(self, views: list[ViewHealth]) -> list[Alert]:
        """What is wrong with them; while the platform starts, only with what has been read."""
        if time.monotonic() - self._started_at < _START_S:
            views = [one for one in views if one.online_age_s is not None]
        return feature_alerts(views, self._limits)

    def watch(self) -> None:
        """Log each alert once when it begins and once when it ends; call after every reading."""
        now: dict[tuple[str, str, str], Alert] = {
            (one.view, one.decision_point, one.reason): one for one in self.alerts(self.views())
        }
        for key, alert in now.items():
            if key not in self._told:
                _LOG.warning("features: %s of %s: %s: %s", *key, alert.detail)
        for key in self._told.keys() - now.keys():
            _LOG.warning("features: %s of %s: no longer %s", *key)
        self._told = now

    def response(self) -> FeaturesHealthResponse:
        """Everything, for people."""
        views = self.views()
        report = self._reader.report or FeatureReport()
        age_s = self._reader.age_s()
        return FeaturesHealthResponse(
            read_age_s=None if age_s == float("inf") else age_s,
            alerts=self.alerts(views),
            views=views,
            range_violations={
                view: dict(counts) for view, counts in self._reader.violations.items()
            },
            push_violations=report.violations,
            outcome_violations=report.outcome_violations,
            late_outcomes=report.late,
        )

    def metrics(self) -> Iterator[Metric]:
        """All metric families; those of the learner say the same at every replica."""
        views = self.views()
        yield from _gauges(views)
        on = {(alert.view, alert.reason) for alert in self.alerts(views)}
        alerts = GaugeMetricFamily(
            "llmopt_feature_alert", "1 while a view has this alert", labels=["view", "reason"]
        )
        for view in VIEWS:
            for reason in REASONS:
                alerts.add_metric([view, reason], float((view, reason) in on))
        yield alerts
        report = self._reader.report or FeatureReport()
        for name, text, counts in (
            (
                "llmopt_feature_range_violations",
                "Values read out of range or not finite",
                self._reader.violations,
            ),
            (
                "llmopt_learner_range_violations",
                "The same, on their way into the store",
                report.violations,
            ),
        ):
            family = CounterMetricFamily(name, text, labels=["view", "feature"])
            for view in VIEWS:
                for one in of_view(view):
                    family.add_metric([view, one.name], counts.get(view, {}).get(one.name, 0))
            yield family
        outcomes = CounterMetricFamily(
            "llmopt_learner_outcome_violations",
            "Parts of outcomes that were clipped before statistics counted them",
            labels=["decision_point", "part"],
        )
        for point, parts in report.outcome_violations.items():
            for part, count in parts.items():
                outcomes.add_metric([point, part], count)
        yield outcomes
        late = CounterMetricFamily(
            "llmopt_learner_late_outcomes",
            "Outcomes that came too late for the windows",
            labels=["decision_point"],
        )
        for point, count in report.late.items():
            late.add_metric([point], count)
        yield late


def _gauges(views: list[ViewHealth]) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "llmopt_feature_view_age_seconds",
        "Since values were all that the learner knew (online), were logged (offline)",
        labels=["view", "decision_point", "store"],
    )
    missing = GaugeMetricFamily(
        "llmopt_feature_missing_share",
        "Share of the configured arms without a value",
        labels=["view", "decision_point"],
    )
    lost = GaugeMetricFamily(
        "llmopt_feature_lost_arms",
        "Arms whose values the learner pushed and the store does not give",
        labels=["view", "decision_point"],
    )
    for one in views:
        labels = [one.view, one.decision_point]
        for store, age_s in (("online", one.online_age_s), ("offline", one.offline_age_s)):
            if age_s is not None:
                age.add_metric([*labels, store], age_s)
        if one.missing_share is not None:
            missing.add_metric(labels, one.missing_share)
        lost.add_metric(labels, one.lost)
    yield from (age, missing, lost)
