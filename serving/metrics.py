"""Prometheus metrics of a replica, made at scrape time from plain counters.

The decision path adds to integers; nothing there takes the locks of a metrics library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving.live_point import LivePoint
from serving.tokens import FALLBACK, ROLES

__all__ = ["ReplicaMetrics"]

_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
_SWAP_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class ReplicaMetrics(Collector):
    """Counters of one replica.

    Parameters
    ----------
    points
        The decision points in memory.
    gauges
        Name and help of further figures, each read at scrape time.
    further
        Makes whole families at scrape time.
    """

    def __init__(
        self,
        points: Iterable[LivePoint],
        gauges: dict[str, tuple[str, Callable[[], float]]],
        further: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        self._points = list(points)
        self._gauges = gauges
        self._further = further
        self.requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._swaps: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        self.turned_away = 0
        """Decisions that were refused because too many waited."""
        self.longest_queue = 0
        """Most decisions that waited at a time since the last scrape."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def decided(self, seconds: float, decisions: int) -> None:
        """Count decisions that were made together and took this long inside the replica."""
        self._buckets[bisect_left(_BUCKETS_S, seconds)] += decisions
        self._sum_s += seconds * decisions

    def swapped(self, name: str, reward: str, seconds: float) -> None:
        """Count how long a reward took from the ledger to a policy that decides here.

        Parameters
        ----------
        name
            Decision point.
        reward
            ``newest`` or ``oldest`` of those that came with the snapshot.
        seconds
            By the clock here less that of PostgreSQL; below 0 it counts as 0.
        """
        held = self._swaps.setdefault((name, reward), ([0] * (len(_SWAP_BUCKETS_S) + 1), [0.0]))
        held[0][bisect_left(_SWAP_BUCKETS_S, seconds)] += 1
        held[1][0] += max(seconds, 0.0)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        requests = CounterMetricFamily(
            "llmopt_requests", "Requests answered", labels=["route", "status"]
        )
        for (route, status), count in sorted(self.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        turned_away = CounterMetricFamily("llmopt_turned_away", "Decisions beyond the queue")
        turned_away.add_metric([], self.turned_away)
        yield turned_away
        longest, self.longest_queue = self.longest_queue, 0
        yield GaugeMetricFamily(
            "llmopt_queue_longest", "Most decisions that waited since the last scrape", longest
        )
        yield self._latency()
        yield self._reward_to_replica()
        yield from self._point_metrics()
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(f"llmopt_{name}", text, value=read())
        yield from self._further()

    def _latency(self) -> Metric:
        buckets: list[Any] = []
        total = 0
        for bound, count in zip((*_BUCKETS_S, float("inf")), self._buckets, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family = HistogramMetricFamily(
            "llmopt_decision_seconds", "Time to decide, inside the replica"
        )
        family.add_metric([], buckets, self._sum_s)
        return family

    def _reward_to_replica(self) -> Metric:
        family = HistogramMetricFamily(
            "llmopt_reward_to_replica_seconds",
            "From a reward in the ledger to a policy that has learned it and decides here; the "
            "clocks of PostgreSQL and of this machine are taken as the same",
            labels=["decision_point", "reward"],
        )
        for labels, (counts, (sum_s,)) in list(self._swaps.items()):
            bounds = [*map(str, _SWAP_BUCKETS_S), "+Inf"]
            totals = accumulate(list(counts))
            family.add_metric(list(labels), list(zip(bounds, totals, strict=True)), sum_s)
        return family

    def _point_metrics(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "llmopt_decisions", "Decisions made", labels=["decision_point", "role"]
        )
        arms = CounterMetricFamily(
            "llmopt_arm_decisions", "Decisions by arm", labels=["decision_point", "model"]
        )
        fallbacks = CounterMetricFamily(
            "llmopt_fallbacks", "Decisions of the static rule", labels=["decision_point"]
        )
        version = GaugeMetricFamily(
            "llmopt_policy_version", "Ledger position of the policy", labels=["decision_point"]
        )
        age = GaugeMetricFamily(
            "llmopt_snapshot_age_seconds", "Since the last swap", labels=["decision_point"]
        )
        propensity = CounterMetricFamily(
            "llmopt_propensity", "Sum of propensities of decisions", labels=["decision_point"]
        )
        now = time.time()
        for live in self._points:
            name = live.point.name
            for role, count in zip(ROLES, live.counts, strict=True):
                decisions.add_metric([name, role], count)
            for arm, count in zip(live.point.arms, live.arm_counts, strict=True):
                arms.add_metric([name, arm.model], count)
            fallbacks.add_metric([name], live.counts[FALLBACK])
            propensity.add_metric([name], live.propensity_sum)
            if live.shelf.snapshot is not None:
                version.add_metric([name], live.shelf.snapshot.position)
                age.add_metric([name], now - live.shelf.snapshot_at)
        yield from (decisions, arms, fallbacks, propensity, version, age)
