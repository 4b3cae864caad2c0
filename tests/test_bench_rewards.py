"""The benchmark of rewards sends what the service takes, and its report says what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks.rewards.load import Singles, batches
from benchmarks.rewards.report import write_run
from benchmarks.rewards.verify import Verdict
from optimizer.features import unpack
from serving.schema import read_reward, read_rewards
from serving.tokens import TokenSigner

KEY = "00" * 16
JOB = {
    "key": KEY,
    "seed": 1,
    "arms": [b"arm-one.".hex(), b"arm-two.".hex()],
    "features": 24,
    "schema_id": 7,
    "point": "bench",
    "host": "127.0.0.1",
}


def body(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


def test_every_reward_is_for_a_decision_of_its_own_that_can_teach() -> None:
    signer, singles = TokenSigner([KEY]), Singles(JOB)
    singly = [read_reward(body(singles[at])) for at in range(20)]
    (whole,) = batches({**JOB, "batch": 20, "requests": 1})
    assert [one.quality for one in singly] == [one.quality for one in read_rewards(body(whole))]
    decisions = [signer.verify(reward.decision_id)[1] for reward in singly]
    assert len({decision.decision_id for decision in decisions}) == 20
    for decision in decisions:
        features = unpack(decision.features)
        assert features.shape == (24,)
        assert ((features >= 0) & (features <= 1)).all()


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(rows=9, head=10, twice=0, learned=10, identical=True),
        Verdict(rows=10, head=10, twice=1, learned=10, identical=True),
        Verdict(rows=10, head=10, twice=0, learned=9, identical=True),
        Verdict(rows=10, head=10, twice=0, learned=10, identical=False),
        Verdict(rows=11, head=11, twice=0, learned=11, identical=True),
    ],
)
def test_a_verdict_holds_only_if_all_of_it_does(verdict: Verdict) -> None:
    assert Verdict(rows=10, head=10, twice=0, learned=10, identical=True).holds(10)
    assert not verdict.holds(10)


def test_a_run_alone_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    head = {
        "at": "2026-01-01T00:00:00+00:00",
        "command": "python -m benchmarks.rewards",
        "replicas": 2,
        "hardware": {
            "cpu": "a processor",
            "cores": 2,
            "memory_gib": 8,
            "kernel": "Linux",
            "load_average_before": [0.5, 0.4, 0.3],
        },
    }
    out = tmp_path / "rewards"
    for what, number in (("kills", 1), ("outage", 2), ("kills", 3)):
        write_run(out, what, {"head": head, "rewards": number, "stream": {"acknowledged": 7}})
    told = json.loads(out.with_suffix(".json").read_text())
    assert {what: run["rewards"] for what, run in told.items()} == {"kills": 3, "outage": 2}
    text = out.with_suffix(".md").read_text()
    assert "load average before: 0.5, 0.4, 0.3" in text
    assert "| stream | acknowledged 7 |" in text
