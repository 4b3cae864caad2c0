"""Our platform, started by its own command in a home and on ports of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from benchmarks.serving.payloads import POINT, TASKS
from benchmarks.serving.targets import Door, Groups, free_ports
from benchmarks.serving.world import ARMS, outcome
from infra.processes import find_marked
from infra.state import StackState, StateFile
from optimizer.settings import Ports

__all__ = ["TAUGHT", "Platform"]

_REPLICA = "ray::ServeReplica:decisions"
_HAPROXY = "haproxy"
TAUGHT = 4000
_TEACH_AT_ONCE = 500
_START_S = 240.0
_LEARN_S = 60.0
_QUIET_CORES = 0.35
_QUIET_S = 60.0
_PATHS = {
    "single": "/v1/decisions",
    "prompt": "/v1/decisions",
    "batch": "/v1/decisions/batch",
    "batch, prompt": "/v1/decisions/batch",
}


class Platform:
    """One stack, from entering until leaving; its home is removed then.

    Parameters
    ----------
    replicas
        Of the application that decides.
    """

    def __init__(self, replicas: int = 1) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="llmopt-bench-"))
        self._home.chmod(0o755)  # embedded PostgreSQL runs as another user where we are root
        names = list(Ports.model_fields)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        settings = self._home / "llmopt.yaml"
        settings.write_text(json.dumps({"decision_points": [_point()]}))
        self._environment = {
            **{name: value for name, value in os.environ.items() if "LLMOPT_" not in name},
            **{f"LLMOPT_PORTS__{name.upper()}": str(port) for name, port in self.ports.items()},
            "LLMOPT_HOME": str(self._home / "home"),
            "LLMOPT_SETTINGS": str(settings),
            "LLMOPT_REPLICAS": str(replicas),
        }
        self._state = StateFile(self._home / "home")
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports['fast_lane']}", timeout=30, trust_env=False
        )

    def __enter__(self) -> Platform:
        try:
            self._command("up", "--detach")
            self._wait_until_complete()
            self._teach()
            self._wait_until_quiet()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def fast_lane(self) -> Door:
        """The replicas' own door."""
        return Door("fast lane", self.ports["fast_lane"], _PATHS, lambda: self._groups())

    def ingress(self) -> Door:
        """Ray Serve's ingress, HAProxy in front."""
        groups = lambda: self._groups(_HAPROXY)  # noqa: E731
        return Door("Ray ingress", self.ports["ingress"], _PATHS, groups)

    @property
    def valkey_address(self) -> str:
        """URL of its Valkey."""
        return f"redis://127.0.0.1:{self.ports['valkey']}/0"

    def replicas(self) -> list[psutil.Process]:
        """The processes that decide."""
        return [each for each in self._processes() if _title(each).startswith(_REPLICA)]

    def details(self) -> dict[str, Any]:
        """What the decision point tells of itself."""
        answer = self._client.get(f"/v1/decision-points/{POINT}").raise_for_status()
        return dict(answer.json())

    def features(self) -> dict[str, int]:
        """How many there are, and how many of them are of the prompt's embedding."""
        from feature_repo.embedding import Embedder
        from optimizer.features import FeatureEncoder

        size = Embedder().size
        return {"features": FeatureEncoder(TASKS, size).size, "of the embedding": size}

    def log_dropped(self) -> float | None:
        """Decisions that the decision log lost, by the replica's own count."""
        for line in self._client.get("/metrics").raise_for_status().text.splitlines():
            if line.startswith("llmopt_log_dropped"):
                return float(line.split()[-1])
        return None

    def _groups(self, *also: str) -> Groups:
        server: set[psutil.Process] = set()
        beside: set[psutil.Process] = set()
        for process in self._processes():
            title = _title(process)
            answers = title.startswith(_REPLICA) or any(name in title for name in also)
            (server if answers else beside).add(process)
        return {"server": server, "beside": beside}

    def _processes(self) -> set[psutil.Process]:
        state = self._state.read()
        return set() if state is None else find_marked(state.stack_id)

    def _command(self, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("llmopt")), *arguments]
        done = subprocess.run(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_S,
        )
        if done.returncode:
            raise RuntimeError(
                f"llmopt {arguments[0]} failed: {done.stderr[-800:]}\n{self._last_words()}"
            )

    def _last_words(self) -> str:
        """The end of the serving log, which goes with the home."""
        log = self._home / "home" / "logs" / "serving.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""

    def _stop(self) -> None:
        try:
            self._command("down")
        finally:
            self._client.close()
            shutil.rmtree(self._home, ignore_errors=True)

    def _wait_until_complete(self) -> None:
        """Also for MLflow and Prefect, whose start takes both cores."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            state: StackState | None = self._state.read()
            if state is not None and state.complete:
                return
            time.sleep(0.5)
        raise RuntimeError(f"not every part works after {_START_S:.0f} s")

    def _teach(self) -> None:
        """Decide and send rewards over HTTP, so that a policy that has learned is timed."""
        rng = random.Random(1)
        for _ in range(TAUGHT // _TEACH_AT_ONCE):
            tasks = [rng.choice(TASKS) for _ in range(_TEACH_AT_ONCE)]
            contexts = [{"task": task, "input_tokens": rng.randint(20, 2000)} for task in tasks]
            items = [{"decision_point": POINT, "context": context} for context in contexts]
            decided = self._items("/v1/decisions/batch", items)
            rewards = []
            for task, decision in zip(tasks, decided, strict=True):
                arm = int(decision["model"].rpartition("-")[2])
                quality, cost_usd, latency_s = outcome(rng, arm, task)
                values = {"quality": quality, "cost_usd": cost_usd, "latency_s": latency_s}
                rewards.append({"decision_id": decision["decision_id"], **values})
            self._items("/v1/rewards/batch", rewards)
        deadline = time.monotonic() + _LEARN_S
        while (details := self.details())["learned"] < details["rewards"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{details['learned']} of {details['rewards']} rewards learned")
            time.sleep(0.5)

    def _items(self, path: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = self._client.post(path, json={"items": items}).raise_for_status()
        return list(answer.json()["items"])

    def _wait_until_quiet(self) -> None:
        """Until the stack itself does little; it goes on regardless after a minute."""
        deadline = time.monotonic() + _QUIET_S
        while time.monotonic() < deadline:
            if cores(self._processes(), 2.0) < _QUIET_CORES:
                return


def cores(processes: set[psutil.Process], seconds: float) -> float:
    """CPU seconds a second that processes take together, measured now."""
    from benchmarks.serving.resources import Sampler

    with Sampler({"all": processes}) as sampler:
        time.sleep(seconds)
    return sampler.usage()["all"].cores


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _point() -> dict[str, Any]:
    return {
        "name": POINT,
        "arms": [{"model": f"model-{arm}"} for arm in range(ARMS)],
        "tasks": list(TASKS),
        "cost_cap_usd": 0.01,
        "latency_cap_s": 2.0,
    }
