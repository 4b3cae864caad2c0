"""What an experiment has found until now: means, differences, a verdict, and whether to stop."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from msgspec import Struct, structs

from optimizer.experiments.comparisons import (
    Interval,
    Pair,
    compare,
    moments_of,
)
from optimizer.experiments.experiment import BOUNDED, Design, Experiment
from optimizer.experiments.moments import Moments
from optimizer.experiments.sample_ratio import sample_ratio
from optimizer.records import Indices, Vector
from optimizer.report import rewards_of
from optimizer.reward import Objective

__all__ = [
    "Answer",
    "Look",
    "RatioVerdict",
    "Report",
    "VariantReport",
    "analyse",
    "goodness",
]

Answer = Literal["winner", "no_gain", "undecided", "waiting", "untrusted"]
Rule = Literal["winner", "no_gain", "longest_s", "planned_samples"]


class VariantReport(Struct, frozen=True):
    """One variant.

    Attributes
    ----------
    weight
        Its share of the experiment now.
    decisions, outcomes
        All, and those whose measure is known.
    mean
        Of the measure; for an adaptive allocation weighted by inverse propensity. None without one.
    difference
        From the baseline, for which it is None.
    p_value, e_value
        Of this comparison alone; None where there is none (yet), and of adaptive allocations, for
        which there are intervals only.
    p_corrected
        By Holm, for all comparisons of the experiment.
    better
        Whether the corrected difference is for the better (True) or the worse (False); None while
        it is not significant.
    """

    name: str
    weight: float
    decisions: int
    outcomes: int
    mean: float | None
    difference: Interval | None = None
    p_value: float | None = None
    e_value: float | None = None
    p_corrected: float | None = None
    better: bool | None = None


class RatioVerdict(Struct, frozen=True):
    """Whether variants got the units they should have got.

    Attributes
    ----------
    trusted
        None where shares move, so that there is nothing to check against.
    """

    trusted: bool | None
    p_value: float | None
    observed: tuple[float, ...]
    expected: tuple[float, ...]


class Look(Struct, frozen=True):
    """The state at an earlier time, for plots.

    Attributes
    ----------
    at
        Unix seconds.
    shares
        Of each variant, among the decisions since the last look; empty if there were none.
    differences
        Of each variant but the baseline; None before there is one.
    """

    at: float
    outcomes: tuple[int, ...]
    shares: tuple[float, ...]
    differences: tuple[Interval | None, ...]


class Report(Struct, frozen=True):
    """What was found.

    Attributes
    ----------
    answer
        ``winner``; ``no_gain`` (an improvement worth having is excluded, or all others are worse
        than the baseline); ``undecided``; ``waiting`` (for the minimum, or for the fixed horizon);
        ``untrusted`` (the division over variants is not the one asked for).
    winner
        A variant better than the baseline, or the baseline if all others are worse.
    stop
        The stopping rule that holds, None while the experiment should run on.
    planned
        Outcomes in each variant at which a fixed horizon is read; None for a sequential analysis.
    """

    at: float
    measure: str
    answer: Answer
    sentence: str
    winner: str | None
    stop: Rule | None
    alpha: float
    planned: int | None
    ran_s: float
    variants: tuple[VariantReport, ...]
    sample_ratio: RatioVerdict
    history: tuple[Look, ...]


class _Rows(Struct, frozen=True):
    """Decisions in time order, all of shape (n,); values are NaN where unknown."""

    variant: Indices
    value: Vector
    propensity: Vector
    at: Vector

    def until(self, time: float) -> _Rows:
        """The earlier ones."""
        count = int(self.at.searchsorted(time, side="right"))
        return _Rows(
            self.variant[:count], self.value[:count], self.propensity[:count], self.at[:count]
        )

    def counts(self, number: int, known: bool) -> tuple[int, ...]:
        """Of each variant, its decisions, or those whose value is known."""
        variant = self.variant[~np.isnan(self.value)] if known else self.variant
        return tuple(np.bincount(variant, minlength=number).tolist())


def analyse(
    experiment: Experiment,
    frame: pd.DataFrame,
    objective: Objective,
    now: float,
    looks: int = 40,
) -> Report:
    """Compare the variants with the baseline.

    Parameters
    ----------
    experiment
        Whose decisions they are.
    frame
        One row a decision, in time order: decided_at (Unix seconds), variant (index), propensity
        (of the arm), quality, cost_usd, latency_s, feedback; NaN where unknown.
    objective
        What a reward is here.
    now
        Unix seconds.
    looks
        Length of the history, 0 or more: it takes most of the time.
    """
    design = experiment.design
    number = len(design.variants)
    rows = _rows(design, frame, objective)
    outcomes = rows.counts(number, known=True)
    decisions = rows.counts(number, known=False)
    ratio = _ratio(experiment, decisions)
    planned = experiment.planned if design.analysis == "fixed_horizon" else None
    variants = _variants(experiment, rows, decisions, outcomes)
    report = Report(
        at=now,
        measure=design.measure,
        answer="waiting",
        sentence="",
        winner=None,
        stop=None,
        alpha=design.alpha,
        planned=planned,
        ran_s=experiment.ran_s(now),
        variants=variants,
        sample_ratio=ratio,
        history=_history(experiment, rows, now, looks),
    )
    return _concluded(report, design)


def goodness(
    experiment: Experiment, frame: pd.DataFrame, objective: Objective
) -> tuple[tuple[Moments, ...], float]:
    """The moments of each variant, where more is better, and the width of their range."""
    design = experiment.design
    rows = _rows(design, frame, objective)
    known = ~np.isnan(rows.value)
    moments = moments_of(rows.variant[known], design.sign * rows.value[known], len(design.variants))
    return moments, _span(design, rows.value)


def _rows(design: Design, frame: pd.DataFrame, objective: Objective) -> _Rows:
    if design.measure == "reward":
        value = rewards_of(frame, objective)
    else:
        value = frame[design.measure].to_numpy(dtype=float)
    return _Rows(
        frame["variant"].to_numpy(dtype=np.int64),
        value,
        frame["propensity"].to_numpy(dtype=float),
        frame["decided_at"].to_numpy(dtype=float),
    )


def _span(design: Design, values: Vector) -> float:
    """Width of the range of the measure: 1, or what costs and latencies have spanned so far."""
    known = values[~np.isnan(values)]
    if design.measure in BOUNDED or known.size == 0:
        return 1.0
    return float(known.max() - known.min()) or float(known.max()) or 1.0


def _ratio(experiment: Experiment, decisions: tuple[int, ...]) -> RatioVerdict:
    total = sum(decisions)
    observed = tuple(count / total if total else 0.0 for count in decisions)
    if experiment.design.adaptive or not total:
        return RatioVerdict(None, None, observed, experiment.weights)
    check = sample_ratio(decisions, experiment.weights)
    return RatioVerdict(not check.mismatch, check.p_value, observed, experiment.weights)


def _variants(
    experiment: Experiment,
    rows: _Rows,
    decisions: tuple[int, ...],
    outcomes: tuple[int, ...],
) -> tuple[VariantReport, ...]:
    design = experiment.design
    means, pairs = _compared(experiment, rows)
    lines = []
    for place, variant in enumerate(design.variants):
        pair = pairs[place - 1] if place else Pair()
        lines.append(
            VariantReport(
                variant.name,
                experiment.weights[place],
                decisions[place],
                outcomes[place],
                means[place],
                pair.difference if place else None,
                pair.p_value,
                pair.e_value,
                pair.p_corrected,
                _better(design, pair),
            )
        )
    return tuple(lines)


def _compared(
    experiment: Experiment, rows: _Rows
) -> tuple[tuple[float | None, ...], tuple[Pair, ...]]:
    known = ~np.isnan(rows.value)
    return compare(
        experiment.design,
        experiment.planned,
        rows.variant[known],
        rows.value[known],
        rows.propensity[known],
    )


def _better(design: Design, pair: Pair) -> bool | None:
    value = None if pair.difference is None else pair.difference.value
    if value is None or not pair.significant(design.alpha):
        return None
    return design.sign * value > 0


def _history(experiment: Experiment, rows: _Rows, now: float, looks: int) -> tuple[Look, ...]:
    """Looks at equal distances of time, from the first start to the end."""
    if not experiment.spans or not rows.at.size:
        return ()
    last = experiment.spans[-1].end
    number = len(experiment.design.variants)
    found = []
    seen: npt.NDArray[np.int64] = np.zeros(number, dtype=np.int64)
    times = np.linspace(experiment.spans[0].start, now if last is None else last, looks + 1)
    for at in times[1:].tolist():
        before = rows.until(at)
        counts = np.array(before.counts(number, known=False))
        fresh = counts - seen
        seen = counts
        total = int(fresh.sum())
        _, pairs = _compared(experiment, before)
        found.append(
            Look(
                at,
                before.counts(number, known=True),
                tuple((fresh / total).tolist()) if total else (),
                tuple(pair.difference for pair in pairs),
            )
        )
    return tuple(found)


def _concluded(report: Report, design: Design) -> Report:
    """With the answer, the sentence, and the stopping rule that holds."""
    answer, winner, sentence = _verdict(report, design)
    fewest = min(one.outcomes for one in report.variants)
    stop: Rule | None = None
    if answer == "winner" or answer == "no_gain":
        stop = answer
    elif report.planned is not None and fewest >= report.planned:
        stop = "planned_samples"
    elif report.ran_s >= design.longest_s:
        stop = "longest_s"
    return structs.replace(report, answer=answer, winner=winner, sentence=sentence, stop=stop)


def _verdict(report: Report, design: Design) -> tuple[Answer, str | None, str]:
    variants = report.variants
    baseline, others = variants[0], variants[1:]
    if report.sample_ratio.trusted is False:
        shares = ", ".join(f"{100 * share:.1f} %" for share in report.sample_ratio.observed)
        meant = ", ".join(f"{100 * share:.1f} %" for share in report.sample_ratio.expected)
        return (
            "untrusted",
            None,
            f"do not trust this: variants got {shares} of the decisions instead of {meant}, so "
            "something else than chance divides them",
        )
    fewest = min(variants, key=lambda one: one.outcomes)
    needed = max(design.minimum_samples, report.planned or 0)
    if fewest.outcomes < needed:
        return "waiting", None, _waiting(report, fewest, needed)
    better = [one for one in others if one.better]
    if better:
        best = max(better, key=lambda one: design.sign * (one.mean or 0.0))
        return "winner", best.name, f"{best.name} beats {baseline.name}: {_told(best, report)}"
    if all(one.better is False for one in others):
        told = "; ".join(f"{one.name} {_told(one, report)}" for one in others)
        return "winner", baseline.name, f"{baseline.name} is better than all others: {told}"
    if design.smallest_effect is not None and all(_gain_excluded(one, design) for one in others):
        return (
            "no_gain",
            None,
            f"no variant improves {report.measure} by {design.smallest_effect:g} or more: "
            f"keep {baseline.name}",
        )
    told = "; ".join(f"{one.name} {_told(one, report)}" for one in others)
    until = "was found" if report.planned else "is certain yet"
    return "undecided", None, f"no difference from {baseline.name} {until}: {told}"


def _waiting(report: Report, fewest: VariantReport, needed: int) -> str:
    read_once = "a fixed horizon is read once, at" if report.planned else "waiting for"
    text = f"{read_once} {needed} outcomes in each variant; {fewest.name} has {fewest.outcomes}"
    if fewest.outcomes and report.ran_s > 0:
        hours = (needed - fewest.outcomes) * report.ran_s / fewest.outcomes / 3600
        text += f", at this rate for about {hours:.1f} h more of running"
    return text


def _gain_excluded(one: VariantReport, design: Design) -> bool:
    """Whether an improvement worth having lies outside of the interval."""
    found = one.difference
    if found is None or found.low is None or found.high is None:
        return False
    most = found.high if design.sign > 0 else -found.low
    return most < (design.smallest_effect or 0.0)


def _told(one: VariantReport, report: Report) -> str:
    found = one.difference
    if found is None or found.value is None:
        return "unknown"
    text = f"{report.measure} {found.value:+.4g}"
    if found.low is not None and found.high is not None:
        text += f" ({found.low:+.4g} to {found.high:+.4g})"
    if one.p_corrected is not None:
        text += f", p = {one.p_corrected:.2g}"
    others = len(report.variants) - 1
    return text + (f" corrected for {others} comparisons" if others > 1 else "")
