"""What the cluster's nodes have, as one host knows it: who could hold a step, and why nobody can.

A need that no living node could ever meet is still no lost cause when an autoscaler may start a node for it.
Ray's autoscaler of version 2 says which requests none of its node types can meet; until it has said so, they
are merely waiting. That of version 1, which `ray up` still starts by default, only says what it has seen and
what it is starting: what it has seen while it starts nothing, it can do nothing for.

Nothing here waits for Ray on the event loop, and nothing is asked more often than ``FRESH_SECONDS``.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import ray
import structlog
from ray._private import state as ray_state
from ray._private import worker as ray_worker
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RayError

from runtime.placement import NodeOffer, Resources, fits, missing

log = structlog.get_logger(__name__)

FRESH_SECONDS = 1.0
ASK_SECONDS_MAX = 5.0
TOLERANCE = 1e-3

REPORT_SECONDS_MAX = 60.0
"""An autoscaler whose last report is older is taken for dead: it reports every five seconds."""


class Snapshot(msgspec.Struct, frozen=True):
    """``refused``: what the autoscaler can't start a node for; None when there is no autoscaler."""

    nodes: tuple[NodeOffer, ...]
    refused: tuple[Mapping[str, float], ...] | None = None


class ClusterView:
    """Lives on one event loop; looks at the cluster in threads."""

    def __init__(self) -> None:
        self._snapshot = Snapshot(())
        self._seen_at = -FRESH_SECONDS
        self._looking: asyncio.Task[Snapshot] | None = None

    async def missing(self, resources: Resources) -> tuple[str, ...]:
        """Why no node, and none that may be started, can ever hold them; empty when one can or may."""
        snapshot = await self._fresh()
        lacking = missing(resources, snapshot.nodes) if snapshot.nodes else ()
        if lacking and snapshot.refused is not None and not _is_among(resources.amounts, snapshot.refused):
            return ()
        return lacking

    async def has_room(self, resources: Resources) -> bool:
        """Whether some node has room for them now."""
        return fits(resources, (await self._fresh()).nodes)

    async def close(self) -> None:
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=ASK_SECONDS_MAX)

    async def _fresh(self) -> Snapshot:
        loop = asyncio.get_running_loop()
        if loop.time() - self._seen_at < FRESH_SECONDS:
            return self._snapshot
        if self._looking is None:
            self._looking = loop.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Snapshot:
        try:
            async with asyncio.timeout(ASK_SECONDS_MAX):
                self._snapshot = await asyncio.to_thread(look)
        except (RayError, RuntimeError, OSError, TimeoutError) as error:
            # Ray's control service is away: what was known stays the best guess.
            log.warning("the cluster's nodes can't be listed", error=str(error)[:200])
        finally:
            self._seen_at = asyncio.get_running_loop().time()
            self._looking = None
        return self._snapshot


def look() -> Snapshot:
    """The cluster as it is now. Blocking, a few milliseconds.

    Raises: RuntimeError or RayError when Ray is away.
    """
    free = cast("dict[str, dict[str, float]]", ray_state.available_resources_per_node())
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    offers = tuple(
        NodeOffer(
            total=node["Resources"], free=free.get(node["NodeID"], {}), labels=dict(node.get("Labels") or {})
        )
        for node in nodes
        if node["Alive"]
    )
    return Snapshot(offers, _refused_by_autoscaler())


def _refused_by_autoscaler() -> tuple[Mapping[str, float], ...] | None:
    worker, messages = cast(Any, ray_worker), cast(Any, autoscaler_pb2)  # Ray gives neither of them types
    # This driver's own connection: Ray's module for keys and values has one per process, which any other
    # cluster that ends in the process takes away.
    control = worker.global_worker.gcs_client
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(control.get_cluster_status(timeout_s=ASK_SECONDS_MAX))
    if not reply.autoscaling_state.autoscaler_state_version:
        report = control.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None, timeout=ASK_SECONDS_MAX)
        return refused_by_report(report, time.time())
    requests = reply.autoscaling_state.infeasible_resource_requests
    return tuple(dict(request.resources_bundle) for request in requests)


class _Starting(msgspec.Struct):
    pending_nodes: list[Any] = []
    pending_launches: dict[str, int] = {}


class _Load(msgspec.Struct):
    resource_demand: list[tuple[dict[str, float], int]] = []


class _Report(msgspec.Struct):
    """What the autoscaler of version 1 says of itself; ``time`` in seconds since the epoch."""

    time: float
    autoscaler_report: _Starting
    load_metrics_report: _Load


def refused_by_report(report: bytes | None, now: float) -> tuple[Mapping[str, float], ...] | None:
    """What the autoscaler saw and starts nothing for, () while it starts nodes; None: there is none."""
    if not report:
        return None
    try:
        told = msgspec.json.decode(report, type=_Report)
    except msgspec.DecodeError as error:  # a release that words it in another way
        log.warning("the autoscaler's report can't be read", error=str(error))
        return None
    if now - told.time > REPORT_SECONDS_MAX:
        return None
    if told.autoscaler_report.pending_nodes or told.autoscaler_report.pending_launches:
        return ()
    return tuple(bundle for bundle, _ in told.load_metrics_report.resource_demand)


def _is_among(amounts: Mapping[str, float], requests: tuple[Mapping[str, float], ...]) -> bool:
    """Whether one of the requests asks for exactly these amounts. Ray adds resources of its own making."""
    return any(
        all(abs(request.get(name, 0) - amount) <= TOLERANCE * amount for name, amount in amounts.items())
        and not any(request.get(name, 0) for name in ("CPU", "GPU") if name not in amounts)
        for request in requests
    )
