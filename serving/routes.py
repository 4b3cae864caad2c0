"""The policies of a decision point in a replica's memory, and the plan they serve under.

A plan is followed once every policy that it names has arrived; until then the one before stays in
force, so that no share of the traffic ever meets a policy that is not there.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import NamedTuple

from optimizer.errors import IncompatibleState
from optimizer.experiments.assignment import Assigner
from optimizer.feature_schema import FeatureSchema, Translation
from optimizer.features import FeatureEncoder
from optimizer.policies import Policy, make_policy
from optimizer.records import Matrix
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.settings import DecisionPoint
from serving.feature_schemas import policy_schema
from serving.snapshots import FIRST, Snapshot

__all__ = ["Routes", "Serving", "Shelf", "make_point_policy", "place"]

_LOG = logging.getLogger(__name__)
_HASH_RANGE = float(2**64)


class Serving(NamedTuple):
    """A policy that serves.

    Attributes
    ----------
    version
        The ledger position up to which it has learned.
    translation
        From the features of now to those it looks at; None where they are the same.
    """

    policy: Policy
    version: int
    translation: Translation | None = None

    def seen(self, features: Matrix) -> Matrix:
        """The features as it looks at them, shape (size,) or (n, size)."""
        return features if self.translation is None else self.translation(features)


class Routes(NamedTuple):
    """Who decides now; replaced as a whole.

    Attributes
    ----------
    champion
        None before its first snapshot: the static rule decides.
    challenger, shadow
        None where there is none.
    share
        The challenger's, of the units that are neither control nor in an experiment.
    salt
        Of the challenger's split: a unit that it has stays with it while its share grows.
    assigner
        Of the running experiments, None where there is none.
    """

    plan: RoutingPlan
    champion: Serving | None = None
    challenger: Serving | None = None
    share: float = 0.0
    salt: bytes = b""
    shadow: Serving | None = None
    assigner: Assigner | None = None


class Shelf:
    """Takes snapshots and plans as they come; `routes` is what they make together.

    Parameters
    ----------
    point
        Settings of the decision point.
    encoder
        Its feature layout.

    Attributes
    ----------
    routes
        Read once a decision; a background thread replaces it.
    snapshot, snapshot_at
        The champion's snapshot, and since when it decides (Unix seconds).
    """

    def __init__(self, point: DecisionPoint, encoder: FeatureEncoder) -> None:
        self._point = point
        self._computed = encoder.schema
        self._schema = policy_schema(point, encoder.schema)
        self._known: dict[PolicyRef, tuple[Snapshot, Serving]] = {}
        self._plan = self._nothing = RoutingPlan(point.name, 0, FIRST)
        self.routes = Routes(self._plan)
        self.snapshot: Snapshot | None = None
        self.snapshot_at = 0.0

    def take(self, snapshot: Snapshot) -> bool:
        """Use a snapshot; False if it is not newer than the one at hand, or of other settings."""
        known = self._known.get(snapshot.ref)
        if known is not None and snapshot.position <= known[0].position:
            return False
        settings = snapshot.settings()
        point = self._point.model_copy(update={"policy": settings} if settings else {})
        schema = snapshot.schema or self._schema
        if unknown := self._computed.missing(schema.names):
            _LOG.error(
                "%s: snapshot of variant %s is left alone, it uses features that are not computed "
                "here: %s",
                self._point.name,
                snapshot.ref.variant,
                ", ".join(unknown),
            )
            return False
        policy = make_point_policy(point, schema)
        if snapshot.lineage != policy.lineage:
            _LOG.info("%s: snapshot of other settings is left alone", self._point.name)
            return False
        try:
            policy.use_snapshot(snapshot.state)
        except IncompatibleState as error:
            _LOG.error("%s: snapshot refused: %s", self._point.name, error)
            return False
        same = schema.names == self._computed.names
        translation = None if same else Translation(self._computed, schema)
        self._known[snapshot.ref] = snapshot, Serving(policy, snapshot.position, translation)
        self._arrange()
        return True

    def has(self, ref: PolicyRef) -> bool:
        """Whether a snapshot of this policy is here."""
        return ref in self._known

    def follow(self, plan: RoutingPlan) -> bool:
        """Follow a plan as soon as its policies are here; False if it is not newer."""
        if plan.epoch <= self._plan.epoch:
            return False
        self._plan = plan
        self._arrange()
        return True

    def lacking(self) -> list[PolicyRef]:
        """Policies of the newest plan whose snapshots may still change, or are not here yet."""
        return [ref for ref in self._plan.refs() if ref.pinned is None or ref not in self._known]

    def release(self) -> None:
        """Give back the memory of all policies; the static rule decides until the next `take`."""
        self._known = {}
        self._plan = self._nothing
        self.routes, self.snapshot = Routes(self._plan), None

    def _arrange(self) -> None:
        in_force = self.routes.plan
        if all(ref in self._known for ref in self._plan.refs()) or in_force is self._nothing:
            in_force = self._plan
        names = set(in_force.refs()) | set(self._plan.refs())
        self._known = {ref: known for ref, known in self._known.items() if ref in names}
        champion = self._known.get(in_force.champion)
        if champion is not None and champion[0] is not self.snapshot:
            self.snapshot, self.snapshot_at = champion[0], time.time()
        challenger = self._serving(in_force.challenger)
        self.routes = Routes(
            in_force,
            champion[1] if champion else None,
            challenger,
            in_force.challenger_share if challenger else 0.0,
            hashlib.blake2b(repr(in_force.challenger).encode(), digest_size=16).digest(),
            self._serving(in_force.shadow),
            Assigner(in_force.experiments, [arm.id for arm in self._point.records()])
            if in_force.experiments
            else None,
        )

    def _serving(self, ref: PolicyRef | None) -> Serving | None:
        known = self._known.get(ref) if ref is not None else None
        return known[1] if known else None


def make_point_policy(point: DecisionPoint, schema: FeatureSchema | FeatureEncoder) -> Policy:
    """A policy of the decision point that has learned nothing yet."""
    return make_policy(
        point.policy,
        point.records(),
        schema.size,
        point.objective(),
        static_arm=point.static_index,
        schema_id=schema.schema_id,
        groups=schema.groups,
    )


def place(digest: bytes) -> float:
    """In [0, 1): where 8 bytes of a hash fall."""
    return int.from_bytes(digest, "big") / _HASH_RANGE
