"""From the bodies of rewards, plain and as CloudEvents, to what the ledger stores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime

import msgspec

from optimizer.errors import InvalidInput
from optimizer.records import Outcome
from optimizer.reward import PARTS
from optimizer.settings import DecisionPoint
from optimizer.signals import PLAIN_KINDS, Signal, signal_named, signals_of
from serving.cloud_events import CloudEvent, reward_of
from serving.decider import unknown_point
from serving.ledger import RewardEvent
from serving.ledger_partitions import refuse_late
from serving.problems import invalid_body
from serving.schema import RewardBody
from serving.tokens import TokenSigner

__all__ = ["RewardReader"]

_NO_VALUES = Outcome().values()
_AHEAD_S = 86400.0
"""Clocks differ, but a time that is further in the future is a mistake, and no correction would
ever come later than it."""


class RewardReader:
    """Checks rewards and makes ledger events of them.

    Parameters
    ----------
    points
        The decision points by name.
    signer
        Reads decision ids.
    ledger_days
        `RetentionSettings.ledger_days`: rewards of older decisions are refused.
    """

    def __init__(
        self, points: Mapping[str, DecisionPoint], signer: TokenSigner, ledger_days: int
    ) -> None:
        self._ledger_days = ledger_days
        self._signals = {name: signals_of(point.signals) for name, point in points.items()}
        self._signer = signer
        self._cloud_event = msgspec.json.Decoder(CloudEvent)

    def cloud_event(self, body: bytes) -> RewardEvent:
        """The event of a CloudEvent in structured mode; raises as `event` does."""
        try:
            event = self._cloud_event.decode(body)
        except msgspec.MsgspecError as error:
            raise invalid_body(error, body) from None
        return self.event(reward_of(event))

    def event(self, request: RewardBody) -> RewardEvent:
        """The event of a plain body.

        Raises
        ------
        InvalidInput
            Naming field and value.
        """
        outcome = Outcome(request.quality, request.cost_usd, request.latency_s, request.feedback)
        kind, value, retract = request.kind, request.value, request.retract
        if kind is not None or value is not None or retract or outcome.values() == _NO_VALUES:
            _check_form(request, empty=outcome.values() == _NO_VALUES)
        if request.occurred_at is not None:
            _check_time(request.occurred_at)
        raw, decision = self._signer.verify(request.decision_id)
        signals = self._signals.get(decision.decision_point)
        if signals is None:
            raise unknown_point(decision.decision_point, self._signals)
        refuse_late(decision.decided_at, time.time(), self._ledger_days)
        raw_value, weight = None, 1.0
        if kind is not None:
            signal = signal_named(signals, kind)
            if value is not None:
                raw_value, amount = signal.read(value)
                weight = _weight(signal, decision.decided_at, request.occurred_at)
                outcome = _outcome(signal, amount)
        return RewardEvent(
            decision.decision_point,
            decision.decision_id,
            request.event_id or "",
            outcome,
            retract,
            raw,
            kind or "",
            raw_value,
            weight,
            request.occurred_at,
        )


def _check_form(request: RewardBody, *, empty: bool) -> None:
    """Refuse what is neither plain values, nor one signal, nor a retraction."""
    kind, value, retract = request.kind, request.value, request.retract
    if retract and not (empty and value is None):
        raise InvalidInput("retract", True, "a retraction has no values; leave them out")
    if kind is None and value is not None:
        raise InvalidInput("kind", None, "say of which kind the value is")
    if kind is not None and not empty:
        raise InvalidInput(
            "kind", kind, f"a signal has `value`; leave out {', '.join(PLAIN_KINDS)}"
        )
    if kind is None and empty and not retract:
        raise InvalidInput(
            "quality",
            None,
            "give one of quality, cost_usd, latency_s, feedback, or kind and value, or retract",
        )
    if kind is not None and value is None and not retract:
        raise InvalidInput("value", None, f"{kind} has none; give one, or retract")


def _outcome(signal: Signal, amount: float | None) -> Outcome:
    return Outcome(*(amount if part == signal.part else None for part in PARTS))


def _weight(signal: Signal, decided_at: float, occurred_at: datetime | None) -> float:
    """What is not said to be late counts as prompt, so that delays on the way change nothing."""
    if occurred_at is None:
        return signal.weight
    return signal.weight_after(occurred_at.timestamp() - decided_at)


def _check_time(occurred_at: datetime) -> None:
    if occurred_at.timestamp() > time.time() + _AHEAD_S:
        raise InvalidInput(
            "occurred_at", occurred_at.isoformat(), "when it happened; this is in the future"
        )
