"""What is done about drift: each action once, with its entry in the audit table.

A change of the routing plan, its audit entry and the mark that it is done are one transaction, so
it happens once whoever is killed. An alert and the start of a training are told to somebody else:
they happen at least once, and twice only if we are killed between telling and marking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from optimizer.errors import InvalidInput, Unavailable
from optimizer.policies.names import PolicySettings
from optimizer.rollout import PolicyRef, RoutingPlan
from optimizer.settings import DecisionPoint, Settings
from serving import alerts, audit, plans, variants
from serving.drift_store import create_tables
from serving.feature_use import ROLLBACK, champion_before
from serving.promotion import with_champion
from serving.reward_writer import connect
from serving.snapshots import SnapshotStore

__all__ = ["act"]

_LOG = logging.getLogger(__name__)
_ACTOR = "drift"
_TAKE = """
SELECT window_end, what, action, reason, evidence FROM drift_actions
WHERE decision_point = %s AND {mark} IS NULL AND action NOT IN ('none', 'wait')
ORDER BY window_end, what LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_MARK = (
    "UPDATE drift_actions SET {mark} = now() "
    "WHERE decision_point = %s AND window_end = %s AND what = %s"
)


def act(settings: Settings, point: DecisionPoint, retrain: Callable[[], None]) -> list[str]:
    """Do what is due for a decision point, also what others left undone.

    Parameters
    ----------
    settings
        Of the whole platform.
    point
        The decision point.
    retrain
        Starts a training; what it raises leaves the action to be done.

    Returns
    -------
    A sentence for each thing that was done.

    Raises
    ------
    Unavailable
        If an alert could not be delivered: try again. Other actions are done by then.
    """
    done = []
    with connect(settings.postgres_dsn()) as connection:
        create_tables(connection)
        while (sentence := _one_action(connection, settings, point, retrain)) is not None:
            done.append(sentence)
        if settings.alerts.webhook_url is not None:
            while (sentence := _one_alert(connection, settings, point)) is not None:
                done.append(sentence)
    return done


def _one_action(
    connection: psycopg.Connection[Any],
    settings: Settings,
    point: DecisionPoint,
    retrain: Callable[[], None],
) -> str | None:
    with connection.transaction():
        row = connection.execute(_TAKE.format(mark="acted_at"), (point.name,)).fetchone()
        if row is None:
            return None
        window_end, what, action, reason, evidence = row
        told = {"what": what, "window_end": window_end.isoformat(), **evidence}
        plan = None
        if action == "retrain":
            retrain()
        if action in ("alert", "retrain"):
            audit.record(connection, point.name, _ACTOR, f"drift.{action}", reason, told)
        else:
            try:
                plan = _change_plan(connection, settings, point, action, reason, told)
            except InvalidInput as error:
                reason = f"{action} was not possible ({error}); {reason}"
                audit.record(connection, point.name, _ACTOR, "drift.alert", reason, told)
        connection.execute(_MARK.format(mark="acted_at"), (point.name, window_end, what))
    if plan is not None:
        _announce(settings, plan)
    return f"{action}: {reason}"


def _change_plan(
    connection: psycopg.Connection[Any],
    settings: Settings,
    point: DecisionPoint,
    action: str,
    reason: str,
    evidence: Mapping[str, Any],
) -> RoutingPlan:
    now = plans.current(connection, point.name)
    if action == "rollback":
        before = champion_before(connection, point.name, now)
        target = now.champion if now.challenger is not None else before
        if target is None:
            raise InvalidInput("rollback", None, "no canary runs and there was no other champion")
    else:
        known = variants.variants(connection, point.name)
        old = known.get(now.champion.variant, point.policy)
        schema = variants.variant_schemas(connection, point.name).get(now.champion.variant)
        if schema is None:
            raise InvalidInput(action, now.champion.variant, "its features are not known")
        policy = _policy(action, old, settings.drift.forget_horizon)
        changed = point.model_copy(update={"policy": policy})
        target = PolicyRef(variants.add_variant(connection, changed, schema))
    return plans.change(
        connection,
        point.name,
        lambda plan: with_champion(plan, target),
        actor=_ACTOR,
        action=ROLLBACK if action == "rollback" else f"drift.{action}",
        reason=reason,
        evidence=evidence,
    )


def _policy(action: str, old: PolicySettings, horizon: float) -> PolicySettings:
    if action == "static":
        return old.model_copy(update={"name": "static"})
    return old.model_copy(update={"forgetting": "discounted", "horizon": horizon})


def _one_alert(
    connection: psycopg.Connection[Any], settings: Settings, point: DecisionPoint
) -> str | None:
    with connection.transaction():
        row = connection.execute(_TAKE.format(mark="told_at"), (point.name,)).fetchone()
        if row is None:
            return None
        window_end, what, action, reason, _ = row
        figures = {
            "kind": what,
            "action": action,
            "window until": f"{window_end:%Y-%m-%d %H:%M} UTC",
        }
        title = f"Drift at {point.name}"
        sent = alerts.send(settings.alerts, alerts.message(title, reason, figures))
        if not sent.delivered:
            _LOG.warning("%s: no alert could be sent: %s", point.name, sent.error)
            raise Unavailable("the receiver of alerts", retry_after_s=60)
        connection.execute(_MARK.format(mark="told_at"), (point.name, window_end, what))
    return f"told: {reason}"


def _announce(settings: Settings, plan: RoutingPlan) -> None:
    store = SnapshotStore(settings.valkey_address)
    try:
        store.publish_plan(plan)
    except Unavailable as error:
        _LOG.warning("the learner will announce plan %d: %s", plan.epoch, error)
    finally:
        store.close()
