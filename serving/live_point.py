"""A decision point in a replica's memory: requests in, signed decisions out, no I/O, no lock."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import random
from typing import NamedTuple

import msgspec

from feature_repo.embedding import Embedder
from optimizer.errors import UnknownName
from optimizer.experiments.allocation import with_floor
from optimizer.extra_columns import FEATURE_SETS
from optimizer.features import FeatureEncoder, pack
from optimizer.policies import Policy, draw_many
from optimizer.records import Matrix
from optimizer.settings import DecisionPoint
from serving.decision_log import LoggedDecisions
from serving.routes import Routes, Serving, Shelf, place
from serving.schema import DecisionBody, DecisionRequest
from serving.tokens import (
    CHALLENGER,
    CHAMPION,
    CONTROL,
    EXPERIMENT,
    FALLBACK,
    ROLES,
    SHADOW,
    TokenBatch,
    TokenSigner,
    token_text,
)

__all__ = ["LivePoint", "make_encoder"]

_LOG = logging.getLogger(__name__)
_ID_BYTES = 16

Request = DecisionBody | DecisionRequest


def make_encoder(point: DecisionPoint, embedder: Embedder) -> FeatureEncoder:
    """The feature layout of a decision point."""
    return FeatureEncoder(point.tasks, embedder.size, FEATURE_SETS[point.features])


class _Drawn(NamedTuple):
    """Decisions made together, as columns."""

    roles: list[int]
    arms: list[int]
    propensities: list[float]
    versions: list[int]
    units: list[bytes | None]


class LivePoint:
    """Decides for one decision point.

    Parameters
    ----------
    point
        Its settings.
    embedder
        Shared by all decision points of the process.
    signer
        Signs tokens.
    log
        Called with all decisions.

    Attributes
    ----------
    shelf
        Its policies and its plan.
    """

    def __init__(
        self,
        point: DecisionPoint,
        embedder: Embedder,
        signer: TokenSigner,
        log: Callable[[LoggedDecisions], None],
    ) -> None:
        self.point = point
        self.encoder = make_encoder(point, embedder)
        self.shelf = Shelf(point, self.encoder)
        self.used_at = 0.0
        """Time of the last decision, Unix seconds."""
        self.set_aside: tuple[int, ...] = ()
        """Arms that fail too often lately; replaced whole by the background refresh."""
        self.counts = [0] * len(ROLES)
        self.arm_counts = [0] * len(point.arms)
        self.propensity_sum = 0.0
        self._embed = embedder.embed
        self._signer = signer
        self._log = log
        self._arms = point.records()
        self._models = [arm.model for arm in self._arms]
        self._all = list(range(len(self._arms)))
        self._control_share = point.control_share
        self._by_model: dict[str, list[int]] = {}
        for index, arm in enumerate(self._arms):
            self._by_model.setdefault(arm.model, []).append(index)
        name = msgspec.json.encode(point.name)
        self._fragments = [
            b'","decision_point":%s,"model":%s,"parameters":%s,"prompt_variant":%s,"propensity":'
            % (
                name,
                msgspec.json.encode(arm.model),
                msgspec.json.encode(dict(arm.parameters)),
                msgspec.json.encode(arm.prompt_variant),
            )
            for arm in self._arms
        ]
        self._salt = hashlib.blake2b(point.name.encode(), digest_size=16).digest()

    @property
    def policy(self) -> Policy | None:
        """The champion that decides now, None before its first snapshot."""
        champion = self.shelf.routes.champion
        return champion.policy if champion else None

    def decide(self, requests: Sequence[Request]) -> list[bytes | UnknownName]:
        """Decisions, each as the JSON that is sent back, or what is wrong with a request.

        Features, probabilities and draws of all requests are made at once.
        """
        if all(request.candidates is None for request in requests):
            return list(self._decide(requests, [None] * len(requests)))
        fitting: list[Request] = []
        allowed: list[list[int] | None] = []
        refused: dict[int, UnknownName] = {}
        for row, request in enumerate(requests):
            try:
                allowed.append(self._indices(request.candidates))
                fitting.append(request)
            except UnknownName as error:
                refused[row] = error
        decided = iter(self._decide(fitting, allowed) if fitting else ())
        return [refused.get(row) or next(decided) for row in range(len(requests))]

    def _decide(self, requests: Sequence[Request], allowed: list[list[int] | None]) -> list[bytes]:
        self.used_at = now = time.time()
        contexts = [request.context for request in requests]
        embed = self._embed
        embeddings = [embed(one.prompt) if one.prompt else None for one in contexts]
        users = [request.unit_id for request in requests]
        features = self.encoder.encode_many(contexts, embeddings, now, users)
        routes = self.shelf.routes
        drawn = self._choose(routes, features, requests, allowed)
        ids = os.urandom(_ID_BYTES * len(requests))
        batch = TokenBatch(
            self.point.name, self.encoder.schema_id, now, pack(features), routes.plan.epoch
        )
        tokens = self._sign(batch, drawn, ids)
        for role, count in Counter(drawn.roles).items():
            self.counts[role] += count
        for arm, count in Counter(drawn.arms).items():
            self.arm_counts[arm] += count
        self.propensity_sum += sum(drawn.propensities)
        self._log_drawn(drawn, tokens)
        if routes.shadow is not None:
            self._follow_shadow(routes.shadow, batch, drawn, ids, features, allowed)
        # Within a batch few answers differ in more than their token.
        ends: dict[tuple[int, float, int], bytes] = {}
        answers = []
        keys = zip(drawn.arms, drawn.propensities, drawn.roles, strict=True)
        for token, end, version in zip(tokens, keys, drawn.versions, strict=True):
            text = ends.get(end)
            if text is None:
                arm, propensity, role = end
                text = ends[end] = b'%s%a,"policy_version":%d,"fallback":%s}' % (
                    self._fragments[arm],
                    propensity,
                    version,
                    b"true" if role == FALLBACK else b"false",
                )
            answers.append(b'{"decision_id":"%s%s' % (token_text(token), text))
        return answers

    def _sign(self, batch: TokenBatch, drawn: _Drawn, ids: bytes) -> list[bytes]:
        arms = self._arms
        return self._signer.sign_many(
            batch,
            drawn.roles,
            [arms[arm].id for arm in drawn.arms],
            drawn.propensities,
            drawn.versions,
            drawn.units,
            ids,
        )

    def _log_drawn(self, drawn: _Drawn, tokens: list[bytes]) -> None:
        models = [self._models[arm] for arm in drawn.arms]
        self._log(LoggedDecisions(self.point.name, models, drawn.roles, tokens))

    def _choose(
        self,
        routes: Routes,
        features: Matrix,
        requests: Sequence[Request],
        allowed: list[list[int] | None],
    ) -> _Drawn:
        number = len(requests)
        uniform = [random() for _ in requests]
        units: list[bytes | None] = [None] * number
        roles, arms, propensities, versions = self._by(
            routes.champion, CHAMPION, features, uniform, allowed
        )
        drawn = _Drawn(roles, arms, propensities, versions, units)
        share, control_share = routes.share, self._control_share
        challenged: list[int] = []
        for row, request in enumerate(requests):
            unit_id = request.unit_id
            if unit_id is None:
                at = random()
            else:
                unit = units[row] = self._hash(unit_id, self._salt)
                at = place(unit)
            if at < control_share:
                among = allowed[row] or self._all
                roles[row], propensities[row] = CONTROL, 1.0 / len(among)
                arms[row] = among[int(uniform[row] * len(among))]
            elif routes.assigner is not None and self._experiment(
                routes, row, request, features, uniform[row], allowed[row], drawn
            ):
                continue
            elif share and share > (
                random() if unit_id is None else place(self._hash(unit_id, routes.salt))
            ):
                challenged.append(row)
        if challenged:
            columns = self._by(
                routes.challenger,
                CHALLENGER,
                features[challenged],
                [uniform[row] for row in challenged],
                [allowed[row] for row in challenged],
            )
            for row, values in zip(challenged, zip(*columns, strict=True), strict=True):
                roles[row], arms[row], propensities[row], versions[row] = values
        return drawn

    def _experiment(
        self,
        routes: Routes,
        row: int,
        request: Request,
        features: Matrix,
        uniform: float,
        allowed: list[int] | None,
        drawn: _Drawn,
    ) -> bool:
        """Decide by an experiment; False if the request is in none, or may not have its arms."""
        assert routes.assigner is not None
        if allowed is None and self.set_aside:
            allowed = [arm for arm in self._all if arm not in self.set_aside]
        assigned = routes.assigner.variant(request.unit_id, random(), allowed)
        if assigned is None:
            return False
        among, propensity = assigned.arms, assigned.propensity
        if assigned.variant is None:  # the champion divides the requests
            if routes.champion is None:
                return False
            odds = routes.champion.policy.probabilities(routes.champion.seen(features[row]), among)[
                list(among)
            ]
            (place_among,), (propensity,) = draw_many(with_floor(odds)[None], [uniform])
            arm = among[place_among]
        else:
            arm = among[int(uniform * len(among))]
            propensity /= len(among)
        drawn.roles[row], drawn.arms[row], drawn.propensities[row] = EXPERIMENT, arm, propensity
        return True

    def _by(
        self,
        serving: Serving | None,
        role: int,
        features: Matrix,
        uniform: list[float],
        allowed: list[list[int] | None],
    ) -> tuple[list[int], list[int], list[float], list[int]]:
        """Roles, arms, propensities and versions: of a policy, or of the static rule."""
        number = len(uniform)
        if serving is not None:
            try:
                seen = serving.seen(features)
                arms, propensities = self._by_policy(serving.policy, seen, uniform, allowed)
                return [role] * number, arms, propensities, [serving.version] * number
            except Exception:
                _LOG.exception("%s: the policy raised, the static rule decides", self.point.name)
        static = [self._static(among) for among in allowed]
        version = serving.version if serving else 0
        return [FALLBACK] * number, static, [1.0] * number, [version] * number

    def _follow_shadow(
        self,
        shadow: Serving,
        batch: TokenBatch,
        drawn: _Drawn,
        ids: bytes,
        features: Matrix,
        allowed: list[list[int] | None],
    ) -> None:
        """Log what the shadow would have decided, under the ids of what was decided."""
        uniform = [random() for _ in drawn.arms]
        roles, arms, propensities, versions = self._by(shadow, SHADOW, features, uniform, allowed)
        if roles[0] == SHADOW:  # a shadow that raises decides nothing
            would = _Drawn(roles, arms, propensities, versions, drawn.units)
            self._log_drawn(would, self._sign(batch, would, ids))
            self.counts[SHADOW] += len(roles)

    def _by_policy(
        self,
        policy: Policy,
        features: Matrix,
        uniform: list[float],
        allowed: list[list[int] | None],
    ) -> tuple[list[int], list[float]]:
        set_aside = self.set_aside
        probabilities = policy.probabilities_many(features, set_aside)
        for row, among in enumerate(allowed):
            if among is not None:
                probabilities[row] = policy.probabilities(features[row], among, set_aside)
        return draw_many(probabilities, uniform)

    def _static(self, allowed: list[int] | None) -> int:
        static = self.point.static_index
        return static if allowed is None or static in allowed else allowed[0]

    @staticmethod
    def _hash(unit_id: str, salt: bytes) -> bytes:
        """Always the same for a unit and a salt: units stay where they are put."""
        return hashlib.blake2b(unit_id.encode(), digest_size=8, key=salt).digest()

    def _indices(self, candidates: Sequence[str] | None) -> list[int] | None:
        if candidates is None:
            return None
        found: set[int] = set()
        for position, model in enumerate(candidates):
            if model not in self._by_model:
                raise UnknownName(
                    f"candidates[{position}]", model, f"one of {sorted(self._by_model)}"
                )
            found.update(self._by_model[model])
        return sorted(found)
