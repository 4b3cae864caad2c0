"""`llmopt status`: every part asked at this moment, in parallel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx

from infra.home import Home
from infra.parts import Endpoint, make_parts
from infra.stack import running
from optimizer.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["status", "status_table"]

_TIMEOUT_S = 2
_DECIDES = "serving"
_OK = "ok"


def status(settings: Settings) -> dict[str, Any]:
    """What runs, and whether it works.

    Returns
    -------
    ``{"running", "ready", "home", "parts": {name: {"address", "pid", "health"}}}``; ``ready`` says
    that decisions can be made, ``health`` is "ok" or what is wrong.
    """
    home = Home(settings.home)
    state = running(settings)
    answer: dict[str, Any] = {
        "running": state is not None,
        "ready": False,
        "home": str(home.folder),
        "parts": {},
    }
    if state is None:
        return answer
    parts = make_parts(settings, home)
    pids = {name: part.pid for name, part in state.parts.items()}
    endpoints = [
        (endpoint, pids.get(part.name))
        for part in parts
        for endpoint in (part.endpoint, *part.more)
    ]
    with ThreadPoolExecutor(len(endpoints)) as pool:
        health = list(pool.map(_health, [endpoint for endpoint, _ in endpoints]))
    for (endpoint, pid), verdict in zip(endpoints, health, strict=True):
        answer["parts"][endpoint.name] = {
            "address": endpoint.address,
            "pid": pid,
            "health": verdict,
        }
    serving = answer["parts"][_DECIDES]
    answer["ready"] = serving["health"] == _OK
    if answer["ready"]:
        answer["parts"] |= _learners(serving["address"])
    return answer


def status_table(answer: dict[str, Any]) -> Table:
    """The parts with their addresses, for people."""
    from rich.table import Table

    table = Table(title=f"LLM Auto-Optimizer in {answer['home']}", title_justify="left")
    for column in ("part", "address", "pid", "health"):
        table.add_column(column, overflow="fold")
    for name, part in answer["parts"].items():
        pid = "" if part["pid"] is None else str(part["pid"])
        style = None if part["health"] == _OK else "red"
        table.add_row(name.replace("_", " "), part["address"], pid, part["health"], style=style)
    return table


def _health(endpoint: Endpoint) -> str:
    try:
        endpoint.check()
    except Exception as error:  # whatever a client library raises, it is the answer
        return " ".join(str(error).split()) or type(error).__name__
    return _OK


def _learners(address: str) -> dict[str, dict[str, Any]]:
    """The learner's process, or each if decision points have different ones."""
    base = f"{address}/v1/decision-points"
    found: dict[int, str] = {}
    try:
        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
            for point in client.get(base).raise_for_status().json()["decision_points"]:
                detail = client.get(f"{base}/{point['name']}").raise_for_status().json()
                if detail["learner"] is not None:
                    found.setdefault(detail["learner"]["pid"], point["name"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return {"learner": {"address": "", "pid": None, "health": f"unknown: {error}"}}
    if not found:
        return {"learner": {"address": "", "pid": None, "health": "starting"}}
    single = len(found) == 1
    return {
        "learner" if single else f"learner.{name}": {"address": "", "pid": pid, "health": _OK}
        for pid, name in found.items()
    }
