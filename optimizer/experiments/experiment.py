"""An experiment: what the user asks for (`Design`), and where it stands (`Experiment`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from optimizer.errors import InvalidInput, UnknownName
from optimizer.records import Arm

__all__ = [
    "BOUNDED",
    "LOWER_IS_BETTER",
    "TRANSITIONS",
    "ArmPattern",
    "Design",
    "Experiment",
    "Span",
    "State",
    "Variant",
    "free_stretch",
    "resolve",
]

Text = Annotated[str, Meta(min_length=1, max_length=200)]
State = Literal["draft", "running", "paused", "complete", "archived"]
Measure = Literal["reward", "quality", "cost_usd", "latency_s", "feedback"]

LOWER_IS_BETTER = frozenset({"cost_usd", "latency_s"})
BOUNDED = frozenset({"reward", "quality", "feedback"})
"""Measures in [0, 1]."""

TRANSITIONS: Mapping[str, Mapping[State, State]] = {
    "start": {"draft": "running", "paused": "running"},
    "pause": {"running": "paused"},
    "stop": {"running": "complete", "paused": "complete"},
    "archive": {"draft": "archived", "complete": "archived"},
}
"""By action, from state to state. Whatever is not here is refused."""

_ROUNDING = 1e-9
_DAY_S = 86400.0


class ArmPattern(Struct, frozen=True, forbid_unknown_fields=True):
    """Stands for all arms of the decision point that agree with what it names.

    Examples
    --------
    >>> ArmPattern(prompt_variant="terse").fits(Arm("small", {}, "terse"))
    True
    """

    model: Text | None = None
    parameters: dict[str, Any] | None = None
    prompt_variant: Text | None = None

    def __post_init__(self) -> None:
        if self.model is None and self.parameters is None and self.prompt_variant is None:
            raise InvalidInput("arms", "{}", "name a model, parameters or a prompt_variant")

    def fits(self, arm: Arm) -> bool:
        """Whether the arm is one of those meant."""
        return (
            self.model in (None, arm.model)
            and self.parameters in (None, dict(arm.parameters))
            and self.prompt_variant in (None, arm.prompt_variant)
        )


class Variant(Struct, frozen=True, forbid_unknown_fields=True):
    """One of the things compared: one arm or several.

    Attributes
    ----------
    weight
        Above 0, relative to the other variants'; only with the allocation "weighted".
    """

    name: Text
    arms: Annotated[tuple[ArmPattern, ...], Meta(min_length=1, max_length=200)]
    weight: Annotated[float, Meta(gt=0, le=1e6)] | None = None


class Design(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user asks for; it does not change once the experiment has started.

    Attributes
    ----------
    variants
        The first is the baseline that the others are compared with.
    allocation
        How units are divided: ``fixed`` (equally), ``weighted``, ``thompson`` (moves towards the
        better variants) or ``contextual`` (the champion's policy chooses among all variants' arms).
    share
        Of the units that are not control, in (0, 1].
    measure
        What is compared; of ``cost_usd`` and ``latency_s`` less is better.
    analysis
        ``sequential`` may be looked at and stopped at any time; ``fixed_horizon`` is read once, at
        ``planned_samples``, and then needs fewer of them.
    sticky
        Units stay with their variant. Unless it is set, they do where the allocation does not move.
    minimum_samples
        Outcomes in each variant before anything is concluded.
    longest_s
        Seconds of running after which the experiment stops, whatever it has found.
    alpha
        Probability of any false difference that is put up with.
    smallest_effect
        Smallest improvement worth having, in units of the measure; an experiment that has excluded
        it stops. None: it goes on until a difference is found or time is over.
    planned_samples
        Outcomes in each variant at which a fixed horizon is read. Without it they follow from
        ``smallest_effect``.
    """

    decision_point: Text
    name: Text
    variants: Annotated[tuple[Variant, ...], Meta(min_length=2, max_length=20)]
    allocation: Literal["fixed", "weighted", "thompson", "contextual"] = "fixed"
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    measure: Measure = "reward"
    analysis: Literal["sequential", "fixed_horizon"] = "sequential"
    sticky: bool | None = None
    minimum_samples: Annotated[int, Meta(ge=10, le=10_000_000)] = 100
    longest_s: Annotated[float, Meta(gt=0, le=366 * _DAY_S)] = 14 * _DAY_S
    alpha: Annotated[float, Meta(gt=0, le=0.5)] = 0.05
    smallest_effect: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    planned_samples: Annotated[int, Meta(ge=10, le=10_000_000)] | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise InvalidInput("variants", names, "names of variants must differ")
        given = [variant.weight is not None for variant in self.variants]
        if self.allocation == "weighted" and not all(given):
            raise InvalidInput(
                f"variants[{given.index(False)}].weight", None, "each variant needs a weight"
            )
        if self.allocation != "weighted" and any(given):
            raise InvalidInput(
                "allocation", self.allocation, "variants have weights: set it to weighted"
            )
        if self.adaptive and self.sticky:
            raise InvalidInput(
                "sticky", True, f"units cannot stay where the allocation is {self.allocation}"
            )
        self._check_horizon()

    def _check_horizon(self) -> None:
        if self.analysis == "sequential":
            return
        if self.adaptive:
            raise InvalidInput(
                "analysis",
                self.analysis,
                f"the allocation {self.allocation} looks all the time: use sequential",
            )
        if self.planned_samples is not None:
            return
        if self.smallest_effect is None:
            raise InvalidInput(
                "planned_samples", None, "a fixed horizon needs it, or smallest_effect"
            )
        if self.measure not in BOUNDED:
            raise InvalidInput(
                "planned_samples",
                None,
                f"the spread of {self.measure} is not known beforehand: say how many samples",
            )

    @property
    def adaptive(self) -> bool:
        """Whether probabilities depend on what came before, or on the request."""
        return self.allocation in ("thompson", "contextual")

    @property
    def sign(self) -> float:
        """1 where more is better, else -1."""
        return -1.0 if self.measure in LOWER_IS_BETTER else 1.0


class Span(Struct, frozen=True):
    """A time of running, in Unix seconds; ``end`` is None while it lasts."""

    start: float
    end: float | None = None

    def seconds(self, now: float) -> float:
        """Its length until now."""
        return (now if self.end is None else self.end) - self.start


class Experiment(Struct, frozen=True, kw_only=True):
    """A design and where it stands.

    Attributes
    ----------
    arms
        For each variant the arms it stands for.
    weights
        For each variant its share of the experiment now, sum 1.
    planned
        Outcomes in each variant that the test is planned for, see
        `optimizer.experiments.comparisons.planned_samples`.
    begin
        Where its stretch of units begins, see `optimizer.experiments.assignment`; None before the
        first start.
    spans
        When it ran.
    reason
        Why it is in this state.
    winner
        Name of the variant that won, known when it is complete; None where none did.
    promoted
        The winner has all of the experiment's units, until the experiment is archived.
    made_by
        Who made it, see `serving.audit.AuditEntry`; a flow changes no draft but its own.
    """

    id: str
    design: Design
    arms: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...]
    state: State = "draft"
    planned: int | None = None
    begin: float | None = None
    created_at: float = 0.0
    spans: tuple[Span, ...] = ()
    reason: str = ""
    winner: str | None = None
    promoted: bool = False
    made_by: str = ""

    @property
    def holds_units(self) -> bool:
        """Whether units are set aside for it: its stretch and its arms are nobody else's."""
        return self.state in ("running", "paused") or (self.state == "complete" and self.promoted)

    def ran_s(self, now: float) -> float:
        """Seconds it has run."""
        return sum(span.seconds(now) for span in self.spans)

    def moved(self, action: str, now: float, reason: str) -> Experiment:
        """After an action; its spans follow.

        Raises
        ------
        InvalidInput
            If the action is not for this state; names the actions that are.
        """
        state = TRANSITIONS[action].get(self.state)
        if state is None:
            allowed = [name for name, moves in TRANSITIONS.items() if self.state in moves]
            then = (
                f"it can be: {', '.join(allowed)}" if allowed else "nothing is done to it any more"
            )
            raise InvalidInput("state", self.state, f"{action} is not for it; {then}")
        spans = self.spans
        if state == "running":
            spans = (*spans, Span(now))
        elif self.state == "running":
            spans = (*spans[:-1], Span(spans[-1].start, now))
        promoted = self.promoted and state == "complete"
        return structs.replace(self, state=state, spans=spans, reason=reason, promoted=promoted)


def resolve(design: Design, configured: Sequence[Arm]) -> tuple[tuple[str, ...], ...]:
    """For each variant the ids (hexadecimal) of the configured arms that it stands for.

    Raises
    ------
    InvalidInput
        Where a pattern fits no arm, or two variants share one: outcomes are told apart by arm. An
        adaptive allocation needs one arm a variant, since decisions carry the arm's propensity.
    """
    resolved: list[tuple[str, ...]] = []
    seen: dict[str, str] = {}
    known = sorted({arm.model for arm in configured})
    prompts = sorted({arm.prompt_variant for arm in configured})
    for place, variant in enumerate(design.variants):
        field = f"variants[{place}].arms"
        found: list[str] = []
        for position, pattern in enumerate(variant.arms):
            ids = [arm.id.hex() for arm in configured if pattern.fits(arm)]
            if not ids:
                raise UnknownName(
                    f"{field}[{position}]",
                    _shown(pattern),
                    f"no arm of {design.decision_point} is like that; it has the models {known} "
                    f"and the prompt variants {prompts}",
                )
            found += [one for one in ids if one not in found]
        for one in found:
            if one in seen:
                raise InvalidInput(
                    field,
                    variant.name,
                    f"it shares an arm with {seen[one]!r}; say which one each means by model, "
                    "parameters and prompt_variant",
                )
            seen[one] = variant.name
        if design.adaptive and len(found) > 1:
            raise InvalidInput(
                field,
                f"{len(found)} arms",
                f"with the allocation {design.allocation} a variant has one arm",
            )
        resolved.append(tuple(found))
    return tuple(resolved)


def free_stretch(taken: Sequence[tuple[float, float]], share: float) -> float:
    """Where in [0, 1) a stretch of the length ``share`` is free: the first place.

    Parameters
    ----------
    taken
        Begin and share of the stretches in use.

    Raises
    ------
    InvalidInput
        If none is long enough; names the longest.

    Examples
    --------
    >>> free_stretch([(0.0, 0.25), (0.5, 0.25)], 0.2)
    0.25
    """
    edges = [(0.0, 0.0), *sorted((begin, begin + long) for begin, long in taken), (1.0, 1.0)]
    gaps = [(end, begin - end) for (_, end), (begin, _) in pairwise(edges)]
    for begin, long in gaps:
        if long >= share - _ROUNDING:
            return begin
    longest = max(long for _, long in gaps)
    raise InvalidInput(
        "share",
        share,
        f"other experiments have the units; at most {longest:.4g} is free. Take less, or stop or "
        "archive one of them",
    )


def _shown(pattern: ArmPattern) -> str:
    given = {name: value for name, value in structs.asdict(pattern).items() if value is not None}
    return ", ".join(f"{name}={value}" for name, value in given.items())
