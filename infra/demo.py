"""`llmopt demo`: recorded prompts through the running platform, each answered by its record.

Decisions, rewards and learning are live and go over HTTP, as an application's would. What the
chosen model "did" is what the recording says it did: no LLM is called.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from statistics import fmean, quantiles
from time import perf_counter
from typing import Any

from infra.addresses import http_url
from infra.recordings import PARETOBANDIT, load_recording
from optimizer.baselines import baselines, equal_cost_mix
from optimizer.errors import PartFailed, UnknownName
from optimizer.recorded import RecordedOutcomes
from optimizer.records import Outcome
from optimizer.reward import Objective
from optimizer.settings import Settings
from serving.client import AsyncOptimizer, ServiceUnavailable

__all__ = ["DemoRun", "Sent", "run_demo", "summarise"]

_WORKERS = 8
_TIMEOUT_S = 10.0
_PATIENCE_S = 60.0
_RETRIES = 10_000  # patience ends before
_BACKOFF_S = 0.1
_LEARN_S = 5.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: the row of the recording, the model by index, and what was seen."""

    row: int
    model: int
    outcome: Outcome
    reward: float
    decision_s: float
    fallback: bool
    policy_version: int
    control: bool


@dataclass(frozen=True)
class DemoRun:
    """All that was sent, in the order of answers.

    Attributes
    ----------
    recorded
        The whole recording.
    objective
        Of the decision point, without latency: the recording has none.
    versions
        Policy version before the first decision, and after the last reward was learned.
    retried
        Calls that were repeated because a part was away for a moment.
    """

    decision_point: str
    recorded: RecordedOutcomes
    objective: Objective
    sent: list[Sent]
    versions: tuple[int | None, int | None]
    retried: int


def run_demo(
    settings: Settings,
    requests: int | None,
    rate_per_s: float,
    on_sent: Callable[[list[Sent], int], None] = lambda sent, total: None,
) -> DemoRun:
    """Send the recording's prompts to the platform, and the recorded outcomes back.

    Parameters
    ----------
    settings
        Say where the platform listens and what its objective is.
    requests
        How many; the recording is repeated where it is shorter, and sent once if None.
    rate_per_s
        At most so many requests a second.
    on_sent
        Called after each request with those sent so far and the number to send.

    Raises
    ------
    PartFailed
        If the platform doesn't answer the first request.
    ServiceUnavailable
        If it stays away later, for a minute.
    UnknownName
        If no decision point chooses among the recorded models.
    Refused
        If the platform refuses a request.
    """
    recorded = load_recording(PARETOBANDIT)
    driver = _Driver(settings, recorded, requests or len(recorded.prompts), rate_per_s, on_sent)
    return asyncio.run(driver.run())


def summarise(run: DemoRun) -> dict[str, Any]:
    """The object of ``--json``, without the picture's path; every mean is a request's."""
    sent, recorded = run.sent, run.recorded
    rows = [one.row for one in sent]
    same = replace(
        recorded,
        request_ids=tuple(recorded.request_ids[row] for row in rows),
        prompts=tuple(recorded.prompts[row] for row in rows),
        tasks=tuple(recorded.tasks[row] for row in rows),
        quality=recorded.quality[rows],
        cost_usd=recorded.cost_usd[rows],
    )
    means = _means(sent)
    rules = {
        name: {key: value for key, value in asdict(rule).items() if value is not None}
        for name, rule in baselines(same, run.objective).items()
    }
    milliseconds = [1000 * one.decision_s for one in sent]
    percent = quantiles(milliseconds, n=100) if len(sent) > 1 else milliseconds * 99
    return {
        "data": PARETOBANDIT,
        "decision_point": run.decision_point,
        "requests": len(sent),
        **means,
        "without_control": _means([one for one in sent if not one.control] or sent),
        "control_share": sum(one.control for one in sent) / len(sent),
        "last_third": _means(sent[-(len(sent) // 3 or 1) :]),
        "baselines": {
            **rules,
            "equal_cost_mix": {"quality": equal_cost_mix(same, means["cost_usd"])},
        },
        "decision_ms": {"p50": percent[49], "p99": percent[98]},
        "models": _shares(sent, recorded.models),
        "fallbacks": sum(one.fallback for one in sent),
        "policy_version": {"before": run.versions[0], "after": run.versions[1]},
        "retried": run.retried,
    }


def _means(sent: list[Sent]) -> dict[str, float]:
    return {
        "quality": fmean(one.outcome.quality or 0.0 for one in sent),
        "cost_usd": fmean(one.outcome.cost_usd or 0.0 for one in sent),
        "reward": fmean(one.reward for one in sent),
    }


def _shares(sent: list[Sent], models: tuple[str, ...]) -> dict[str, float]:
    counts = Counter(one.model for one in sent)
    return {model: counts[index] / len(sent) for index, model in enumerate(models)}


class _Driver:
    """Eight workers that take the next request when it is due."""

    def __init__(
        self,
        settings: Settings,
        recorded: RecordedOutcomes,
        requests: int,
        rate_per_s: float,
        on_sent: Callable[[list[Sent], int], None],
    ) -> None:
        self._settings = settings
        self._recorded = recorded
        self._requests = requests
        self._rate_per_s = rate_per_s
        self._on_sent = on_sent
        self._url = http_url(settings.host, settings.ports.fast_lane)
        self._sent: list[Sent] = []

    async def run(self) -> DemoRun:
        """Send everything."""
        name, before = await self._choose_point()
        point = self._settings.decision_point(name)
        objective = Objective(point.weights, point.cost_cap_usd)
        due = iter(range(self._requests))
        # No static rule: the demo shows what the platform decides, and waits for it if need be.
        async with AsyncOptimizer(
            self._url,
            timeout_s=_PATIENCE_S,
            try_timeout_s=_TIMEOUT_S,
            retries=_RETRIES,
            backoff_s=_BACKOFF_S,
        ) as optimizer:
            began_s = perf_counter()
            await asyncio.gather(
                *(self._work(optimizer, name, objective, due, began_s) for _ in range(_WORKERS))
            )
            after = await self._version_once_learned(optimizer, name)
        versions, retried = (before, after), optimizer.retried
        return DemoRun(name, self._recorded, objective, self._sent, versions, retried)

    async def _choose_point(self) -> tuple[str, int | None]:
        """The first decision point whose models are all recorded, and its policy version."""
        try:
            async with AsyncOptimizer(
                self._url, timeout_s=_TIMEOUT_S, try_timeout_s=_TIMEOUT_S, retries=0
            ) as optimizer:
                points = await optimizer.decision_points()
        except ServiceUnavailable as error:
            raise PartFailed(
                f"nothing answers at {self._url}: start the platform with `llmopt up`"
            ) from error
        for point in points:
            if set(point["models"]) <= set(self._recorded.models):
                return point["name"], point["policy_version"]
        known = ", ".join(self._recorded.models)
        names = [point["name"] for point in points]
        raise UnknownName("decision_points", names, f"the demo needs one with models of: {known}")

    async def _work(
        self,
        optimizer: AsyncOptimizer,
        name: str,
        objective: Objective,
        due: Iterator[int],
        began_s: float,
    ) -> None:
        for index in due:
            await asyncio.sleep(began_s + index / self._rate_per_s - perf_counter())
            row = index % len(self._recorded.prompts)
            self._sent.append(await self._send(optimizer, name, objective, row))
            self._on_sent(self._sent, self._requests)

    async def _send(
        self, optimizer: AsyncOptimizer, name: str, objective: Objective, row: int
    ) -> Sent:
        """One decision and its reward."""
        recorded = self._recorded
        models = len(self._settings.decision_point(name).arms)
        context = {"prompt": recorded.prompts[row], "task": recorded.tasks[row]}
        asked_s = perf_counter()
        decision = await optimizer.decide(name, context, recorded.request_ids[row])
        took_s = perf_counter() - asked_s
        model = recorded.models.index(decision.model)
        outcome = recorded.outcome(row, model)
        await optimizer.reward(
            decision.decision_id, quality=outcome.quality, cost_usd=outcome.cost_usd
        )
        return Sent(
            row,
            model,
            outcome,
            objective.reward(outcome) or 0.0,
            took_s,
            decision.fallback,
            decision.policy_version,
            # The control draws every arm alike; of the policies only `random` does, too.
            decision.propensity == 1.0 / models,
        )

    async def _version_once_learned(self, optimizer: AsyncOptimizer, name: str) -> int | None:
        """The policy version when the last reward was learned, or after five seconds."""
        deadline = perf_counter() + _LEARN_S
        while True:
            point = await optimizer.decision_point(name)
            if point["learned"] >= point["rewards"] or perf_counter() > deadline:
                version: int | None = point["policy_version"]
                return version
            await asyncio.sleep(_BACKOFF_S)
