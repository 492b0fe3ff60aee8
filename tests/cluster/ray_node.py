"""A node of a cluster on loopback, for as long as this process lives.

    python -m tests.cluster.ray_node head PORT TEMP_DIR CPUS [AUTOSCALING_CONFIG]
    python -m tests.cluster.ray_node node ADDRESS CPUS

`ray start` moves every node of a cluster to the machine's outer address, and refuses to start a head again
beside a node that waits for it on the same machine.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from typing import Any, cast

from ray._private import services
from ray._private.node import Node
from ray._private.parameter import RayParams

READY = "the node is up"
ANSWERS_SECONDS = 30.0
HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 80 * 1024 * 1024


def head(port: str, temp_dir: str, cpus: str, autoscaling_config: str = "") -> Node:
    """A head, with its autoscaler if there is a configuration for it."""
    options: dict[str, Any] = {
        "gcs_server_port": int(port),
        "temp_dir": temp_dir,
        "autoscaling_config": autoscaling_config or None,
        "no_monitor": not autoscaling_config,
        "num_cpus": int(cpus),
        "include_dashboard": False,
    }
    started = Node(_params(options), head=True, shutdown_at_exit=False, spawn_reaper=False)
    _wait_until_it_answers(started)
    return started


def _wait_until_it_answers(head: Node) -> None:
    """A head that is started again has the id of the one before, whose record stands until it registers:
    whoever joins meanwhile asks a raylet that is dead, and Ray ends the process that does."""
    deadline = time.monotonic() + ANSWERS_SECONDS
    while True:
        record = cast("dict[str, Any]", services.get_node(head.gcs_address, head.node_id))
        try:
            socket.create_connection((HOST, record["node_manager_port"]), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def node(address: str, cpus: str) -> Node:
    options: dict[str, Any] = {
        "gcs_address": address,
        "redis_address": address,
        "num_cpus": int(cpus),
        "dashboard_agent_listen_port": 0,
    }
    return Node(_params(options), head=False, shutdown_at_exit=False, spawn_reaper=False)


def _params(options: dict[str, Any]) -> RayParams:
    everywhere: dict[str, Any] = {
        "node_ip_address": HOST,
        "object_store_memory": OBJECT_STORE_BYTES,
        "min_worker_port": 0,
        "max_worker_port": 0,
        "include_log_monitor": False,
    }
    return RayParams(**everywhere, **options)


if __name__ == "__main__":
    started = {"head": head, "node": node}[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    threading.Event().wait()
