"""What ``llmopt models`` changes: variants, canaries and rollbacks of a decision point.

What only some of it needs is imported there: a rollback must not wait for MLflow's import.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from infra.progress import OnStep
from optimizer.errors import InvalidInput, Unavailable
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.rollout.canary import Gate, gate
from optimizer.settings import Settings
from serving import audit
from serving.promotion import Promotion
from serving.reward_writer import connect

__all__ = [
    "archive_variant",
    "create_variant",
    "promote_variant",
    "read_trail",
    "roll_back",
    "show_plan",
    "trail_table",
]

_SINCE = "7d"


def create_variant(
    settings: Settings, point: str, policy: str, given: list[str], shadow: bool
) -> tuple[str, dict[str, Any]]:
    """Name a policy; gives the variant and the plan.

    Raises
    ------
    InvalidInput
        If the policy or a hyper-parameter is wrong.
    """
    from feature_repo.embedding import Embedder
    from serving.feature_schemas import policy_schema
    from serving.live_point import make_encoder

    values: dict[str, Any] = {"name": policy}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise InvalidInput("set", one, "NAME=VALUE, for instance alpha=0.5")
        values[name] = yaml.safe_load(value)
    try:
        made = PolicySettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "policy"
        raise InvalidInput(field, first["input"], first["msg"]) from None
    of_point = settings.decision_point(point)
    promotion = Promotion(settings, of_point)
    schema = policy_schema(of_point, make_encoder(of_point, Embedder()).schema)
    variant = promotion.add_variant(made, schema)
    plan = promotion.shadow(variant) if shadow else promotion.plan()
    return variant, msgspec.to_builtins(plan)


def promote_variant(
    settings: Settings, point: str, version: str, now: bool, force: bool, on_step: OnStep
) -> tuple[dict[str, Any], str]:
    """Start a canary, or make a variant the champion at once; gives the plan and the reason.

    A version of three numbers stands for its variant, which goes on learning.

    Raises
    ------
    InvalidInput
        If the log speaks against it, another canary runs, or it is the champion already.
    """
    promotion = Promotion(settings, settings.decision_point(point))
    variant = ".".join(version.split(".")[:2])
    known = promotion.variants()
    if variant not in known:
        raise InvalidInput(
            "version", version, f"one of {list(known)}; `llmopt models create` makes another"
        )
    if now:
        reason = f"Variant {variant} was made the champion by command, without a canary."
        return _plain(promotion.replace(PolicyRef(variant), None, reason)), reason
    found = _gate(promotion, settings, variant, known[variant], on_step)
    if force and not found.allowed:
        found = Gate(True, f"Forced by command. {found.reason}", found.evidence)
    plan = promotion.canary(variant, found)
    return _plain(plan), found.reason


def roll_back(settings: Settings, point: str, version: str | None) -> dict[str, Any]:
    """Take back the newest step, or go to a stored version and stay there.

    Raises
    ------
    InvalidInput
        If there is nothing to take back, or no such version.
    PartFailed
        If a version is named and MLflow is away.
    """
    promotion = Promotion(settings, settings.decision_point(point))
    if version is None:
        return _plain(promotion.rollback())
    from infra.models import registry_of

    with registry_of(settings) as registry:
        found = registry.get(point, version)
        stored = registry.load(point, version)
        registry.tag(point, version, {"rollback": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"})
    ref = PolicyRef(found.variant, stored.position)
    reason = f"rolled back by command to version {found.semantic_version}, which learns no more"
    return _plain(promotion.replace(ref, stored.state, reason))


def archive_variant(settings: Settings, point: str, version: str) -> str:
    """Say that a variant is not to serve any more; gives its name.

    A version of three numbers stands for its variant.

    Raises
    ------
    InvalidInput
        If it serves now, or there is no such variant.
    """
    variant = ".".join(version.split(".")[:2])
    Promotion(settings, settings.decision_point(point)).archive(variant)
    return variant


def read_trail(settings: Settings, point: str, limit: int) -> list[dict[str, Any]]:
    """The newest entries of the audit trail, newest first.

    Raises
    ------
    Unavailable
        If PostgreSQL is away.
    """
    try:
        with connect(settings.postgres_dsn()) as connection:
            entries = audit.trail(connection, point, limit)
    except psycopg.OperationalError as error:
        raise Unavailable("PostgreSQL") from error
    return [{**asdict(one), "at": one.at.isoformat(timespec="seconds")} for one in entries]


def trail_table(entries: list[dict[str, Any]]) -> Table:
    """For people."""
    table = Table("when", "who", "what", "why")
    for one in entries:
        table.add_row(one["at"], one["actor"], one["action"], one["reason"])
    return table


def show_plan(console: Console, plan: dict[str, Any]) -> None:
    """Who serves which share."""
    table = Table("role", "variant", "share of the units beside control")
    share = plan["challenger_share"]
    for role, of in (("champion", 1 - share), ("challenger", share), ("shadow", 0.0)):
        ref = plan[role]
        if ref is not None:
            pinned = "" if ref["pinned"] is None else f", pinned at {ref['pinned']}"
            table.add_row(role, f"{ref['variant']}{pinned}", f"{of:.0%}")
    console.print(table)


def _gate(
    promotion: Promotion,
    settings: Settings,
    variant: str,
    policy: PolicySettings,
    on_step: OnStep,
) -> Gate:
    """The off-policy check on the last week's log."""
    from infra.evaluations import judge
    from infra.logged_sources import find_source

    of_point = promotion.point
    try:
        source = find_source(
            lambda: settings,
            datetime.now(UTC),
            decision_point=of_point.name,
            since=_SINCE,
            on_step=on_step,
        )
    except InvalidInput as error:
        if error.field != "since":
            raise
        return gate(None, of_point.guardrails)  # nothing was decided in that time
    schema = promotion.schemas().get(variant)
    found = judge(policy, source, f"variant {variant}", on_step, schema)
    return gate(found, of_point.guardrails)


def _plain(plan: RoutingPlan) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(plan)
    return found
