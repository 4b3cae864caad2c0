"""MLflow's aliases follow the routing plan: the plan is the truth, the aliases are its picture."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.rollout import PolicyRef, RoutingPlan
from registry.aliases import CHALLENGER, SHADOW
from registry.policy_version import PolicyVersion
from registry.stored_versions import CHAMPION
from registry.versions import PolicyRegistry

__all__ = ["align_aliases", "record_step"]

_LONGEST_TAG = 5000
"""MLflow takes no more."""


def align_aliases(registry: PolicyRegistry, plan: RoutingPlan) -> bool:
    """Give each role's alias to the version that has the role; may be repeated.

    Returns
    -------
    False while a policy of the plan has no version yet: call it again later.

    Raises
    ------
    Unavailable
        If MLflow is away.
    """
    name = plan.decision_point
    stored = registry.list(name)
    complete = True
    for alias, ref in (
        (CHAMPION, plan.champion),
        (CHALLENGER, plan.challenger),
        (SHADOW, plan.shadow),
    ):
        if ref is None:
            registry.remove_alias(name, alias)
            continue
        version = _version_of(stored, ref)
        if version is None:
            complete = False
        elif alias not in version.aliases:
            if alias == CHAMPION:
                registry.promote_alias(name, version.version)
            else:
                registry.set_alias(name, alias, version.version)
    return complete


def record_step(registry: PolicyRegistry, plan: RoutingPlan, reason: str) -> None:
    """Write a canary's step to the version that was the challenger.

    Parameters
    ----------
    plan
        That the step was taken from.
    reason
        The sentence, with the figures.

    Raises
    ------
    Unavailable
        If MLflow is away.
    """
    if plan.challenger is None:
        return
    version = _version_of(registry.list(plan.decision_point), plan.challenger)
    if version is not None:
        tags = {f"canary_{plan.challenger_share:.0%}": reason[:_LONGEST_TAG]}
        registry.tag(plan.decision_point, version.version, tags)


def _version_of(stored: Sequence[PolicyVersion], ref: PolicyRef) -> PolicyVersion | None:
    """The newest version of a policy; of a pinned one the version that it is pinned to."""
    return next(
        (
            one
            for one in stored
            if one.variant == ref.variant and ref.pinned in (None, one.position)
        ),
        None,
    )
