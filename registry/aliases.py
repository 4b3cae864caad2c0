"""The roles of policy versions, as MLflow's aliases, and the tags that tell a version's story.

Every step here can be repeated: a promotion that was cut off anywhere ends, when it is run again,
as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping

from optimizer.errors import InvalidInput
from registry.policy_version import PolicyVersion
from registry.stored_versions import CHAMPION, StoredVersions
from registry.tracking import reaching

__all__ = ["ALIASES", "CHALLENGER", "CHAMPION", "PREVIOUS", "SHADOW", "Aliases"]

CHALLENGER = "challenger"
SHADOW = "shadow"
PREVIOUS = "previous"
"""The champion before the last promotion: what a rollback goes back to. Like every version with an
alias it is never dropped."""
ALIASES = (CHAMPION, CHALLENGER, SHADOW, PREVIOUS)


class Aliases(StoredVersions):
    """Moves aliases and writes tags; each call may be repeated."""

    def set_alias(self, decision_point: str, alias: str, version: str | int) -> None:
        """Give a version a role, which whichever had it loses; ``version`` as in `get`.

        Raises
        ------
        InvalidInput
            If ``alias`` is none of `ALIASES`, or there is no such version.
        Unavailable
            If MLflow is away.
        """
        _known(alias)
        with reaching():
            found = self._find(decision_point, version)
            self._client.set_registered_model_alias(decision_point, alias, found.version)

    def remove_alias(self, decision_point: str, alias: str) -> None:
        """Take a role away; nothing happens where no version has it. Errors as in `set_alias`."""
        _known(alias)
        with reaching():
            if self._aliased(decision_point, alias) is not None:
                self._client.delete_registered_model_alias(decision_point, alias)

    def promote_alias(self, decision_point: str, version: str | int) -> PolicyVersion:
        """Make a version the champion; the champion before becomes ``previous``.

        If the version was the challenger, there is none afterwards. Promoting the champion changes
        nothing else, so that a call that was cut off may be repeated: the step that makes the
        champion comes after the one that remembers whom it follows.

        Raises
        ------
        UnknownName
            If there is no such version.
        Unavailable
            If MLflow is away; until the alias has moved, the old champion is the champion.
        """
        with reaching():
            chosen = str(self._find(decision_point, version).version)
            roles = {alias: str(one) for alias, one in self._roles(decision_point).items()}
            if roles.get(CHAMPION, chosen) != chosen:
                self._client.set_registered_model_alias(decision_point, PREVIOUS, roles[CHAMPION])
            if roles.get(CHAMPION) != chosen:
                self._client.set_registered_model_alias(decision_point, CHAMPION, chosen)
            if roles.get(CHALLENGER) == chosen:
                self._client.delete_registered_model_alias(decision_point, CHALLENGER)
        return self.get(decision_point, int(chosen))

    def tag(self, decision_point: str, version: str | int, tags: Mapping[str, str]) -> None:
        """Write tags of a version, for instance the evidence of its rollout.

        Raises
        ------
        InvalidInput
            If there is no such version, or a tag would rewrite what the version is.
        Unavailable
            If MLflow is away; some of the tags may be written.
        """
        with reaching():
            found = self._find(decision_point, version)
            for key, value in tags.items():
                if key in PolicyVersion.FIXED_TAGS:
                    raise InvalidInput("tags", key, "another name: this one is part of the version")
                self._client.set_model_version_tag(decision_point, found.version, key, value)


def _known(alias: str) -> None:
    if alias not in ALIASES:
        raise InvalidInput("alias", alias, f"one of {', '.join(ALIASES)}")
