"""The figures of the learner's watch as Prometheus metrics, read from the champion's snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.live_point import LivePoint

__all__ = ["watch_metrics"]


def watch_metrics(points: Iterable[LivePoint]) -> Iterator[Metric]:
    """Alarms, regret and recent predictions of each decision point that has a snapshot here."""
    alarms = CounterMetricFamily(
        "llmopt_learner_alarms", "Alarms of drift", labels=["decision_point"]
    )
    regret = GaugeMetricFamily(
        "llmopt_learner_regret",
        "Reward lost so far against the best single arm, told from control; below 0 is a gain",
        labels=["decision_point"],
    )
    skill = GaugeMetricFamily(
        "llmopt_learner_skill",
        "1 - squared error of predictions over that of the mean, lately",
        labels=["decision_point", "head"],
    )
    calibration = GaugeMetricFamily(
        "llmopt_learner_calibration_error",
        "Expected calibration error of predictions, lately",
        labels=["decision_point", "head"],
    )
    rate = GaugeMetricFamily(
        "llmopt_learner_rewards_per_second", "Learned lately", labels=["decision_point"]
    )
    for live in points:
        snapshot = live.shelf.snapshot
        if snapshot is None or snapshot.progress is None:
            continue
        name, watch = live.point.name, snapshot.progress.watch
        rate.add_metric([name], snapshot.progress.rewards_per_s)
        alarms.add_metric([name], watch["alarms_raised"])
        if (lost := watch["regret"].get("cumulative")) is not None:
            regret.add_metric([name], lost)
        for head, figures in watch["recent"].items():
            calibration.add_metric([name, head], figures["calibration_error"])
            if figures["skill"] is not None:
                skill.add_metric([name, head], figures["skill"])
    yield from (alarms, regret, skill, calibration, rate)
