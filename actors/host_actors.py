"""Hosts as Ray actors: made on a node of choice, found by name, ended. Blocking: called on threads.

On a cluster of others' hosts are detached: they outlive the gateway that made them, and every gateway finds
them by name. A host needs no CPU of its own as far as Ray is concerned, else it would keep work that wants
all of a node's CPUs waiting for ever.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
import ray
import structlog
from ray.exceptions import RayError

from actors.dedicated import DedicatedPlace
from actors.host import ExecutionHost
from actors.host_config import HostConfig
from actors.ray_cluster import NAMESPACE
from actors.scaling import PREFIX
from runtime.ids import HostName

log = structlog.get_logger(__name__)

CALLS_AT_ONCE_MAX = 1_000

DEDICATED = "execution-"

NODE_LABEL = "ray.io/node-id"
"""Ray labels every node with its id."""


def is_dedicated(name: str) -> bool:
    """Whether the host of this name lives for one execution."""
    return name.startswith(DEDICATED)


def create(
    config: HostConfig, *, detached: bool, nodes: Sequence[str] = (), place: DedicatedPlace | None = None
) -> Any:
    """A handle to the host of this name, which is made when there is none.

    ``nodes``: where it may be, the first where it had best be; none: anywhere. ``place``: a dedicated one's.
    """
    options: dict[str, Any] = {"num_cpus": 0} if place is None else place.options
    if detached:
        options["lifetime"] = "detached"
    if nodes:
        # By labels, not by affinity: what Ray starts again must not go where no host is meant to be.
        first, others = nodes[0], f"in({', '.join(nodes)})"
        options["label_selector"] = {NODE_LABEL: first}
        options["fallback_strategy"] = [{"label_selector": {NODE_LABEL: others}}]
    return ExecutionHost.options(
        name=config.name,
        namespace=NAMESPACE,
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=CALLS_AT_ONCE_MAX,
        enable_task_events=False,
        **options,
    ).remote(msgspec.json.encode(config))


def names() -> set[HostName]:
    """All pooled hosts there are, whoever made them."""
    return {HostName(name) for name in ray.util.list_named_actors() if name.startswith(PREFIX)}


def handles(wanted: Iterable[HostName]) -> dict[HostName, Any]:
    """Handles to those of the hosts that have not ended meanwhile."""
    found: dict[HostName, Any] = {}
    for name in wanted:
        try:
            # Ray's own types leave the class of the actor open.
            found[name] = cast(Any, ray).get_actor(name, namespace=NAMESPACE)
        except ValueError:
            log.info("a host ended before it was found", host=name)
    return found


def end(handle: Any) -> None:
    """For good: Ray does not start it again. Ending one that has ended is harmless."""
    ray.kill(handle)


async def closed(handle: Any) -> None:
    """Wait until the host has written what it holds, or has ended."""
    try:
        await handle.close.remote()
    except RayError as error:
        log.info("a host had ended before it was closed", error=str(error)[:200])
