"""A decision point in a replica's memory: context in, signed decision out, no I/O, no lock."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from feature_repo.embedding import Embedder
from optimizer.errors import IncompatibleState, UnknownName
from optimizer.features import FeatureEncoder, pack
from optimizer.policies import Policy, draw, make_policy
from optimizer.records import Context
from optimizer.settings import DecisionPoint
from serving.decision_log import LoggedDecision
from serving.snapshots import Snapshot
from serving.tokens import CHAMPION, CONTROL, FALLBACK, ROLES, Decision, TokenSigner

__all__ = ["LivePoint", "make_encoder", "make_point_policy"]

_LOG = logging.getLogger(__name__)
_HASH_RANGE = float(2**64)


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
        Called with every decision.
    """

    def __init__(
        self,
        point: DecisionPoint,
        embedder: Embedder,
        signer: TokenSigner,
        log: Callable[[LoggedDecision], None],
    ) -> None:
        self.point = point
        self.encoder = make_encoder(point, embedder)
        self.snapshot: Snapshot | None = None
        self.snapshot_at = 0.0
        self.set_aside: tuple[int, ...] = ()
        """Arms that fail too often lately; replaced whole by the background refresh."""
        self.counts = [0] * len(ROLES)
        self.arm_counts = [0] * len(point.arms)
        self._policy: Policy | None = None
        self._version = 0
        self._embed = embedder.embed
        self._sign = signer.sign
        self._log = log
        self._arms = point.records()
        self._all = range(len(self._arms))
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
        return self._policy

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
        self._version = snapshot.position
        self._policy = policy
        return True

    def decide(
        self, context: Context, unit_id: str | None, candidates: Sequence[str] | None
    ) -> bytes:
        """One decision, as the JSON that is sent back.

        Raises
        ------
        UnknownName
            If a candidate is no model of this decision point.
        """
        allowed = None if candidates is None else self._indices(candidates)
        now = time.time()
        embedding = self._embed(context.prompt) if context.prompt else None
        features = self.encoder.encode(context, embedding, now)
        uid = os.urandom(16)
        role, arm, propensity = self._choose(features, unit_id, allowed)
        version = self._version
        decision = Decision(
            role,
            uid,
            now,
            self._arms[arm].id,
            propensity,
            version,
            self.encoder.schema_id,
            self.point.name,
            pack(features),
        )
        raw, token = self._sign(decision)
        self.counts[role] += 1
        self.arm_counts[arm] += 1
        self._log(
            LoggedDecision(
                self.point.name, uid, now, self._arms[arm].model, role, propensity, version, raw
            )
        )
        return b'{"decision_id":"%s%s%s,"policy_version":%d,"fallback":%s}' % (
            token.encode(),
            self._fragments[arm],
            repr(propensity).encode(),
            version,
            b"true" if role == FALLBACK else b"false",
        )

    def _choose(
        self, features: Any, unit_id: str | None, allowed: list[int] | None
    ) -> tuple[int, int, float]:
        """Role, arm and propensity."""
        if self._is_control(unit_id):
            choices = self._all if allowed is None else allowed
            return CONTROL, random.choice(choices), 1.0 / len(choices)
        policy = self._policy
        if policy is not None:
            try:
                probabilities = policy.probabilities(features, allowed, self.set_aside)
                arm = draw(probabilities, random.random())
                return CHAMPION, arm, float(probabilities[arm])
            except Exception:
                _LOG.exception("%s: the policy raised, the static rule decides", self.point.name)
        static = self.point.static_index
        if allowed is not None and static not in allowed:
            static = allowed[0]
        return FALLBACK, static, 1.0

    def _is_control(self, unit_id: str | None) -> bool:
        share = self.point.control_share
        if unit_id is None:
            return random.random() < share
        digest = hashlib.blake2b(unit_id.encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") / _HASH_RANGE < share

    def _indices(self, candidates: Sequence[str]) -> list[int]:
        found: set[int] = set()
        for position, model in enumerate(candidates):
            if model not in self._by_model:
                raise UnknownName(
                    f"candidates[{position}]", model, f"one of {sorted(self._by_model)}"
                )
            found.update(self._by_model[model])
        return sorted(found)
