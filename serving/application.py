"""The Ray Serve application: replicas that decide, and the learner."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import msgspec
import uvicorn
from ray import serve

from optimizer.settings import Settings
from serving.api import Api
from serving.autoscaling import DecisionRate, autoscaling_config
from serving.expected_load import ExpectedLoad
from serving.fast_lane import FastLane, listen
from serving.learning import Learning
from serving.replica_state import ReplicaState

__all__ = ["build"]

_LOG = logging.getLogger(__name__)
_KEEP_ALIVE_S = 75
_SWITCH_S = 0.0005
_MAX_ONGOING = 2000
_BEHIND_DECISIONS = 3
"""Niceness of the learner: where cores are short, decisions and rewards come first. With 10, the
last hundredth of rewards reached the replicas after 1.3 s instead of 0.7 s."""


@serve.deployment(
    name="decide",
    max_ongoing_requests=_MAX_ONGOING,
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=3,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class Replica:
    """Serves the HTTP contract at Ray's ingress, and at the fast lane from the same process.

    Parameters
    ----------
    settings
        `Settings` as JSON.
    """

    async def __init__(self, settings: str) -> None:  # type: ignore[misc]  # Ray awaits it
        logging.basicConfig(level=logging.INFO)
        content = Settings.model_validate_json(settings)
        # Background threads give way ten times sooner: p99 of decisions 4 ms instead of 6 ms.
        sys.setswitchinterval(_SWITCH_S)
        self._state = await asyncio.to_thread(ReplicaState, content)
        self._api = Api(self._state)
        self._rate = DecisionRate(self._state.decisions)
        scaling = content.serving.autoscaling
        self._expected = ExpectedLoad(
            content.postgres_dsn(),
            [point.name for point in content.decision_points],
            0.0 if scaling is None else scaling.ahead_s,
        )
        config = uvicorn.Config(
            self._api,
            loop="none",
            http=FastLane,
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(config)
        listener = listen(content.host, content.ports.fast_lane)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application that Ray's ingress serves."""
        return self._api

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve how busy this replica is, and what is expected of all."""
        return self._rate.report() | self._expected.report()

    async def check_health(self) -> None:
        """Fail, so that Ray replaces this replica, if the fast lane has stopped."""
        if self._serving.done():
            raise RuntimeError("the fast lane has stopped")

    async def __del__(self) -> None:
        self._server.should_exit = True
        self._expected.close(0.0)
        await asyncio.to_thread(self._state.close)


@serve.deployment(
    name="learn",
    num_replicas=1,
    health_check_period_s=1,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=12,
    ray_actor_options={"num_cpus": 0},
)
class LearnerReplica:
    """Hosts the learner of every decision point.

    Parameters
    ----------
    settings
        `Settings` as JSON.
    """

    def __init__(self, settings: str) -> None:
        logging.basicConfig(level=logging.INFO)
        # Of this thread and those it starts, not of Ray's, which say that the learner lives.
        os.nice(_BEHIND_DECISIONS)
        self._learning = Learning(Settings.model_validate_json(settings))
        self._learning.start()

    def check_health(self) -> None:
        """Fail, so that Ray starts a new learner, if a thread has died."""
        dead = self._learning.dead()
        if dead:
            raise RuntimeError(f"no learner for {', '.join(dead)}")

    def __del__(self) -> None:
        self._learning.close()


def build(settings: Settings) -> list[serve.RunTarget]:
    """What Ray Serve runs: the application that decides and the one that learns."""
    content = settings.model_dump(mode="json")
    content["token_keys"] = [key.get_secret_value() for key in settings.token_keys]
    text = msgspec.json.encode(content).decode()
    scaling = settings.serving.autoscaling
    size = (
        {"num_replicas": settings.replicas}
        if scaling is None
        else {"autoscaling_config": autoscaling_config(scaling)}
    )
    replica = Replica.options(**size).bind(text)  # type: ignore[attr-defined]
    learner = LearnerReplica.bind(text)  # type: ignore[attr-defined]
    return [
        serve.RunTarget(learner, name="learner", route_prefix=None),
        serve.RunTarget(replica, name="decisions", route_prefix="/"),
    ]
