"""Which policy versions use a feature, and what may therefore not be taken away.

A version is live while the routing plan names it, or while a rollback would bring it back.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

from optimizer.errors import InvalidInput
from optimizer.feature_schema import FeatureSchema
from optimizer.rollout import PolicyRef, RoutingPlan
from serving import audit
from serving.variants import archived, variant_schemas

__all__ = [
    "ROLLBACK",
    "champion_before",
    "check_computed",
    "check_not_used",
    "live_refs",
]

ROLLBACK = "policy.rollback"
"""The audit trail's name for taking back a change of champion."""

_TRAIL = 1000


def champion_before(
    connection: psycopg.Connection[Any], decision_point: str, plan: RoutingPlan
) -> PolicyRef | None:
    """Whom the present champion replaced, and a rollback brings back; None if there is nobody.

    Changes that were rolled back don't count, nor do variants that are archived.
    """
    gone = archived(connection, decision_point)
    undone = 0
    for entry in audit.trail(connection, decision_point, _TRAIL):
        before, after = entry.evidence.get("plan_before"), entry.evidence.get("plan")
        if before is None or after is None or before["champion"] == after["champion"]:
            continue
        ref = msgspec.convert(before["champion"], PolicyRef)
        if entry.action == ROLLBACK:
            undone += 1
        elif undone:
            undone -= 1
        elif ref.variant not in gone and ref != plan.champion:
            return ref
    return None


def live_refs(
    connection: psycopg.Connection[Any], decision_point: str, plan: RoutingPlan
) -> dict[str, PolicyRef]:
    """The live policies by their roles."""
    roles = {
        "champion": plan.champion,
        "challenger": plan.challenger,
        "shadow": plan.shadow,
        "previous": champion_before(connection, decision_point, plan),
    }
    return {role: ref for role, ref in roles.items() if ref is not None}


def check_not_used(
    connection: psycopg.Connection[Any],
    decision_point: str,
    plan: RoutingPlan,
    computed: FeatureSchema,
) -> None:
    """Refuse settings that no longer compute what a live version looks at.

    Parameters
    ----------
    computed
        All columns under the new settings.

    Raises
    ------
    InvalidInput
        Naming the columns, the versions with their roles, and the way to get rid of them.
    """
    schemas = variant_schemas(connection, decision_point)
    roles: dict[str, list[str]] = {}
    lost: dict[str, None] = {}
    for role, ref in live_refs(connection, decision_point, plan).items():
        schema = schemas.get(ref.variant)
        missing = computed.missing(schema.names) if schema is not None else ()
        if missing:
            roles.setdefault(_name(ref), []).append(role)
            lost |= dict.fromkeys(missing)
    if not lost:
        return
    users = ", ".join(f"{name} ({', '.join(held)})" for name, held in roles.items())
    one = len(lost) == 1
    what, them = ("this feature is", "it") if one else ("these features are", "them")
    raise InvalidInput(
        f"decision_points.{decision_point}",
        list(lost),
        f"{what} used by version {users}, and the settings no longer have {them}. Put {them} back, "
        f"list {them} in `retired_features`, and start: a version without {them} takes the "
        "champion's place. Then `llmopt models archive VERSION` whatever still uses "
        f"{them}, and take {them} out",
    )


def check_computed(
    connection: psycopg.Connection[Any],
    decision_point: str,
    ref: PolicyRef,
    computed: FeatureSchema,
) -> None:
    """Refuse to let a version serve that looks at what is no longer computed.

    Raises
    ------
    InvalidInput
        Naming the columns.
    """
    schema = variant_schemas(connection, decision_point).get(ref.variant)
    missing = computed.missing(schema.names) if schema is not None else ()
    if missing:
        raise InvalidInput(
            "version",
            _name(ref),
            f"it uses {', '.join(missing)}, which the settings of {decision_point} no longer have; "
            "put that back and start again, or take another version",
        )


def _name(ref: PolicyRef) -> str:
    return ref.variant if ref.pinned is None else f"{ref.variant} pinned at {ref.pinned}"
