"""From a log to the next experiment: proposals, a draft, and the settings on the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.arm_beliefs import ArmEvidence, Beliefs, believe, gather, settings_between
from optimizer.errors import InvalidInput
from optimizer.experiment_design import Cost, Proposal, Rung, halving, promising, propose
from optimizer.experiments.experiment import ArmPattern, Design, Variant
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.pareto import Placed, candidates, place
from optimizer.records import Arm
from optimizer.settings import DecisionPoint

__all__ = ["BASELINE", "Plan", "arm_label", "plan"]

BASELINE = "baseline"

_DAY_S = 86400.0
_LONGEST_DAYS = 28.0
_LEAST_SAMPLES = 10


@dataclass(frozen=True)
class Plan:
    """What is known, and what to try next.

    Attributes
    ----------
    message
        One sentence for people.
    evidence, beliefs
        None where the log is too short.
    proposals
        Best first.
    draft
        None where nothing is worth an experiment.
    rungs
        The draft is the first; later ones follow from later plans.
    front
        Every arm and role, placed; `on_front` has the Pareto-optimal ones.
    requests_per_day
        Traffic, as the log tells.
    """

    message: str
    evidence: ArmEvidence | None = None
    beliefs: Beliefs | None = None
    proposals: tuple[Proposal, ...] = ()
    draft: Design | None = None
    rungs: tuple[Rung, ...] = ()
    front: tuple[Placed, ...] = ()
    requests_per_day: float = 0.0

    @property
    def on_front(self) -> tuple[Placed, ...]:
        """Those that nobody dominates, by point estimates at least."""
        return tuple(one for one in self.front if one.standing in ("front", "perhaps front"))

    def label(self, setting: int) -> str:
        """The setting's name for people."""
        assert self.beliefs is not None
        return arm_label(self.beliefs.settings[setting])


def plan(
    log: LoggedDecisions | None,
    point: DecisionPoint,
    end: float,
    *,
    horizon_days: float = 30.0,
    share: float = 0.2,
    observing_usd: float = 0.001,
) -> Plan:
    """Propose the next experiment of a decision point.

    Parameters
    ----------
    log
        In time order; None where nothing was logged.
    end
        Unix seconds, after the last decision.
    horizon_days
        Over which the better choice pays, above 0.
    share
        Of the units that an experiment may have, in (0, 1].
    observing_usd
        See `optimizer.experiment_design.Cost`.

    Returns
    -------
    With a message and no proposals where the log is too short.
    """
    if log is None:
        return Plan("no decision was logged in this span: nothing is proposed")
    arms = point.records()
    if len(arms) < 2:
        return Plan("it has one arm: there is nothing to compare")
    days = max(end - float(log.decided_at[0]), 60.0) / _DAY_S
    per_day = len(log) / days
    try:
        front = place(candidates(log))
        evidence = gather(log, arms, point.objective())
    except InvalidInput as error:
        return Plan(f"too little is known ({error})", requests_per_day=per_day)
    beliefs = believe(evidence, settings_between(arms))
    cost = Cost(
        max(int(per_day * horizon_days), 1),
        max(int(per_day * share * min(_LONGEST_DAYS, horizon_days)), 1),
        observing_usd,
    )
    proposals = propose(beliefs, evidence, cost)
    known = Plan("", evidence, beliefs, proposals, None, (), front, per_day)
    if not proposals:
        return _changed(
            known,
            f"no experiment fits into {cost.samples} requests, which are {share:.0%} of the units "
            f"in {min(_LONGEST_DAYS, horizon_days):g} days",
        )
    chosen = promising(proposals)
    if not chosen:
        return _changed(known, "no configured arm promises any gain over what serves best now")
    rungs = halving(len(chosen), max(one.samples for one in chosen) // 2 * (len(chosen) + 1))
    draft = _draft(point.name, beliefs, chosen, rungs[0], share, per_day)
    names = " or ".join(known.label(one.candidate) for one in chosen)
    return _changed(
        known,
        f"a draft compares {names} with {known.label(evidence.incumbent)}: "
        f"{rungs[0].samples_each} requests each",
        draft,
        rungs,
    )


def arm_label(arm: Arm) -> str:
    """Model, then parameters and prompt where they say more.

    Examples
    --------
    >>> arm_label(Arm("small", {"temperature": 0.2}, "terse"))
    'small temperature=0.2 #terse'
    """
    parts = [arm.model, *(f"{name}={value}" for name, value in sorted(arm.parameters.items()))]
    return " ".join(parts + ([] if arm.prompt_variant == "default" else [f"#{arm.prompt_variant}"]))


def _draft(
    name: str,
    beliefs: Beliefs,
    chosen: Sequence[Proposal],
    rung: Rung,
    share: float,
    per_day: float,
) -> Design:
    arms = [beliefs.settings[chosen[0].baseline]]
    arms += [beliefs.settings[one.candidate] for one in chosen]
    samples = max(rung.samples_each, _LEAST_SAMPLES)
    expected_s = samples * len(arms) / (per_day * share) * _DAY_S
    return Design(
        decision_point=name,
        name=f"is anything better than {arm_label(arms[0])}?"[:200],
        variants=tuple(
            Variant(BASELINE if place == 0 else f"candidate {place}: {arm_label(arm)}"[:200],
                    (_pattern(arm),))
            for place, arm in enumerate(arms)
        ),
        share=share,
        measure="reward",
        analysis="fixed_horizon",
        minimum_samples=samples,
        planned_samples=samples,
        smallest_effect=min(one.effect for one in chosen),
        # Twice the time that it should take: traffic may fall, and outcomes come late.
        longest_s=min(max(2 * expected_s, _DAY_S), 366 * _DAY_S),
    )  # fmt: skip


def _pattern(arm: Arm) -> ArmPattern:
    return ArmPattern(arm.model, dict(arm.parameters), arm.prompt_variant)


def _changed(
    known: Plan, message: str, draft: Design | None = None, rungs: tuple[Rung, ...] = ()
) -> Plan:
    return Plan(
        message, known.evidence, known.beliefs, known.proposals, draft, rungs, known.front,
        known.requests_per_day,
    )  # fmt: skip
