r"""What the policy loses against the best single arm, as the control slice tells it.

Control draws every arm with a known probability, so each control row of an arm, weighted by the
inverse of that probability, is an unbiased sample of what this arm would bring on the same traffic.
For each arm the pseudo-outcomes of `optimizer.confidence.difference` are summed, with control rows
of that arm as one group and all rows that are not control as the other. The regret is that of the
best arm; a policy that tells requests apart can do better than any arm: its regret is below 0.

What holds: with ``alpha / arms`` for each arm, all intervals cover at all times with a probability
of ``1 - alpha`` (asymptotically, see `optimizer.confidence`), and so do the largest of their low
and the largest of their high ends.
Rows count once their whole reward is known; it is taken that those whose reward never comes are as
many in both groups. A unit that stays in control brings many rows of one draw: the interval is then
too narrow. Requests with fewer candidates count the arms that were not among them by their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizer.confidence import ENOUGH, PSEUDO_ROWS, half_width
from optimizer.records import Indices, Vector
from optimizer.running_sums import running_sums

__all__ = ["ControlRegret"]

_ALPHA = 0.05
_PRIOR_MEAN = 0.5


class ControlRegret:
    """Sums of the comparison of each arm with the policy.

    Parameters
    ----------
    arms
        Number of arms, 1 or more.
    control_share
        The probability of control, in [0, 1); at 0 nothing can be told.
    """

    def __init__(self, arms: int, control_share: float) -> None:
        self._share = control_share
        self._count = np.zeros(arms + 1)
        self._total = np.zeros(arms + 1)
        self._rows = 0.0
        self._moments = np.zeros((2, arms))

    def add(self, arm: Indices, control: Sequence[bool], odds: Vector, reward: Vector) -> None:
        """Take rows in whose whole reward is known.

        Parameters
        ----------
        arm, control
            Shape (n,): the arm that was drawn, and whether by control.
        odds
            Shape (n,), in (0, 1]: the probability with which control drew it; 1 for other rows.
        reward
            Shape (n,), in [0, 1].
        """
        if not reward.size or not self._share:
            return
        arms = self._moments.shape[1]
        drawn = np.array(control, dtype=bool)
        group = np.where(drawn, arm, arms)
        member = (group[:, None] == np.arange(arms + 1)) * 1.0
        count = running_sums(self._count, member)
        total = running_sums(self._total, member * reward[:, None])
        before = np.where(count > 0, total / np.maximum(count, 1.0), _PRIOR_MEAN)[:-1]
        weight = 1.0 / np.where(drawn, self._share * odds, 1.0 - self._share)
        pseudo = (
            before + member * (weight * (reward - before[np.arange(reward.size), group]))[:, None]
        )
        gap = pseudo[:, :arms] - pseudo[:, arms:]
        self._moments[0] = running_sums(self._moments[0], gap)[-1]
        self._moments[1] = running_sums(self._moments[1], gap * gap)[-1]
        self._count, self._total = count[-1], total[-1]
        self._rows += reward.size

    def figures(self) -> dict[str, Any]:
        """Regret for each decision and in sum, with its interval, and the index of the best arm.

        No interval while an arm has fewer than 10 control rows; nothing without control.
        """
        arms = self._moments.shape[1]
        treated, rows = float(self._count[arms]), self._rows
        if not treated or not self._count[:arms].any():
            return {"decisions": int(treated), "control": int(self._count[:arms].sum())}
        mean = self._moments[0] / rows
        best = int(mean.argmax())
        found: dict[str, Any] = {
            "decisions": int(treated),
            "control": int(self._count[:arms].sum()),
            "best_arm": best,
            "per_decision": float(mean[best]),
            "cumulative": float(mean[best] * treated),
            "interval": None,
        }
        if self._count.min() >= ENOUGH:
            prior = (arms / self._share) ** 2 + (1.0 / (1.0 - self._share)) ** 2
            variance = self._moments[1] / rows - mean**2 + PSEUDO_ROWS * prior / rows
            width = half_width(np.full(arms, rows), variance, _ALPHA / arms)
            ends = float((mean - width).max()), float((mean + width).max())
            found["interval"] = [ends[0] * treated, ends[1] * treated]
        return found

    def state(self) -> list[bytes]:
        """Everything counted."""
        held = (self._count, self._total, self._moments, np.array([self._rows]))
        return [array.tobytes() for array in held]

    def restore(self, state: list[bytes]) -> None:
        """Take what `state` gave."""
        count, total, moments, rows = (np.frombuffer(raw).copy() for raw in state)
        self._count, self._total, self._rows = count, total, float(rows[0])
        self._moments = moments.reshape(2, -1)
