"""``python -m serving.run``: starts Ray, deploys the application, and stays until told to stop.

Ray is started by this process and ends with it, unless ``ray_address`` names a cluster of the
user's. A file, ``ray.ready`` in the folder of state, appears when Ray is up: whoever starts several
heavy parts at once on a small machine waits for it, because Ray's node gives its own helpers only
15 seconds to start.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType

from optimizer.errors import PartFailed
from optimizer.settings import Settings, load_settings

__all__ = ["READY_FILE", "main"]

_LOG = logging.getLogger(__name__)
READY_FILE = "ray.ready"
_TRIES = 4
_OBJECT_STORE_BYTES = 80_000_000
_LONGEST_SOCKET_FOLDER = 40


def _environment(settings: Settings) -> dict[str, str]:
    """What Ray reads when it is imported and hands on to its processes."""
    haproxy = Path(tempfile.gettempdir()) / "h"  # short, since its sockets' names are long
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(settings.ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(settings.ports.haproxy_stats),
        # HAProxy in front, straight to the replicas: ten times Ray Serve's default proxy.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's name for "this machine only": it binds to the loopback address then.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_TOKEN_PATH": str(settings.home / "ray_token"),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _temporary_folder(home: Path) -> str:
    """Below the folder of state, unless Ray's socket paths would be too long for the system."""
    folder = home / "ray"
    if len(str(folder)) > _LONGEST_SOCKET_FOLDER:
        return str(Path(tempfile.gettempdir()) / "ray")
    return str(folder)


def _start_ray(settings: Settings) -> None:
    import ray

    if settings.ray_address is not None:
        ray.init(address=settings.ray_address, log_to_driver=False, namespace="llmopt")
        return
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
    for attempt in range(1, _TRIES + 1):
        try:
            ray.init(
                namespace="llmopt",
                include_dashboard=True,
                dashboard_host=settings.host,
                dashboard_port=settings.ports.ray_dashboard,
                log_to_driver=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=_temporary_folder(settings.home),
                _node_ip_address=settings.host,
            )
            return
        except Exception as error:  # ray raises bare Exception when its node times out
            _LOG.warning("Ray did not start (try %d of %d): %s", attempt, _TRIES, error)
            ray.shutdown()
    raise PartFailed(
        f"Ray did not start in {_TRIES} tries; its logs are in {_temporary_folder(settings.home)}"
    )


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    settings = load_settings()
    settings = settings.model_copy(update={"home": settings.home.absolute()})
    settings.home.mkdir(parents=True, exist_ok=True)
    for name, value in _environment(settings).items():
        os.environ.setdefault(name, value)
    stop = threading.Event()

    def asked_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    ready = settings.home / READY_FILE
    ready.unlink(missing_ok=True)
    _start_ray(settings)
    import ray
    from ray import serve

    from serving.application import build

    ready.touch()
    signal.signal(signal.SIGTERM, asked_to_stop)
    signal.signal(signal.SIGINT, asked_to_stop)
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.ports.ingress},
        )
        serve.run_many(build(settings), wait_for_applications_running=True)
        _LOG.info("ready")
        stop.wait()
    finally:
        ready.unlink(missing_ok=True)
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
