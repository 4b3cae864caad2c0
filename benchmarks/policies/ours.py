"""Our own policies, every name there is, with the settings that ship."""

from __future__ import annotations

from benchmarks.policies.race import Entry, Problem
from infra.replays import dearest_model
from optimizer.features import FeatureEncoder
from optimizer.policies import POLICY_NAMES, Policy, PolicySettings, make_policy
from optimizer.policies.base import draw
from optimizer.records import Arm, Observation, Outcome

__all__ = ["DEFAULT", "our_entries"]

DEFAULT: str = PolicySettings().name
"""The policy of a decision point that names none."""

_NOTHING = Outcome()


class _Ours:
    """A policy as a replica and the learner use it: parts of the outcome, one by one."""

    def __init__(self, policy: Policy, problem: Problem) -> None:
        self._policy = policy
        self._features = problem.features
        self._recorded = problem.recorded

    def decide(self, request: int, uniform: float) -> tuple[int, float]:
        probabilities = self._policy.probabilities(self._features[request])
        arm = draw(probabilities, uniform)
        return arm, float(probabilities[arm])

    def learn(self, request: int, arm: int, propensity: float, reward: float) -> None:
        outcome = self._recorded.outcome(request, arm)
        self._policy.learn([Observation(arm, self._features[request], _NOTHING, outcome)])


def our_entries(encoder: FeatureEncoder) -> list[Entry]:
    """An entry for each of `optimizer.policies.POLICY_NAMES`.

    Parameters
    ----------
    encoder
        That made the features of the problems to come.
    """
    return [_entry(name, encoder) for name in POLICY_NAMES]


def _entry(name: str, encoder: FeatureEncoder) -> Entry:
    def start(problem: Problem, seed: int) -> _Ours:
        models = problem.recorded.models
        policy = make_policy(
            PolicySettings.model_validate({"name": name}),
            [Arm(model) for model in models],
            encoder.size,
            problem.objective,
            static_arm=models.index(dearest_model(problem.recorded)),
            schema_id=encoder.schema_id,
            groups=encoder.groups,
        )
        return _Ours(policy, problem)

    return Entry(f"ours: {name}", "", "the defaults that ship", start)
