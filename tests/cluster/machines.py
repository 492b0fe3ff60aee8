"""Several nodes on this machine, each a session of processes, and gateways that join them.

The head has no CPUs, as in the cluster file of the distribution. Everything stays on loopback.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil

from runtime.event_log import EventLog, store_env
from tests.cluster.ray_processes import RayProcesses
from tests.contracts.live_server import LiveServer
from tests.faults.victims import HOST
from tests.sandbox import REPOSITORY, Sandbox


@contextmanager
def machines(sandbox: Sandbox, nodes: int, cpus: int) -> Generator[RayProcesses]:
    """A head without CPUs and ``nodes`` of ``cpus`` each; this process does not join them."""
    cluster = RayProcesses(sandbox.root / "cl", {}, {"PYTHONPATH": str(REPOSITORY)})
    try:
        cluster.start_head()
        for number in range(nodes):
            cluster.start_node(f"node-{number}", cpus)
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(sandbox.root / "cl", ignore_errors=True)


def host_on(cluster: RayProcesses, node_id: str) -> psutil.Process:
    """The process of the one host on a node."""
    [host] = [one for one in cluster.processes(node_id) if one.name().startswith(HOST)]
    return host


class JoinedGateway(LiveServer):
    """A gateway of a cluster; its store is PostgreSQL, shared with the others."""

    module = "tests.cluster.quick_gateway"

    def __init__(self, folder: Path, cluster: RayProcesses, store: str, blobs: Path, **settings: str) -> None:
        super().__init__(
            folder,
            ray_address=cluster.address,
            store=store,
            blobs=str(blobs),
            shutdown_seconds="1",
            **settings,
        )
        self.store_url = store
        self.environment = cluster.environment

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
