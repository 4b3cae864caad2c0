"""What people do to a routing plan by hand: shadow, promote, roll back.

Each is one change of the plan in PostgreSQL with its audit entry, announced to the replicas at
once. Nothing here needs MLflow: the learner moves the aliases there when it can.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg

from optimizer.errors import InvalidInput, Unavailable, UnknownName
from optimizer.feature_schema import FeatureSchema
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.rollout.canary import Gate, start
from optimizer.settings import DecisionPoint, Settings
from serving import audit, ledger, plans, variants
from serving.feature_use import ROLLBACK, champion_before
from serving.reward_writer import connect
from serving.snapshots import SnapshotStore

__all__ = ["Promotion", "with_champion"]

_LOG = logging.getLogger(__name__)
_ACTOR = "command"


class Promotion:
    """Changes the plan of one decision point.

    Parameters
    ----------
    settings
        Of the whole platform.
    point
        The decision point.
    """

    def __init__(self, settings: Settings, point: DecisionPoint) -> None:
        self._settings = settings
        self.point = point

    def plan(self) -> RoutingPlan:
        """The plan in force."""
        with self._connected() as connection:
            return plans.current(connection, self.point.name)

    def variants(self) -> dict[str, PolicySettings]:
        """The configurations by their names."""
        with self._connected() as connection:
            return variants.variants(connection, self.point.name)

    def schemas(self) -> dict[str, FeatureSchema]:
        """The features that each variant looks at."""
        with self._connected() as connection:
            return variants.variant_schemas(connection, self.point.name)

    def add_variant(self, policy: PolicySettings, schema: FeatureSchema) -> str:
        """Name a configuration for that feature layout; it serves nobody yet."""
        with self._connected() as connection:
            plans.current(connection, self.point.name)
            point = self.point.model_copy(update={"policy": policy})
            return variants.add_variant(connection, point, schema)

    def shadow(self, variant: str | None) -> RoutingPlan:
        """Let a variant decide and be logged without serving; None ends that.

        Raises
        ------
        InvalidInput
            If it serves already.
        UnknownName
            If there is no such variant.
        """
        ref = None if variant is None else PolicyRef(variant)

        def update(plan: RoutingPlan) -> RoutingPlan:
            if ref is not None and ref in (plan.champion, plan.challenger):
                raise InvalidInput("variant", variant, "one that does not serve already")
            return msgspec.structs.replace(plan, shadow=ref)

        with self._connected() as connection:
            self._known(connection, ref)
            reason = f"variant {variant} is the shadow" if ref else "no shadow any more"
            return self._change(connection, update, "shadow.set", reason, {})

    def canary(self, variant: str, gate: Gate) -> RoutingPlan:
        """Make a variant the challenger, in its first stage.

        Parameters
        ----------
        variant
            Its name; if it is the shadow, it stops being that.
        gate
            What the off-policy check said.

        Raises
        ------
        InvalidInput
            If the gate refuses, the variant is the champion, or another canary is running.
        UnknownName
            If there is no such variant.
        """
        if not gate.allowed:
            raise InvalidInput("variant", variant, f"{gate.reason} --force starts it all the same")
        ref = PolicyRef(variant)
        with self._connected() as connection:
            self._known(connection, ref)
            position = ledger.head(connection, self.point.name)

            def update(plan: RoutingPlan) -> RoutingPlan:
                if plan.champion == ref:
                    raise InvalidInput("variant", variant, "one that is not the champion already")
                if plan.shadow == ref:
                    plan = msgspec.structs.replace(plan, shadow=None)
                return start(plan, ref, self.point.canary, time.time(), position)

            reason = f"Variant {variant} starts as challenger. {gate.reason}"
            return self._change(connection, update, "canary.start", reason, gate.evidence)

    def replace(self, ref: PolicyRef, state: bytes | None, reason: str) -> RoutingPlan:
        """Make a policy the champion at once; a running canary ends.

        Parameters
        ----------
        ref
            Which policy.
        state
            What it has learned, if it is pinned to a version.
        reason
            For the audit trail.

        Raises
        ------
        UnknownName
            If there is no such variant.
        """
        with self._connected() as connection:
            self._known(connection, ref)
            if state is not None:
                variants.pin_state(connection, self.point.name, ref, state)
            return self._change(
                connection, lambda plan: with_champion(plan, ref), "policy.promote", reason, {}
            )

    def rollback(self) -> RoutingPlan:
        """Take back the newest step: end the running canary, else bring back the champion before.

        Raises
        ------
        InvalidInput
            If no canary runs and there never was another champion.
        """
        with self._connected() as connection:
            plan = plans.current(connection, self.point.name)
            before = champion_before(connection, self.point.name, plan)

            def update(plan: RoutingPlan) -> RoutingPlan:
                if plan.challenger is not None:
                    return with_champion(plan, plan.champion)
                if before is None:
                    raise InvalidInput(
                        "version",
                        None,
                        "there was no other champion; `llmopt models list` shows versions, and "
                        "`llmopt models rollback VERSION` takes one of them",
                    )
                return with_champion(plan, before)

            reason = "rolled back by command"
            return self._change(connection, update, ROLLBACK, reason, {})

    def archive(self, variant: str) -> None:
        """Say that a variant is not to serve any more: no rollback brings it back.

        It comes out of the archive when it is made again.

        Raises
        ------
        InvalidInput
            If it serves now.
        UnknownName
            If there is no such variant.
        """
        name = self.point.name
        with self._connected() as connection, connection.transaction():
            self._known(connection, PolicyRef(variant))
            plan = plans.current(connection, name)
            if variant in {ref.variant for ref in plan.refs()}:
                raise InvalidInput(
                    "version", variant, "one that does not serve; promote another version first"
                )
            variants.archive(connection, name, variant)
            reason = f"variant {variant} was archived by command"
            audit.record(connection, name, _ACTOR, "policy.archive", reason, {"variant": variant})

    def _known(self, connection: psycopg.Connection[Any], ref: PolicyRef | None) -> None:
        known = variants.variants(connection, self.point.name)
        if ref is not None and ref.variant not in known:
            raise UnknownName("variant", ref.variant, f"one of {list(known)}")

    def _change(
        self,
        connection: psycopg.Connection[Any],
        update: Callable[[RoutingPlan], RoutingPlan],
        action: str,
        reason: str,
        evidence: dict[str, Any],
    ) -> RoutingPlan:
        plan = plans.change(
            connection,
            self.point.name,
            update,
            actor=_ACTOR,
            action=action,
            reason=reason,
            evidence=evidence,
        )
        self._announce(plan)
        return plan

    def _announce(self, plan: RoutingPlan) -> None:
        store = SnapshotStore(self._settings.valkey_address)
        try:
            store.publish_plan(plan)
        except Unavailable as error:
            _LOG.warning("the learner will announce plan %d: %s", plan.epoch, error)
        finally:
            store.close()

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with connect(self._settings.postgres_dsn()) as connection:
                ledger.create_tables(connection)
                yield connection
        except psycopg.OperationalError as error:
            raise Unavailable("PostgreSQL") from error


def with_champion(plan: RoutingPlan, champion: PolicyRef) -> RoutingPlan:
    """The plan without a canary, and with this champion."""
    return msgspec.structs.replace(
        plan,
        champion=champion,
        challenger=None,
        challenger_share=0.0,
        shadow=None if plan.shadow == champion else plan.shadow,
    )
