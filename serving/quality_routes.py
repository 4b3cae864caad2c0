"""`POST /v1/quality`: how good a response is predicted to be, and whether to ask a better model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from feature_repo.embedding import Embedder
from optimizer.errors import InvalidInput, Unavailable, UnknownName
from optimizer.features import unpack
from optimizer.records import Vector
from optimizer.response_facts import response_facts
from optimizer.retry import Candidate, Retry, advise_retry
from serving.arm_features import ArmFeatureReader
from serving.decider import unknown_point
from serving.live_point import LivePoint
from serving.problems import invalid_body
from serving.quality_board import QualityFollower, ServedQuality
from serving.responses import Response
from serving.schema import QualityBody, QualityResponse, RetryAdvice, read_context

if TYPE_CHECKING:
    from serving.tokens import TokenSigner

__all__ = ["QualityRoutes"]

_RETRY_AFTER_S = 60
"""Models come from an hourly flow."""


class _Asked(NamedTuple):
    """A request as features, the arm that answered, and the decision's token if there was one."""

    live: LivePoint
    features: Vector
    arm: int
    prompt: str | None
    token: bytes | None


class QualityRoutes:
    """The handler and its metrics.

    Parameters
    ----------
    points
        The decision points of the replica.
    signer
        Knows its tokens.
    embedder
        Shared by all decision points.
    models
        Quality models in memory.
    statistics
        Recent costs of arms.
    tell
        Called with the bytes of a token and the facts about its response, to learn from later.
    """

    def __init__(
        self,
        points: Mapping[str, LivePoint],
        signer: TokenSigner,
        embedder: Embedder,
        models: QualityFollower,
        statistics: ArmFeatureReader,
        tell: Callable[[bytes, Vector], None],
    ) -> None:
        self._points = points
        self._signer = signer
        self._embedder = embedder
        self._models = models
        self._statistics = statistics
        self._tell = tell
        self._body = msgspec.json.Decoder(QualityBody)
        self._predicted: Counter[str] = Counter()
        self._advised: Counter[str] = Counter()

    async def predict(self, body: bytes, argument: str) -> Response:
        """Answer one request, in a thread: decisions do not wait for it."""
        return await asyncio.to_thread(self._answer, body)

    def metrics(self) -> Iterator[Metric]:
        """Metric families of the replica's quality models."""
        predicted = CounterMetricFamily(
            "llmopt_quality_predictions", "Qualities predicted", labels=["decision_point"]
        )
        advised = CounterMetricFamily(
            "llmopt_retries_advised", "Retries that were advised", labels=["decision_point"]
        )
        age = GaugeMetricFamily(
            "llmopt_quality_model_age_seconds", "Since it was trained", labels=["decision_point"]
        )
        version = GaugeMetricFamily(
            "llmopt_quality_model_version", "In the registry", labels=["decision_point"]
        )
        for name in self._points:
            predicted.add_metric([name], self._predicted[name])
            advised.add_metric([name], self._advised[name])
        now = time.time()
        for name, served in self._models.served.items():
            age.add_metric([name], max(now - served.trained_at, 0.0))
            version.add_metric([name], served.version)
        yield from (predicted, advised, age, version)

    def _answer(self, body: bytes) -> Response:
        try:
            request = self._body.decode(body)
        except msgspec.MsgspecError as error:
            raise invalid_body(error, body) from None
        asked = self._of_decision(request) if request.decision_id else self._of_context(request)
        live, point = asked.live, asked.live.point
        facts = None
        if request.response is not None:
            embedding = live.encoder.embedding_of(asked.features)
            facts = response_facts(
                asked.prompt, request.response, embedding, self._embedder.embed(request.response)
            )
            if asked.token is not None:
                self._tell(asked.token, facts)
        served = self._model(live)  # after that: the first model, too, learns from what is told
        qualities = served.model.predict_arms(asked.features, point.records(), asked.arm, facts)
        self._predicted[point.name] += 1
        answer = QualityResponse(
            quality=qualities[asked.arm],
            calibrated=True,
            model_version=served.version,
            response_used=facts is not None and served.model.knows_responses,
            retry=self._retry(asked, served, qualities),
        )
        return Response(200, msgspec.json.encode(answer))

    def _model(self, live: LivePoint) -> ServedQuality:
        served = self._models.served.get(live.point.name)
        if served is None or served.model.names != live.encoder.names:
            part = f"a quality model of {live.point.name}"
            raise Unavailable(part, retry_after_s=_RETRY_AFTER_S)
        return served

    def _of_decision(self, request: QualityBody) -> _Asked:
        for name in ("decision_point", "model", "context"):
            if getattr(request, name) is not None:
                raise InvalidInput(
                    name, getattr(request, name), "left out beside decision_id, which tells it"
                )
        assert request.decision_id is not None
        token, decision = self._signer.verify(request.decision_id)
        live = self._points.get(decision.decision_point)
        if live is None:
            raise unknown_point(decision.decision_point, self._points)
        ids = [arm.id for arm in live.point.records()]
        if decision.arm_id not in ids:
            raise InvalidInput(
                "decision_id", request.decision_id, "a decision for an arm that is still configured"
            )
        if decision.schema_id != live.encoder.schema_id:
            raise InvalidInput(
                "decision_id", request.decision_id, "a decision with the features of now"
            )
        return _Asked(live, unpack(decision.features), ids.index(decision.arm_id), None, token)

    def _of_context(self, request: QualityBody) -> _Asked:
        for name in ("decision_point", "model", "context"):
            if getattr(request, name) is None:
                raise InvalidInput(name, None, "needed where no decision_id is given")
        assert request.decision_point is not None and request.context is not None
        live = self._points.get(request.decision_point)
        if live is None:
            raise unknown_point(request.decision_point, self._points)
        models = [arm.model for arm in live.point.arms]
        if request.model not in models:
            raise UnknownName("model", request.model, f"one of {sorted(set(models))}")
        try:
            context = read_context(request.context)
        except msgspec.ValidationError as error:
            body = msgspec.json.encode({"context": request.context})
            raise invalid_body(error, body, "context") from None
        embedding = self._embedder.embed(context.prompt) if context.prompt else None
        features = live.encoder.encode(context, embedding, time.time())
        return _Asked(live, features, models.index(request.model), context.prompt, None)

    def _retry(
        self, asked: _Asked, served: ServedQuality, qualities: list[float]
    ) -> RetryAdvice | None:
        point = asked.live.point
        if point.retry_below is None:
            return None
        others = []
        for index, arm in enumerate(point.records()):
            set_aside = index in asked.live.set_aside
            if index == asked.arm or set_aside or not served.model.has_seen(arm):
                continue
            recent = self._statistics.recent(point.name, arm.model)
            others.append(Candidate(index, qualities[index], recent.cost_usd if recent else None))
        advice = advise_retry(
            qualities[asked.arm],
            others,
            point.objective(),
            below=point.retry_below,
            gain=point.retry_gain,
        )
        if advice is None:
            return None
        self._advised[point.name] += advice.arm is not None
        return _described(asked.live, advice)


def _described(live: LivePoint, advice: Retry) -> RetryAdvice:
    if advice.arm is None:
        return RetryAdvice(False, None, None, None, None, None, advice.reason)
    arm = live.point.arms[advice.arm.index]
    return RetryAdvice(
        True,
        arm.model,
        dict(arm.parameters),
        arm.prompt_variant,
        advice.arm.quality,
        advice.arm.cost_usd,
        advice.reason,
    )
