"""Ray Serve behind its default proxy with a constant answer: ``server_ray.py PORT FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    """Serve until told to stop; an instance of Ray of its own, in FOLDER."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (that is its name)
    os.environ.pop("RAY_ADDRESS", None)
    stop = threading.Event()
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(max_ongoing_requests=2000, ray_actor_options={"num_cpus": 0})
    class Constant:
        async def __call__(self, request: Request) -> Response:
            await request.body()
            return Response(b"{}", media_type="application/json")

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80_000_000,
        _temp_dir=sys.argv[2],
        _node_ip_address="127.0.0.1",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        options = {"host": "127.0.0.1", "port": int(sys.argv[1])}
        serve.start(proxy_location="HeadOnly", http_options=options)
        serve.run(Constant.bind(), route_prefix="/")  # type: ignore[attr-defined]
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
