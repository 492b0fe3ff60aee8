"""Several nodes on this machine by Ray's own class for clusters in tests, and gateways that join them.

The head has no CPUs, as in the cluster file of the distribution. Everything stays on loopback.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from runtime.event_log import EventLog, store_env
from tests.contracts.live_server import LiveServer
from tests.faults.victims import HOST
from tests.sandbox import REPOSITORY, Sandbox, wait_until_gone

OBJECT_STORE_BYTES = 80 * 1024 * 1024
END_SECONDS = 20.0


class Machines:
    """The nodes of one cluster, each a raylet and what it started."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cpus: int) -> None:
        self._cluster.add_node(num_cpus=cpus, **_options())

    def processes(self, node_id: str) -> list[psutil.Process]:
        """All of a node's, hosts and workers included; the raylet first."""
        [node] = [one for one in self._cluster.list_all_nodes() if one.node_id == node_id]
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]

    def host_on(self, node_id: str) -> psutil.Process:
        """The process of the one host on a node."""
        [host] = [process for process in self.processes(node_id) if process.name().startswith(HOST)]
        return host

    def kill(self, node_id: str) -> None:
        """`kill -9` of every process of a node, as when its machine loses power."""
        [node] = [one for one in self._cluster.list_all_nodes() if one.node_id == node_id]
        killed = self.processes(node_id)
        for process in killed:
            process.kill()
        # Its own list of processes must not find them dead later on.
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        self._cluster.worker_nodes.remove(node)
        wait_until_gone(killed, END_SECONDS)


def _options() -> dict[str, Any]:
    return {
        "object_store_memory": OBJECT_STORE_BYTES,
        "node_ip_address": "127.0.0.1",
        "include_log_monitor": False,
        "no_monitor": True,
        "env_vars": {"PYTHONPATH": str(REPOSITORY)},
    }


@contextmanager
def machines(sandbox: Sandbox, nodes: int, cpus: int) -> Generator[Machines]:
    """A head without CPUs and ``nodes`` of ``cpus`` each; this process does not join them."""
    from ray._private import ray_constants
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    cluster: Any = None
    with pytest.MonkeyPatch.context() as patch:
        # As in our own Ray (see actors.ray_cluster): on loopback, without a dashboard or idle workers.
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setattr(Node, "start_api_server", _nothing_to_serve)
        patch.setenv("RAY_TMPDIR", str(_folder(sandbox.ray_folder / "nodes")))
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("RAY_enable_worker_prestart", "0")
        try:
            cluster = Cluster(
                initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 0, **_options()}
            )
            found = Machines(cluster)
            for _ in range(nodes):
                found.add(cpus)
            yield found
        finally:
            if cluster is not None:
                # Its own shutdown also takes the connection of a Ray that this process may be joined to.
                for node in (*cluster.worker_nodes, cluster.head_node):
                    cluster.remove_node(node)
            after = psutil.Process().children(recursive=True)
            left = [process for process in after if process.pid not in before]
            for process in wait_until_gone(left, 2.0):
                process.kill()
            wait_until_gone(left, END_SECONDS)
            shutil.rmtree(sandbox.ray_folder / "nodes", ignore_errors=True)


def _nothing_to_serve(*_: object, **__: object) -> None:
    """There is no dashboard."""


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


class JoinedGateway(LiveServer):
    """A gateway of a cluster; its store is PostgreSQL, shared with the others."""

    module = "tests.cluster.quick_gateway"

    def __init__(self, folder: Path, address: str, store: str, blobs: Path, **settings: str) -> None:
        super().__init__(
            folder, ray_address=address, store=store, blobs=str(blobs), shutdown_seconds="1", **settings
        )
        self.store_url = store
        # Nodes and gateways share the token of the suite's sandbox; it is in this process's environment.
        self.environment = {
            "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"],
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray looks for the head at the outer address
        }

    def _log(self) -> EventLog:
        return EventLog.open(store_env(self.store_url))

    @contextmanager
    def log(self) -> Generator[EventLog]:
        log = self._log()
        try:
            yield log
        finally:
            log.close()

    def overview(self) -> dict[str, Any]:
        with self.client() as client:
            answer = client.get("/api/admin/hosts")
        assert answer.status_code == 200, answer.text
        return cast("dict[str, Any]", answer.json())

    def hosts(self, *states: str) -> dict[str, dict[str, Any]]:
        """Hosts in one of the states (running without any), by name."""
        wanted = states or ("running",)
        return {host["name"]: host for host in self.overview()["hosts"] if host["state"] in wanted}


Holds = Callable[[], bool]
