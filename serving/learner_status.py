"""How far the learner is, policy by policy: read from PostgreSQL and the newest snapshots."""

from __future__ import annotations

from typing import Any

import psycopg

from optimizer.errors import Unavailable
from optimizer.settings import Settings
from serving import ledger, plans
from serving.snapshots import Snapshot, SnapshotStore

__all__ = ["learner_status"]

_RATE_OVER_S = 60


def learner_status(connection: psycopg.Connection[Any], settings: Settings) -> list[dict[str, Any]]:
    """For each decision point and each policy that learns there, what is known now.

    Keys: ``decision_point, variant, role, position, head, backlog, arrived_per_s`` (last minute),
    ``learned_per_s`` (last half minute), ``checkpoint`` (position, Unix seconds), ``published_at``,
    ``watch``. What has not happened yet is None.
    """
    ledger.create_tables(connection)
    store = SnapshotStore(settings.valkey_address)
    found = []
    try:
        for point in settings.decision_points:
            name, head = point.name, ledger.head(connection, point.name)
            row = connection.execute(
                "SELECT min(position) FROM rewards WHERE decision_point = %s "
                "AND received_at > now() - make_interval(secs => %s)",
                (name, _RATE_OVER_S),
            ).fetchone()
            first = row[0] if row else None
            arrived = 0.0 if first is None else (head - first + 1) / _RATE_OVER_S
            saved = {
                variant: {"position": position, "at": at}
                for variant, position, at in connection.execute(
                    "SELECT variant, position, extract(epoch FROM saved_at)::float8 "
                    "FROM policy_checkpoints WHERE decision_point = %s",
                    (name,),
                ).fetchall()
            }
            plan = plans.current(connection, name)
            roles = {
                "champion": plan.champion,
                "challenger": plan.challenger,
                "shadow": plan.shadow,
            }
            for role, ref in roles.items():
                if ref is None or ref.pinned is not None:
                    continue  # a pinned policy learns no more
                newest = _newest(store, name, ref)
                progress = newest.progress if newest else None
                position = newest.position if newest else None
                found.append(
                    {
                        "decision_point": name,
                        "variant": ref.variant,
                        "role": role,
                        "position": position,
                        "head": head,
                        "backlog": None if position is None else max(head - position, 0),
                        "arrived_per_s": arrived,
                        "learned_per_s": progress.rewards_per_s if progress else None,
                        "checkpoint": saved.get(ref.variant),
                        "published_at": newest.published_at if newest else None,
                        "watch": progress.watch if progress else None,
                    }
                )
    finally:
        store.close()
    return found


def _newest(store: SnapshotStore, name: str, ref: Any) -> Snapshot | None:
    try:
        return store.newest(name, ref)
    except Unavailable:
        return None
