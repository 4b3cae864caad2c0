"""The semantic version of a policy version: what changed since the one before.

MAJOR grows with another algorithm or feature layout, MINOR with other hyper-parameters, another
objective or other arms, PATCH with each further snapshot of the same configuration. So
"MAJOR.MINOR", the *variant*, names a configuration. A configuration that comes back gets the
variant it had, and a number is never given twice, even if its version was dropped long ago.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from semver import Version

from optimizer.errors import InvalidInput
from optimizer.settings import DecisionPoint

__all__ = ["Configuration", "NextVersion", "Variant", "configuration", "next_version"]

_DIGEST_BYTES = 8


class Configuration(Struct, frozen=True):
    """Digests of what a policy is, apart from what it learned.

    Attributes
    ----------
    algorithm
        Of outcome model, exploration and feature layout.
    settings
        Of hyper-parameters, objective and arms (with what is known of them beforehand).
    """

    algorithm: str
    settings: str


class Variant(Struct, frozen=True):
    """A configuration that had versions before.

    Attributes
    ----------
    major, minor, patch
        The newest semantic version of it, each 0 or more.
    configuration
        What it is.
    """

    major: int
    minor: int
    patch: int
    configuration: Configuration

    @property
    def name(self) -> str:
        """``major.minor``, as in `optimizer.rollout.plan.PolicyRef`."""
        return f"{self.major}.{self.minor}"

    @property
    def newest(self) -> str:
        """Its newest semantic version."""
        return f"{self.name}.{self.patch}"


class NextVersion(Struct, frozen=True):
    """What comes next.

    Attributes
    ----------
    variant
        With the patch of the new version.
    parent
        Semantic version that it grew out of: the one before of its variant, else the newest of the
        decision point; None for the first.
    """

    variant: Variant
    parent: str | None


def configuration(point: DecisionPoint, schema_id: int) -> Configuration:
    """The digests of a decision point's settings.

    Shares of traffic, guardrails and the attribution window are no part: they say how a policy is
    used.

    Parameters
    ----------
    point
        The settings.
    schema_id
        `optimizer.features.FeatureEncoder.schema_id` of the feature layout.

    Examples
    --------
    >>> from optimizer.settings import ArmSettings
    >>> point = DecisionPoint(name="chat", arms=(ArmSettings(model="small"),))
    >>> wider = point.model_copy(update={"control_share": 0.1})
    >>> configuration(point, 1) == configuration(wider, 1)
    True
    >>> configuration(point, 1).algorithm == configuration(point, 2).algorithm
    False
    """
    objective = {"weights", "cost_cap_usd", "latency_cap_s", "quality_floor", "arms", "static_arm"}
    settings = point.model_dump(mode="json", include=objective)
    hyper = point.policy.model_dump(mode="json", exclude={"name"})
    return Configuration(
        _digest([point.policy.parts, schema_id]), _digest([point.name, settings, hyper])
    )


def next_version(
    known: Iterable[Variant], new: Configuration, variant: str | None = None
) -> NextVersion:
    """The version of one more snapshot.

    Parameters
    ----------
    known
        Every variant that ever had a version, in any order.
    new
        What the snapshot's policy is.
    variant
        The variant it must get, "major.minor"; found out if left out.

    Raises
    ------
    InvalidInput
        If ``variant`` is not of that form, or is another configuration's.

    Examples
    --------
    >>> old = Configuration("linear", "alpha 1")
    >>> first = next_version([], old).variant
    >>> first.newest, next_version([first], old).variant.newest
    ('1.0.0', '1.0.1')
    >>> next_version([first], Configuration("linear", "alpha 2")).variant.newest
    '1.1.0'
    >>> next_version([first], Configuration("trees", "alpha 1"))  # doctest: +ELLIPSIS
    NextVersion(variant=Variant(major=2, minor=0, patch=0, ...), parent='1.0.0')
    """
    variants = sorted(known, key=lambda one: (one.major, one.minor))
    newest = variants[-1] if variants else None
    if variant is not None:
        return _named(variants, new, variant)
    for one in reversed(variants):
        if one.configuration == new:
            return NextVersion(_after(one), one.newest)
    if newest is None:
        return NextVersion(Variant(1, 0, 0, new), None)
    version = Version(newest.major, newest.minor)
    same_algorithm = newest.configuration.algorithm == new.algorithm
    version = version.bump_minor() if same_algorithm else version.bump_major()
    return NextVersion(Variant(version.major, version.minor, 0, new), newest.newest)


def _named(variants: list[Variant], new: Configuration, name: str) -> NextVersion:
    try:
        version = Version.parse(f"{name}.0")
    except ValueError:
        raise InvalidInput("variant", name, "MAJOR.MINOR, for instance 1.0") from None
    for one in variants:
        if one.name == name:
            if one.configuration != new:
                raise InvalidInput("variant", name, "a new one: this is another configuration's")
            return NextVersion(_after(one), one.newest)
    parent = variants[-1].newest if variants else None
    return NextVersion(Variant(version.major, version.minor, 0, new), parent)


def _after(one: Variant) -> Variant:
    return Variant(one.major, one.minor, one.patch + 1, one.configuration)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
