"""A node of a cluster on loopback, for as long as this process lives.

    python -m tests.cluster.ray_node head PORT TEMP_DIR CPUS [AUTOSCALING_CONFIG]
    python -m tests.cluster.ray_node node ADDRESS CPUS

`ray start` moves every node of a cluster to the machine's outer address, and refuses to start a head again
beside a node that waits for it on the same machine.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams

READY = "the node is up"
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
    return Node(_params(options), head=True, shutdown_at_exit=False, spawn_reaper=False)


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
        "node_ip_address": "127.0.0.1",
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
