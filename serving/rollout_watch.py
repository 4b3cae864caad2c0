"""Watches a challenger in live traffic: folds its evidence from the ledger, and moves the plan.

It runs in the learner, which has just read the rewards: a violated guardrail is answered within a
second of the evidence reaching the ledger. Evidence is a pure function of the ledger from the
plan's stage on, so a learner that is killed finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from optimizer.errors import InvalidToken
from optimizer.rollout import RoutingPlan
from optimizer.rollout.canary import Step, next_plan, step
from optimizer.rollout.evidence import Evidence
from optimizer.settings import DecisionPoint
from serving import ledger, plans
from serving.tokens import CHALLENGER, CHAMPION, FALLBACK, parse

__all__ = ["OnStep", "RolloutWatch"]

_LOOK_EVERY_S = 1.0

OnStep = Callable[[RoutingPlan, Step], None]
"""Told the plan that a canary had, and the step that was taken."""


class RolloutWatch:
    """One decision point's canary, if there is one.

    Parameters
    ----------
    point
        Its settings.
    on_step
        Told of every step but "stay"; it must return at once.

    Attributes
    ----------
    position
        How far into the ledger it has read; None while no canary runs.
    """

    def __init__(self, point: DecisionPoint, on_step: OnStep = lambda plan, taken: None) -> None:
        self._point = point
        self._on_step = on_step
        self._plan: RoutingPlan | None = None
        self._evidence = Evidence()
        self._fallbacks = 0
        self._looked_at = 0.0
        self.position: int | None = None

    def follow(self, plan: RoutingPlan) -> None:
        """A plan has come into force; a stage that goes on keeps its evidence."""
        old, self._plan = self._plan, plan
        if plan.challenger is None:
            self.position = None
        elif old is None or _stage(old) != _stage(plan):
            self._evidence, self._fallbacks = Evidence(), 0
            self.position = plan.stage_position

    def learn(self, rows: Sequence[ledger.LedgerRow]) -> None:
        """Fold the rows that follow its position."""
        plan = self._plan
        assert plan is not None and self.position is not None
        for row in rows:
            try:
                decision = parse(row.token)
            except InvalidToken:
                continue
            if decision.decided_at < plan.stage_at:
                continue
            unit = None if decision.unit == decision.decision_id[:8] else decision.unit
            if decision.role == CHALLENGER:
                self._evidence.update("challenger", row.real_before, row.real_after, unit)
            elif decision.role == CHAMPION:
                self._evidence.update("champion", row.real_before, row.real_after, unit)
            elif decision.role == FALLBACK:
                self._fallbacks += 1
        if rows:
            self.position = rows[-1].position

    def look(
        self, connection: psycopg.Connection[Any], plan: RoutingPlan, now_s: float
    ) -> RoutingPlan:
        """The plan that is to be in force now; each change is in the audit trail."""
        if plan.challenger is None or now_s - self._looked_at < _LOOK_EVERY_S:
            return plan
        self._looked_at = now_s
        point = self._point
        taken = step(
            plan, self._evidence, point.canary, point.guardrails, now_s, fallbacks=self._fallbacks
        )
        if taken.action == "stay":
            return plan
        position = ledger.head(connection, point.name)
        moved = False

        def update(current: RoutingPlan) -> RoutingPlan:
            nonlocal moved
            # Somebody may have changed the plan since the evidence was judged.
            moved = _stage(current) == _stage(plan)
            return next_plan(current, taken, now_s, position) if moved else current

        changed = plans.change(
            connection,
            point.name,
            update,
            actor="learner",
            action=f"canary.{taken.action}",
            reason=taken.reason,
            evidence=taken.evidence,
        )
        if moved:
            self._on_step(plan, taken)
        return changed


def _stage(plan: RoutingPlan) -> tuple[object, ...]:
    return plan.challenger, plan.challenger_share, plan.stage_at
