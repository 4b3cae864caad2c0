"""A decision point in a replica's memory: requests in, signed decisions out, no I/O, no lock."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import random

import msgspec

from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState, UnknownName
from optimizer.features import FeatureEncoder, pack
from optimizer.policies import Policy, draw_many, make_policy
from optimizer.records import Matrix
from optimizer.settings import DecisionPoint
from serving.decision_log import LoggedDecisions
from serving.schema import DecisionBody, DecisionRequest
from serving.snapshots import Snapshot
from serving.tokens import (
    CHAMPION,
    CONTROL,
    FALLBACK,
    ROLES,
    TokenBatch,
    TokenSigner,
    token_text,
)

__all__ = ["LivePoint", "make_encoder", "make_point_policy"]

_LOG = logging.getLogger(__name__)
_HASH_RANGE = float(2**64)
_IS_FALLBACK = {CHAMPION: b"false", CONTROL: b"false", FALLBACK: b"true"}

Request = DecisionBody | DecisionRequest


def make_encoder(point: DecisionPoint, embedder: Embedder) -> FeatureEncoder:
    """The feature layout of a decision point."""
    return FeatureEncoder(point.tasks, embedder.size)


def make_point_policy(point: DecisionPoint, encoder: FeatureEncoder) -> Policy:
    """A policy of the decision point that has learned nothing yet."""
    return make_policy(
        point.policy,
        point.records(),
        encoder.size,
        point.objective(),
        static_arm=point.static_index,
        schema_id=encoder.schema_id,
        groups=encoder.groups,
    )


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
    snapshot, snapshot_at
        What decides now, and since when (Unix seconds).
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
        self.snapshot: Snapshot | None = None
        self.snapshot_at = 0.0
        self.used_at = 0.0
        """Time of the last decision, Unix seconds."""
        self.set_aside: tuple[int, ...] = ()
        """Arms that fail too often lately; replaced whole by the background refresh."""
        self.counts = [0] * len(ROLES)
        self.arm_counts = [0] * len(point.arms)
        self.propensity_sum = 0.0
        self._serving: tuple[Policy | None, int] = (None, 0)
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
        """The policy that decides now, None before the first snapshot."""
        return self._serving[0]

    def take(self, snapshot: Snapshot) -> bool:
        """Swap to a snapshot; False if it is older than the one in use or of other settings."""
        current = self.snapshot
        if current is not None and snapshot.position <= current.position:
            return False
        policy = make_point_policy(self.point, self.encoder)
        if snapshot.lineage != policy.lineage:
            _LOG.info("%s: snapshot of other settings is left alone", self.point.name)
            return False
        try:
            policy.use_snapshot(snapshot.state)
        except IncompatibleState as error:
            _LOG.error("%s: snapshot refused: %s", self.point.name, error)
            return False
        self.snapshot, self.snapshot_at = snapshot, time.time()
        self._serving = (policy, snapshot.position)
        return True

    def release(self) -> None:
        """Give back the memory of the policy; the static rule decides until the next `take`."""
        self.snapshot, self._serving = None, (None, 0)

    def decide(self, requests: Sequence[Request]) -> list[bytes | UnknownName]:
        """Decisions, each as the JSON that is sent back, or what is wrong with a request.

        Features, probabilities and draws of all requests are made at once.
        """
        if all(request.candidates is None for request in requests):
            return list(self._decide(requests, [None] * len(requests)))
        fitting: list[Request] = []
        allowed: list[list[int] | None] = []
        refused: dict[int, UnknownName] = {}
        for place, request in enumerate(requests):
            try:
                allowed.append(self._indices(request.candidates))
                fitting.append(request)
            except UnknownName as error:
                refused[place] = error
        decided = iter(self._decide(fitting, allowed) if fitting else ())
        return [refused.get(place) or next(decided) for place in range(len(requests))]

    def _decide(self, requests: Sequence[Request], allowed: list[list[int] | None]) -> list[bytes]:
        self.used_at = now = time.time()
        contexts = [request.context for request in requests]
        embed = self._embed
        embeddings = [embed(one.prompt) if one.prompt else None for one in contexts]
        features = self.encoder.encode_many(contexts, embeddings, now)
        policy, version = self._serving
        roles, arms, propensities = self._choose(policy, features, requests, allowed)
        records = self._arms
        tokens = self._signer.sign_many(
            TokenBatch(self.point.name, self.encoder.schema_id, version, now, pack(features)),
            roles,
            [records[arm].id for arm in arms],
            propensities,
        )
        for role, count in Counter(roles).items():
            self.counts[role] += count
        for arm, count in Counter(arms).items():
            self.arm_counts[arm] += count
        self.propensity_sum += sum(propensities)
        models = [self._models[arm] for arm in arms]
        self._log(LoggedDecisions(self.point.name, models, roles, tokens))
        # Within a batch few answers differ in more than their token.
        ends: dict[tuple[int, float, int], bytes] = {}
        answers = []
        for token, end in zip(tokens, zip(arms, propensities, roles, strict=True), strict=True):
            text = ends.get(end)
            if text is None:
                arm, propensity, role = end
                text = ends[end] = b'%s%a,"policy_version":%d,"fallback":%s}' % (
                    self._fragments[arm],
                    propensity,
                    version,
                    _IS_FALLBACK[role],
                )
            answers.append(b'{"decision_id":"%s%s' % (token_text(token), text))
        return answers

    def _choose(
        self,
        policy: Policy | None,
        features: Matrix,
        requests: Sequence[Request],
        allowed: list[list[int] | None],
    ) -> tuple[list[int], list[int], list[float]]:
        """Role, arm and propensity of each."""
        number = len(requests)
        uniform = [random() for _ in requests]
        roles = [CHAMPION] * number
        chosen = None
        if policy is not None:
            try:
                chosen = self._by_policy(policy, features, uniform, allowed)
            except Exception:
                _LOG.exception("%s: the policy raised, the static rule decides", self.point.name)
        if chosen is None:
            roles = [FALLBACK] * number
            chosen = [self._static(among) for among in allowed], [1.0] * number
        arms, propensities = chosen
        for row, request in enumerate(requests):
            unit_id = request.unit_id
            if (random() if unit_id is None else self._place(unit_id)) < self._control_share:
                among = allowed[row] or self._all
                roles[row], propensities[row] = CONTROL, 1.0 / len(among)
                arms[row] = among[int(uniform[row] * len(among))]
        return roles, arms, propensities

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

    def _place(self, unit_id: str) -> float:
        """In [0, 1), always the same for a unit; those below the control's share are control."""
        digest = hashlib.blake2b(unit_id.encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") / _HASH_RANGE

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
