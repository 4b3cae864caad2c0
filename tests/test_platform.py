"""The whole platform, started as a user starts it: every part is the real one.

The tests of this file share one running platform and build on each other, in their order.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from optimizer.settings import Ports

ROOT = Path(__file__).parents[1]
LLMOPT = Path(sys.executable).with_name("llmopt")
PORTS = tuple(Ports.model_fields)
README_PORTS = {"8000": "ingress", "8001": "fast_lane"}

pytestmark = [pytest.mark.platform, pytest.mark.timeout(400)]


class Platform:
    """A platform in a home and on ports of its own."""

    def __init__(self, home: Path, find_free_port: Callable[[], int]) -> None:
        self.home = home
        self.ports = {name: find_free_port() for name in PORTS}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name[:7] != "LLMOPT_"},
            "LLMOPT_HOME": str(home),
            **{f"LLMOPT_PORTS__{name.upper()}": str(port) for name, port in self.ports.items()},
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(self, *words: str, expect: int = 0) -> dict[str, Any]:
        """Call `llmopt WORDS --json`."""
        done = subprocess.run(
            [LLMOPT, *words, "--json"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stderr[-3000:]
        content: dict[str, Any] = json.loads(done.stdout)
        return content

    def url(self, port: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    def get(self, port: str, path: str) -> Any:
        response = httpx.get(self.url(port, path), timeout=20)
        response.raise_for_status()
        return response.json()

    def point(self) -> dict[str, Any]:
        content: dict[str, Any] = self.get("fast_lane", "/v1/decision-points/chat")
        return content

    def processes(self) -> list[psutil.Process]:
        """Everything that was started with this home in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("LLMOPT_HOME") == str(self.home):
                found.append(process)
        return found


def wait_until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def platform(server_folder: Path, find_free_port: Callable[[], int]) -> Iterator[Platform]:
    made = Platform(server_folder / "home", find_free_port)
    try:
        status = made.run("up", "--detach")
        assert status["ready"] is True
        yield made
    finally:
        made.run("down")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_every_door_and_every_interface_answers(platform: Platform) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/v1/decision-points"):
        assert answers(platform.url("fast_lane", path)), path
        assert answers(platform.url("ingress", path)), path
    for port in ("mlflow", "prefect", "ray_dashboard"):
        wait_until(lambda port=port: answers(platform.url(port, "/")), 120)


def readme() -> dict[str, str]:
    """The blocks of the README that are run, by name."""
    text = (ROOT / "README.md").read_text()
    return dict(re.findall(r"<!-- test: (\w+) -->\n```(?:sh|python)\n(.*?)```", text, re.S))


def test_what_the_readme_shows_works(platform: Platform) -> None:
    blocks = readme()
    assert set(blocks) == {"decision", "reward", "point", "client", "replay", "evaluate"}

    def run(name: str, **environment: str) -> str:
        command = blocks[name]
        for port, part in README_PORTS.items():
            command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{platform.ports[part]}")
        command = command.replace(".venv/bin/llmopt", str(LLMOPT))
        shell = [sys.executable, "-c"] if name == "client" else ["bash", "-c"]
        done = subprocess.run(
            [*shell, command],
            env=platform.environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout + done.stderr

    decision = json.loads(run("decision"))
    assert 0 < decision["propensity"] <= 1
    token = decision["decision_id"]
    for repeated in (False, True):
        answer = json.loads(run("reward", DECISION_ID=token))
        assert answer == {"accepted": True, "duplicate": repeated}
    assert json.loads(run("point"))["rewards"] == 1
    run("client")
    assert json.loads(run("point"))["rewards"] == 2
    assert "oracle" in run("replay")


def test_both_doors_share_ledger_and_policy(platform: Platform) -> None:
    body = {"decision_point": "chat", "context": {"prompt": "Why is the sky blue?"}}
    decision = httpx.post(platform.url("ingress", "/v1/decisions"), json=body).json()
    reward = {"decision_id": decision["decision_id"], "quality": 1.0, "cost_usd": 0.001}
    for port, repeated in (("ingress", False), ("fast_lane", True)):
        answer = httpx.post(platform.url(port, "/v1/rewards"), json=reward)
        assert answer.json() == {"accepted": True, "duplicate": repeated}


def test_no_acknowledged_reward_is_missing_after_the_learner_is_killed(platform: Platform) -> None:
    """`kill -9` of the learner's process while the demo runs."""
    before = platform.point()
    pid = before["learner"]["pid"]
    demo = subprocess.Popen(
        [LLMOPT, "demo", "--requests", "900", "--json"],
        env=platform.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: platform.point()["rewards"] > before["rewards"] + 150, 60)
    os.kill(pid, signal.SIGKILL)
    output, errors = demo.communicate(timeout=200)
    assert demo.returncode == 0, errors[-3000:]
    result = json.loads(output)
    assert result["requests"] == 900
    rewards = platform.point()["rewards"]
    assert rewards == before["rewards"] + 900
    wait_until(lambda: platform.point()["learned"] == rewards, 60)
    after = platform.point()
    assert after["learner"]["pid"] != pid
    assert after["policy_version"] == rewards


def test_the_traffic_that_was_served_can_be_evaluated(platform: Platform) -> None:
    """After the demo above."""
    answer = platform.run(*shlex.split(readme()["evaluate"])[1:])
    assert answer["evaluated"] > 500
    assert answer["verdict"]["estimator"] == "dr"


def test_the_demo_found_a_good_policy(platform: Platform) -> None:
    result = platform.run("demo", "--requests", "600")
    assert result["reward"] > result["baselines"]["random"]["reward"] + 0.05
    assert result["fallbacks"] == 0
    assert Path(result["picture"]).stat().st_size > 10_000


def test_a_champion_is_registered_and_flows_are_scheduled(platform: Platform) -> None:
    path = "/api/2.0/mlflow/registered-models/alias?name=chat&alias=champion"
    wait_until(lambda: answers(platform.url("mlflow", path)), 90)
    version = platform.get("mlflow", path)["model_version"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert int(tags["ledger_position"]) > 0

    def deployments() -> list[dict[str, Any]]:
        found = httpx.post(platform.url("prefect", "/api/deployments/filter"), json={}, timeout=20)
        return [one for one in found.json() if one["schedules"]]

    wait_until(deployments, 90)
    assert "report" in [one["name"] for one in deployments()]
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_until(
        lambda: httpx.post(
            platform.url("prefect", "/api/flow_runs/filter"), json=scheduled, timeout=20
        ).json(),
        90,
    )


def test_status_tells_each_part(platform: Platform) -> None:
    status = platform.run("status")
    parts = status["parts"]
    assert {"postgres", "valkey", "mlflow", "prefect", "learner"} <= {
        name.lower() for name in parts
    }
    for name, part in parts.items():
        assert {"address", "pid", "health"} <= set(part), name
        assert part["health"] == "ok", (name, part)


def test_arm_statistics_reach_the_replica_through_feast(platform: Platform) -> None:
    recent = {arm["model"]: arm["recent"] for arm in platform.point()["arms"]}
    assert all(one is not None and 0 < one["quality"] <= 1 for one in recent.values())
    text = httpx.get(platform.url("fast_lane", "/metrics")).text
    age = float(re.search(r"^llmopt_feature_age_seconds (\S+)", text, re.M)[1])
    assert age < 5


def test_postgresql_away_for_a_moment(platform: Platform) -> None:
    """Decisions go on, rewards answer 503, nothing acknowledged is lost."""
    pid = platform.run("status")["parts"]["postgres"]["pid"]
    os.kill(pid, signal.SIGKILL)
    body = {"decision_point": "chat", "context": {"prompt": "hello"}}
    for _ in range(100):
        answer = httpx.post(platform.url("fast_lane", "/v1/decisions"), json=body)
        assert answer.status_code == 200
        reward = {"decision_id": answer.json()["decision_id"], "quality": 0.5, "cost_usd": 0.0}
        told = httpx.post(platform.url("fast_lane", "/v1/rewards"), json=reward, timeout=20)
        assert told.status_code in (202, 503)
        if told.status_code == 202:
            break
        assert int(told.headers["retry-after"]) >= 1
        time.sleep(0.2)
    assert told.status_code == 202
    wait_until(lambda: platform.point()["learned"] == platform.point()["rewards"], 60)


def test_nothing_is_left_after_down_and_the_next_start_goes_on(platform: Platform) -> None:
    before = platform.point()
    assert platform.run("down") == {"stopped": True}
    assert platform.processes() == []
    for port in platform.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert platform.run("status")["running"] is False
    platform.run("up", "--detach")
    after = platform.point()
    assert after["policy_version"] >= before["policy_version"]
    assert after["rewards"] == before["rewards"]
    body = {"decision_point": "chat", "context": {"prompt": "hello", "task": "mmlu"}}
    decisions = [
        httpx.post(platform.url("fast_lane", "/v1/decisions"), json=body).json() for _ in range(60)
    ]
    assert not any(decision["fallback"] for decision in decisions)
    good = sum(decision["model"] == "mistralai/mistral-large-2512" for decision in decisions)
    assert good > 40
