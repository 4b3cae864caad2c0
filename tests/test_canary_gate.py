"""The off-policy check before a canary, on logs where the second of two arms is better by 0.2."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from optimizer.offpolicy import Evaluation, LoggedDecisions, evaluate
from optimizer.reward import Objective, Weights
from optimizer.rollout.canary import gate
from optimizer.settings import Guardrails

OBJECTIVE = Objective(Weights(quality=1, cost=0, latency=0))


def asked(second: float, rows: int = 4000, dear: float = 1.0) -> Evaluation:
    """A target that takes the second arm with this probability; the log draws both evenly."""
    random = np.random.default_rng(3)
    arms = random.integers(2, size=rows)
    frame = pd.DataFrame(
        {
            "decided_at": np.arange(rows, dtype=float),
            "model": np.array(["a", "b"])[arms],
            "propensity": 0.5,
            "quality": (random.random(rows) < 0.6 + 0.2 * arms) * 1.0,
            "cost_usd": np.where(arms == 1, dear, 1.0) * (0.01 + 0.001 * random.random(rows)),
            "feature_x": random.normal(size=rows),
        }
    )
    log = LoggedDecisions.from_frame(frame)
    return evaluate(log, np.tile([1 - second, second], (rows, 1)), OBJECTIVE, policy="2.0")


@pytest.mark.parametrize(
    ("evaluation", "allowed", "said"),
    [
        (asked(1.0), True, "2.0 would have scored better"),
        (asked(0.0), False, "quality is"),
        (asked(1.0, dear=2.0), False, "cost_usd is"),
        (asked(0.45), True, "2.0"),
        (asked(0.0, rows=40), True, "No verdict on 2.0"),
        (None, True, "no log"),
    ],
    ids=["better", "worse", "dearer", "a little worse", "too short a log", "no log"],
)
def test_only_a_guardrail_that_is_violated_off_policy_refuses(
    evaluation: Evaluation | None, allowed: bool, said: str
) -> None:
    found = gate(evaluation, Guardrails())
    assert found.allowed is allowed and said in found.reason
    assert found.reason.startswith("Refused") is not allowed
    json.dumps(found.evidence, allow_nan=False)
