"""Where the host of one execution goes: to a node with its flow's resources, which it holds while it lives.

    room now          the host holds the resources, and the functions run in workers of its own beside it
    no room for long  no host: a pooled one takes the execution, and each function is a task with the same
    or ever           resources, placed when there is room, and reported when there never can be

So an execution is accepted at once and for good, wherever its resources are just now.
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from actors.cluster_view import ClusterView
from actors.plans import Plans
from actors.resource_tasks import ray_options
from actors.worker_pool import PoolSettings
from runtime import events
from runtime.commands import StartExecution
from runtime.event_log import EventLog
from runtime.ids import FlowId, FlowVersion, TenantId
from runtime.placement import Resources

DEVICES = (
    "ASCEND_RT_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "HABANA_VISIBLE_MODULES",
    "HIP_VISIBLE_DEVICES",
    "NEURON_RT_VISIBLE_CORES",
    "ONEAPI_DEVICE_SELECTOR",
    "ROCR_VISIBLE_DEVICES",
    "TPU_VISIBLE_CHIPS",
)
"""By these variables Ray tells a process which devices it may use."""


class DedicatedPlace(msgspec.Struct, frozen=True):
    """What one dedicated host holds; no resources: it may be anywhere."""

    resources: Resources | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options for the host."""
        return {"num_cpus": 0} if self.resources is None else ray_options(self.resources)

    def pool(self, pool: PoolSettings) -> PoolSettings:
        """Its workers' settings: as many as it has CPUs, sharing its memory."""
        if self.resources is None:
            return pool
        workers = max(1, math.floor(self.resources.cpus)) if self.resources.cpus else pool.workers_max
        limits = pool.limits
        if self.resources.memory_mb:
            share = max(1, self.resources.memory_mb // max(1, workers))
            limits = msgspec.structs.replace(limits, memory_max_mb=share)
        return msgspec.structs.replace(pool, workers_max=workers, limits=limits, beside_host=True)


class DedicatedPlaces:
    """Lives on the gateway's loop."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._plans = Plans(event_log)
        self._view = ClusterView()

    async def find(self, execution_id: str, command: StartExecution | None) -> DedicatedPlace | None:
        """The place for the execution's host; None while there is no room for it.

        ``command``: what starts it; None for one that the log has. Raises: NotFound for an unknown flow.
        """
        resources = await self._resources(execution_id, command)
        if resources is None or not (resources.amounts or resources.labels):
            return DedicatedPlace()
        return DedicatedPlace(resources) if await self._view.has_room(resources) else None

    async def _resources(self, execution_id: str, command: StartExecution | None) -> Resources | None:
        if command is not None:
            flow = (command.tenant, command.flow_id, command.flow_version)
        else:
            recorded = await asyncio.to_thread(self._log.read, execution_id, 0, 1)
            queued = recorded[0].event() if recorded else None
            if not isinstance(queued, events.Queued):
                return None
            flow = (queued.tenant, queued.flow_id, queued.flow_version)
        plan = await self._plans.plan(TenantId(flow[0]), FlowId(flow[1]), FlowVersion(flow[2]))
        return plan.resources


def devices_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The devices a process may use, as a process beside it has to be told."""
    return {name: environment[name] for name in DEVICES if name in environment}
