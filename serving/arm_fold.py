"""The ledger's rows folded into what the arms did lately: by the learner, and to check it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import psycopg

from feature_repo.aggregates import ArmStatistics
from feature_repo.ranges import clipped_outcome
from feature_repo.windows import ArmWindows
from optimizer.errors import InvalidToken
from serving.ledger import LedgerRow
from serving.tokens import SHADOW, parse

__all__ = ["STATISTICS_SPAN_S", "first_position", "fold_arms"]

STATISTICS_SPAN_S = 16_200.0
"""Rows that were received before this have nothing more to say. No window reaches back so far. A
model that is known has had a decision within an hour, beside which one of 4.5 hours ago weighs
2 ** -42: among 100,000 of them 2e-8 of a mean."""


def first_position(
    connection: psycopg.Connection[Any], decision_point: str, since: datetime
) -> int | None:
    """The first row of the ledger that was received after a moment, None if there is none."""
    row = connection.execute(
        "SELECT min(position) FROM rewards WHERE decision_point = %s AND received_at > %s",
        (decision_point, since),
    ).fetchone()
    return row[0] if row else None


def fold_arms(
    models: Mapping[bytes, str],
    rows: Iterable[LedgerRow],
    statistics: ArmStatistics,
    windows: ArmWindows,
) -> Counter[str]:
    """Take rows in, in the order of the ledger, values out of range clipped.

    Parameters
    ----------
    models
        By the id of the arm; rows of other arms are passed over.

    Returns
    -------
    How many values were out of range, by part of the outcome.
    """
    violations: Counter[str] = Counter()
    for row in rows:
        try:
            decision = parse(row.token)
        except InvalidToken:
            continue  # the policy's own fold counts these
        model = models.get(decision.arm_id)
        if model is not None and decision.role != SHADOW:
            # The decision's time, so that a correction cancels exactly what it corrects.
            before, _ = clipped_outcome(row.before)
            after, parts = clipped_outcome(row.after)
            violations.update(
                part for part in parts if getattr(row.before, part) != getattr(row.after, part)
            )
            change = model, decision.decided_at, before, after
            statistics.update(*change)
            windows.update(*change, row.received_at.timestamp())
    return violations
