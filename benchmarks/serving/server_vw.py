"""Vowpal Wabbit behind the same uvicorn: ``python -m benchmarks.serving.server_vw PORT``.

It reads the same body, makes the same features, predicts with SquareCB, draws, and answers JSON.
Nothing is signed or logged.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import msgspec
import numpy as np
import uvicorn
from vowpalwabbit import Workspace  # type: ignore[import-not-found]

from benchmarks.serving.payloads import TASKS
from benchmarks.serving.world import ARMS, outcome
from optimizer.features import FeatureEncoder
from optimizer.policies import draw
from optimizer.records import Context

_OPTIONS = "--cb_explore_adf --squarecb --cb_type mtr -q sa --quiet --random_seed 0"
_TAUGHT = 4000


class Decider:
    """Taught the same world as ours before it answers."""

    def __init__(self) -> None:
        self._workspace = Workspace(_OPTIONS)
        self._encoder = FeatureEncoder(TASKS, embedding_size=0)
        self._arms = [f"|a m{arm}" for arm in range(ARMS)]
        self._body = msgspec.json.Decoder(dict[str, Any])
        rng = random.Random(1)
        for _ in range(_TAUGHT):
            context = {"task": rng.choice(TASKS), "input_tokens": rng.randint(20, 2000)}
            shared = self._shared(context)
            arm, propensity = self._draw(shared)
            quality, cost_usd, _ = outcome(rng, arm, str(context["task"]))
            reward = 0.5 * quality + 0.5 * (1 - min(cost_usd / 0.01, 1))
            lines = [shared, *self._arms]
            lines[1 + arm] = f"0:{-reward:.6f}:{propensity:.6g} {self._arms[arm]}"
            self._workspace.learn(lines)

    def decide(self, body: bytes) -> bytes:
        """The answer to a body of ``POST /v1/decisions``."""
        request = self._body.decode(body)
        arm, propensity = self._draw(self._shared(request["context"]))
        return msgspec.json.encode({"model": f"model-{arm}", "propensity": propensity})

    def _shared(self, fields: dict[str, Any]) -> str:
        vector = self._encoder.encode(Context(**fields), None, time.time())
        return "shared |s " + " ".join(f"f{i}:{vector[i]:.6g}" for i in np.flatnonzero(vector))

    def _draw(self, shared: str) -> tuple[int, float]:
        scores = np.array(self._workspace.predict([shared, *self._arms]))
        arm = draw(scores / scores.sum(), random.random())
        return arm, float(scores[arm])


def main() -> None:
    """Serve until told to stop."""
    decider = Decider()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = decider.decide(body)
        length = (b"content-length", b"%d" % len(answer))
        headers = [(b"content-type", b"application/json"), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(
        application, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off"
    )


if __name__ == "__main__":
    main()
