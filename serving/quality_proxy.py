"""What a quality model says of decisions that got no feedback, for the learner."""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.embedding import Embedder
from optimizer.errors import InvalidToken
from optimizer.feature_schema import Translations
from optimizer.features import unpack
from optimizer.settings import DecisionPoint, Settings
from serving.feature_schemas import known_schemas
from serving.live_point import make_encoder
from serving.quality_board import QualityFollower
from serving.reward_writer import connect
from serving.tokens import parse

__all__ = ["QualityProxy"]


class QualityProxy:
    """Predicts the qualities of decisions from their tokens; a `serving.ledger.Proxy`.

    Every decision gets a number, so that its window closes: one that can't be read, of an arm that
    is gone or of features that nobody knows, gets the mean of all.

    Parameters
    ----------
    settings
        Of the whole platform.
    point
        The decision point.
    embedder
        Tells the length of the prompt embedding.
    models
        Quality models in memory.
    """

    def __init__(
        self, settings: Settings, point: DecisionPoint, embedder: Embedder, models: QualityFollower
    ) -> None:
        self._dsn = settings.postgres_dsn()
        self._name = point.name
        self._schema = make_encoder(point, embedder).schema
        self._arms = {arm.id: arm for arm in point.records()}
        self._models = models

    def __call__(self, tokens: Sequence[bytes]) -> tuple[int, Sequence[float]] | None:
        served = self._models.served.get(self._name)
        if served is None or served.model.names != self._schema.names:
            return None
        with connect(self._dsn) as connection:
            layouts = Translations(self._schema, known_schemas(connection, self._name).values())
        found = []
        for token in tokens:
            quality = served.model.overall
            try:
                decision = parse(token)
            except InvalidToken:
                found.append(quality)
                continue
            arm = self._arms.get(decision.arm_id)
            if arm is not None and decision.schema_id in layouts:
                features = layouts.read(decision.schema_id, unpack(decision.features))
                quality = served.model.predict_arms(features, [arm])[0]
            found.append(quality)
        return served.version, found
