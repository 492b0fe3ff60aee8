"""The machines of the cluster as Ray lists them, and whether one that stopped answering is gone.

Ray calls a node dead when several of its health checks went unanswered: 15 s with its own defaults. That is
too late for a take-over within 10 s, so a node whose host fails is asked directly: its raylet listens as long
as the node is up. Blocking: called on threads.
"""

import socket
from typing import Any, cast

import msgspec
import ray

PROBE_SECONDS = 1.0
"""A machine that is up takes a connection at once; one that was switched off takes none."""


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """``resources``: what Ray may give away there in all, by Ray's names."""

    id: str
    address: str
    port: int
    is_alive: bool
    is_head: bool
    resources: dict[str, float]

    @property
    def cpus(self) -> float:
        return self.resources.get("CPU", 0.0)


def read() -> dict[str, ClusterNode]:
    """All nodes Ray has known, by id. Raises: what Ray raises when its head is away."""
    found = cast("list[dict[str, Any]]", ray.nodes())
    return {node.id: node for node in map(_node, found)}


def _node(entry: dict[str, Any]) -> ClusterNode:
    resources: dict[str, float] = entry.get("Resources") or {}
    shown = {name: amount for name, amount in resources.items() if not name.startswith("node:")}
    return ClusterNode(
        id=entry["NodeID"],
        address=entry["NodeManagerAddress"],
        port=entry["NodeManagerPort"],
        is_alive=entry["Alive"],
        is_head="node:__internal_head__" in resources,
        resources=shown,
    )


def is_gone(node: ClusterNode | None) -> bool:
    """Whether nothing on this node can answer any more; asks the node itself, for at most a second."""
    if node is None or not node.is_alive:
        return True
    try:
        socket.create_connection((node.address, node.port), PROBE_SECONDS).close()
    except OSError:
        return True
    return False
