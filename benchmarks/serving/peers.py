"""The limit and the peers, each a server in a process of its own.

A peer is a context manager that gives its `Door`, and raises `Unavailable` where it is not
installed or does not start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks.serving.payloads import KINDS
from benchmarks.serving.resources import tree
from benchmarks.serving.targets import Door, Unavailable, free_ports, has_answered
from benchmarks.serving.world import ARMS

__all__ = ["BARE", "LITELLM", "PEERS", "RAY_PROXY", "VW", "package_version"]

BARE = "bare uvicorn"
VW = "Vowpal Wabbit behind uvicorn"
LITELLM = "LiteLLM proxy"
RAY_PROXY = "Ray Serve's default proxy"

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_VW_PYTHON = _ROOT / ".venv-bench" / "bin" / "python"
_LITELLM_PYTHON = _ROOT / ".venv-bench-litellm" / "bin" / "python"
_START_S = 90.0
_STOP_S = 20.0
_INTERPRETERS = {"vowpalwabbit": _VW_PYTHON, "litellm": _LITELLM_PYTHON}


@contextmanager
def bare() -> Iterator[Door]:
    """A constant answer."""
    (port,) = free_ports(1)
    paths = dict.fromkeys(KINDS, "/")
    with _server(
        BARE, [sys.executable, str(_HERE / "server_bare.py"), str(port)], port, paths
    ) as d:
        yield d


@contextmanager
def vowpal_wabbit() -> Iterator[Door]:
    """One process, decisions without a prompt."""
    _needs("vowpalwabbit")
    (port,) = free_ports(1)
    command = [str(_VW_PYTHON), "-m", "benchmarks.serving.server_vw", str(port)]
    with _server(VW, command, port, {"single": "/"}) as door:
        yield door


@contextmanager
def litellm() -> Iterator[Door]:
    """One worker; answers are LiteLLM's own mock, so that no LLM is called; no key is asked for."""
    _needs("litellm")
    (port,) = free_ports(1)
    models = [
        {
            "model_name": "chat",
            "litellm_params": {
                "model": f"openai/model-{arm}",
                "api_key": "none",
                "mock_response": "391",
            },
        }
        for arm in range(ARMS)
    ]
    with tempfile.TemporaryDirectory(prefix="litellm-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": models}))
        command = [str(_LITELLM_PYTHON.with_name("litellm")), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        command += ["--telemetry", "False"]
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        paths = {"chat": "/v1/chat/completions"}
        with _server(LITELLM, command, port, paths, environment) as door:
            yield door


@contextmanager
def ray_default_proxy() -> Iterator[Door]:
    """A constant answer; an instance of Ray of its own, so ours must be stopped before."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(_HERE / "server_ray.py"), str(port), folder]
        with _server(RAY_PROXY, command, port, {"single": "/"}) as door:
            yield door


PEERS: Mapping[str, Callable[[], AbstractContextManager[Door]]] = {
    BARE: bare,
    VW: vowpal_wabbit,
    LITELLM: litellm,
}
"""Those that can run beside our platform."""


def package_version(package: str) -> str | None:
    """Version of a peer's package in its own environment, None where it is not installed."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    with suppress(OSError, subprocess.SubprocessError):
        command = [str(_INTERPRETERS[package]), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()
    return None


def _needs(package: str) -> None:
    if package_version(package) is None:
        raise Unavailable(f"{package} is not installed; `make bench-serving` tries to")


@contextmanager
def _server(
    name: str,
    command: list[str],
    port: int,
    paths: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Door]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + _START_S
            while not has_answered(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words = said.read().decode(errors="replace").split()
                    raise Unavailable(f"it did not start: {' '.join(words)[-300:]}")
                time.sleep(0.2)
            yield Door(name, port, paths, lambda: {"server": tree(process.pid), "beside": set()})
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then kill whatever is left of it."""
    left = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    for each in left:
        with suppress(Exception):
            each.kill()
    process.wait()
