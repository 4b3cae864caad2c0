"""The routing plan of a decision point: which policy serves which share of its units.

Control comes first: a unit whose hash is below the control's share is decided uniformly, whatever
the plan says. Of the other units experiments take theirs, then the challenger, and the champion
has the rest. Each split has a salt of its own, so that they are independent.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["PolicyRef", "RoutingPlan", "RunningExperiment"]


class PolicyRef(Struct, frozen=True):
    """A policy that may serve.

    Attributes
    ----------
    variant
        Its configuration, as "major.minor" of the semantic version.
    pinned
        Ledger position of the one snapshot that serves; None while it goes on learning.
    """

    variant: str
    pinned: int | None = None


class RunningExperiment(Struct, frozen=True):
    """What replicas need to know of an experiment.

    Attributes
    ----------
    experiment_id
        Also the salt of its splits.
    share
        In (0, 1]: of the units that are not control.
    begin
        In [0, 1): its units are those whose place on the layer of experiments is in
        ``[begin, begin + share)``. It is kept, so that no unit moves when another experiment ends.
    arms
        For each variant the ids of its arms (hexadecimal), one or more.
    weights
        For each variant its share of the experiment, sum 1.
    sticky
        Units stay with a variant (by hash); else each decision is drawn anew.
    contextual
        The champion's policy divides the experiment's requests over all variants' arms.
    """

    experiment_id: str
    share: float
    arms: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...]
    sticky: bool = True
    contextual: bool = False
    begin: float = 0.0


class RoutingPlan(Struct, frozen=True):
    """Immutable; a change makes a plan of the next epoch.

    Attributes
    ----------
    epoch
        1 for the first plan of a decision point; decisions carry it.
    challenger_share
        In [0, 1]: of the units that are neither control nor in an experiment.
    shadow
        Decides and is logged, and never serves.
    stage_at
        When the challenger's present share began, Unix seconds.
    stage_position
        The ledger's head at that time.
    """

    decision_point: str
    epoch: int
    champion: PolicyRef
    challenger: PolicyRef | None = None
    challenger_share: float = 0.0
    shadow: PolicyRef | None = None
    stage_at: float = 0.0
    stage_position: int = 0
    experiments: tuple[RunningExperiment, ...] = ()
