"""Ray's start and end in this process: a cluster of our own, or one that runs already.

A cluster of our own is the two servers that run work, and nothing to watch them. ``ray.init`` also starts
an autoscaler, a log monitor and a dashboard server (with ``include_dashboard=False``, too), and waits for
the last one: on two cores that is half of a start's time, and 1.7 s of CPU. Ray has no public switch for
them, so this leans on the class behind ``ray start``. A release of Ray where that class is another is
started by ``ray.init``: slower, and otherwise the same.

Ray's ports run code for whoever may talk to them, so joining a cluster beyond loopback without token
authentication is refused (DESIGN 5).
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
import structlog

from actors.ray_settings import RaySettings, is_loopback
from runtime.errors import Unavailable

log = structlog.get_logger(__name__)

NAMESPACE = "heliograph"

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Of a local cluster: payloads travel through the log and the blob store, not through Ray's."""

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""What each raylet starts beside itself."""

_servers: list[Any] = []
"""What ``start`` started and ``shutdown`` ends; at most one."""


def start(settings: RaySettings) -> None:
    """Have this process connected to Ray. Blocking; the calling thread must live as long as the cluster.

    Raises: Unavailable, and what Ray raises when it can't start.
    """
    if settings.address:
        if os.environ.get("RAY_AUTH_MODE") == "disabled" and not is_loopback(settings.address):
            raise Unavailable("refusing a Ray cluster beyond loopback without RAY_AUTH_MODE=token")
        _connect(address=settings.address)
        return
    # It warns every driver that threads get no signals, and there is nothing anybody could do about it.
    logging.getLogger("ray").setLevel(logging.ERROR)
    cpus = settings.cpus or len(os.sched_getaffinity(0))
    try:
        server = _start_servers(cpus, settings.temp_dir)
    except (ImportError, AttributeError, TypeError) as error:
        log.warning("this release of Ray starts slower", ray=ray.__version__, error=str(error))
        options = {"_temp_dir": settings.temp_dir} if settings.temp_dir else {}
        _connect(num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)
        return
    _servers.append(server)
    _connect(address=server.address)


def ended_server() -> str:
    """Which server of our own cluster has died, empty while all live. Nothing brings a cluster back then."""
    return next((str(name) for server in _servers for name, _ in server.dead_processes()), "")


def shutdown() -> None:
    """Leave the cluster, and end it when it is our own."""
    ray.shutdown()
    while _servers:
        _servers.pop().kill_all_processes(check_alive=False, allow_graceful=True)


def end_remains(agents_file: str) -> int:
    """End what a killed server left behind, then note what would be left of this one; how many ended.

    When a raylet is killed, its two agents live on (they hold each other's pipe and never see it close):
    130 MB for each ``kill -9`` of a server. They rewrite their own environment, so nothing about them says
    whose they are; hence the note. A process number that was given away since is told by its start time.
    Raises: OSError when the note can't be read or written.
    """
    note = Path(agents_file)
    noted = msgspec.json.decode(note.read_bytes(), type=list[tuple[int, float]]) if note.exists() else []
    ended = 0
    for pid, started in noted:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == started and process.name() in AGENTS:
                process.kill()
                ended += 1
    children = psutil.Process().children(recursive=True)
    agents = [(child.pid, child.create_time()) for child in children if child.name() in AGENTS]
    partial = note.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(agents))
    partial.replace(note)
    return ended


def _connect(**options: Any) -> None:
    ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **options)


def _start_servers(cpus: int, temp_dir: str) -> Any:
    """GCS and raylet, ended by the kernel when this process dies."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class Servers(Node):
        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            """There is no dashboard to serve."""

    options: dict[str, Any] = {"include_log_monitor": False, "no_monitor": True, "include_dashboard": False}
    params = RayParams(
        num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, temp_dir=temp_dir or None, **options
    )
    # As ray.init does it. A hook of its own at exit would need the main thread, for a signal handler.
    return Servers(params, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
