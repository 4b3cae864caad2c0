"""A canary: a challenger gets more and more units while it stays within its guardrails.

Its shares are 5, 25, 50 and 95 % (settings). The last is the watch: the challenger serves all but a
small hold-out that stays with the champion, so that a quality that drops only now is still seen
against the same hours' traffic, and taken back like before, by one rule. When the watch is over the
challenger is promoted: it becomes the champion, and the hold-out goes. After that nothing is
compared any more, since nothing is left to compare it with.

A stage ends well when each of the two has a minimum of samples and every guardrail holds; it ends
badly when one guardrail is violated, when the challenger cannot decide, or when the longest time
passes without a verdict. Evidence begins anew with each stage. All intervals are anytime-valid, so
`step` may be asked as often as one likes. The level is split evenly over stages and guardrails:
the probability that any interval ever misses in the whole canary is at most ``alpha``.

An error is an outcome of quality 0, so errors need no rule of their own: a challenger that always
fails violates the quality guardrail after 26 outcomes (at a champion's mean of 0.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from optimizer.confidence import Estimate
from optimizer.errors import InvalidInput
from optimizer.rollout.evidence import Evidence
from optimizer.rollout.guardrails import GUARDRAILS, Finding, judge
from optimizer.rollout.plan import PolicyRef, RoutingPlan
from optimizer.rollout.settings import CanarySettings

if TYPE_CHECKING:  # the settings hold this package's own
    from optimizer.offpolicy import Evaluation
    from optimizer.settings import Guardrails

__all__ = ["Gate", "Step", "gate", "next_plan", "start", "step"]

_ENOUGH_FALLBACKS = 10
"""A new replica may fall back a few times before its first snapshot."""


class Gate(Struct, frozen=True):
    """Whether a canary may begin, and why; ``evidence`` is ready for JSON."""

    allowed: bool
    reason: str
    evidence: dict[str, Any]


class Step(Struct, frozen=True):
    """What is to be done now.

    Attributes
    ----------
    share
        The challenger's share of the units after it; 1 after a promotion, 0 after a rollback.
    reason
        A sentence.
    evidence
        What it rests on, ready for JSON.
    """

    action: Literal["stay", "advance", "promote", "rollback"]
    share: float
    reason: str
    evidence: dict[str, Any]


def gate(evaluation: Evaluation | None, guardrails: Guardrails) -> Gate:
    """Ask the log before any unit is risked.

    Only a guardrail that the log shows to be violated refuses: mean quality or mean cost of the
    challenger, by the estimator `optimizer.offpolicy.CHOSEN`, beyond the limit at every value in
    its interval and in that of the logged mean. Nothing is said off-policy of a p95. A log that
    can't support the question does not refuse, since the first stage will answer it.

    Parameters
    ----------
    evaluation
        Of the challenger on the decision point's log; None where there is no log.
    guardrails
        The limits.
    """
    from optimizer.offpolicy import CHOSEN  # pandas, which a rollback must not wait for

    if evaluation is None:
        return Gate(True, "There is no log to check it on; the first stage will.", {})
    verdict = evaluation.verdict
    measures = evaluation.results[CHOSEN].measures
    evidence = {
        "policy": evaluation.policy,
        "verdict": verdict.answer,
        "evaluated": evaluation.evaluated,
        "challenger": msgspec.to_builtins(dict(measures)),
        "logged": msgspec.to_builtins(dict(evaluation.logged)),
    }
    if verdict.answer != "unsupported":
        for part, limit in (
            ("quality", -guardrails.quality_drop),
            ("cost_usd", guardrails.cost_rise),
        ):
            found, logged = measures.get(part), evaluation.logged.get(part)
            if found and logged and _off_limits(found, logged, limit, part):
                reason = (
                    f"Refused: off-policy, {part} is {found.low:.6g} to {found.high:.6g}, where "
                    f"{logged.low:.6g} to {logged.high:.6g} was logged: beyond the limit "
                    f"{limit:+.0%}."
                )
                return Gate(False, reason, evidence)
    return Gate(True, f"No guardrail is violated off-policy. {verdict.sentence}", evidence)


def start(
    plan: RoutingPlan, challenger: PolicyRef, settings: CanarySettings, now_s: float, position: int
) -> RoutingPlan:
    """The plan with ``challenger`` in its first stage.

    Raises
    ------
    InvalidInput
        If another canary is running.
    """
    if plan.challenger is not None:
        raise InvalidInput(
            "challenger", challenger.variant, f"{plan.challenger.variant} is: roll it back first"
        )
    return msgspec.structs.replace(
        plan,
        epoch=plan.epoch + 1,
        challenger=challenger,
        challenger_share=settings.shares[0],
        stage_at=now_s,
        stage_position=position,
    )


def step(
    plan: RoutingPlan,
    evidence: Evidence,
    settings: CanarySettings,
    guardrails: Guardrails,
    now_s: float,
    fallbacks: int = 0,
) -> Step:
    """What to do with the running canary; pure, may be asked at any time.

    Parameters
    ----------
    plan
        With a challenger that has a share.
    evidence
        Of champion and challenger, of decisions made since ``plan.stage_at`` under that share.
    settings, guardrails
        Of the decision point.
    now_s
        Unix time.
    fallbacks
        Decisions since ``plan.stage_at`` that were the challenger's and that the static rule had
        to make.

    Raises
    ------
    InvalidInput
        If no canary is running.
    """
    share = plan.challenger_share
    if plan.challenger is None or not 0 < share < 1:
        raise InvalidInput("challenger_share", share, "no canary is running: `start` one")
    alpha = settings.alpha / (GUARDRAILS * len(settings.shares))
    findings = judge(evidence, guardrails, share, alpha)
    quality = findings[0]
    samples = min(quality.champion_count, quality.challenger_count)
    age_s = now_s - plan.stage_at
    shown = {
        "share": share,
        "age_s": age_s,
        "level_of_an_interval": 1.0 - alpha,
        "fallbacks": fallbacks,
        "guardrails": [msgspec.to_builtins(finding) for finding in findings],
    }

    def back(reason: str) -> Step:
        return Step("rollback", 0.0, f"Rolled back at {share:.0%}: {reason}.", shown)

    outcomes = max(finding.challenger_count for finding in findings)
    if fallbacks >= _ENOUGH_FALLBACKS and fallbacks > settings.fallback_share * (
        outcomes + fallbacks
    ):
        return back(f"it failed to decide {fallbacks} times, beside {outcomes} known outcomes")
    violated = [finding for finding in findings if finding.state == "violated"]
    if violated:
        return back("; ".join(finding.sentence for finding in violated))
    last = share >= settings.shares[-1]
    waiting = _waiting(findings, samples, age_s, settings, last)
    if not waiting:
        reason = "; ".join(finding.sentence for finding in findings)
        if last:
            return Step("promote", 1.0, f"Promoted after its watch: {reason}.", shown)
        after = next(stage for stage in settings.shares if stage > share)
        return Step("advance", after, f"From {share:.0%} to {after:.0%}: {reason}.", shown)
    if age_s >= settings.longest_stage_s or samples >= settings.longest_samples:
        return back(f"no verdict after {age_s:.0f} s and {samples} samples: {waiting}")
    return Step("stay", share, f"At {share:.0%}: {waiting}.", shown)


def next_plan(plan: RoutingPlan, taken: Step, now_s: float, position: int) -> RoutingPlan:
    """The plan after a step; the same one where it stays.

    Parameters
    ----------
    plan
        That the step was made for.
    taken
        By `step`.
    now_s
        Unix time: evidence of the next stage begins here.
    position
        The ledger's head.
    """
    if taken.action == "stay":
        return plan
    running = taken.action == "advance"
    return msgspec.structs.replace(
        plan,
        epoch=plan.epoch + 1,
        champion=plan.challenger if taken.action == "promote" else plan.champion,
        challenger=plan.challenger if running else None,
        challenger_share=taken.share if running else 0.0,
        stage_at=now_s,
        stage_position=position,
    )


def _waiting(
    findings: tuple[Finding, ...],
    samples: int,
    age_s: float,
    settings: CanarySettings,
    last: bool,
) -> str:
    """What the stage still waits for; empty when it is done."""
    reasons = []
    if samples < settings.minimum_samples:
        reasons.append(f"{samples} of at least {settings.minimum_samples} samples")
    reasons += [finding.sentence for finding in findings if finding.state == "open"]
    shortest_s = max(settings.shortest_stage_s, settings.watch_s if last else 0.0)
    if age_s < shortest_s:
        reasons.append(f"{age_s:.0f} of at least {shortest_s:.0f} s")
    return "; ".join(reasons)


def _off_limits(found: Estimate, logged: Estimate, limit: float, part: str) -> bool:
    if found.low is None or found.high is None or logged.low is None or logged.high is None:
        return False
    if part == "quality":
        return found.high < (1.0 + limit) * logged.low
    return found.low > (1.0 + limit) * logged.high
