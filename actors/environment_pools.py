"""Which pool of workers runs a call: that of its flow's code, or the one of all flows that bring none.

Processes of one environment serve no other, so each has a pool of its own, made when first needed. At most
``ENVIRONMENTS_MAX`` have one at a time: another takes the place of the one that has been idle longest, and
waits while all are at work. Idle workers of a pool end by themselves, so an idle pool costs next to nothing.
"""

import asyncio
from typing import Any

from actors.environments import Environments
from actors.resource_tasks import Tell
from actors.step_call import StepCall, StepOutcome
from actors.worker_pool import PoolSettings, WorkerPool
from runtime.errors import Overloaded, Unavailable
from runtime.packages import Code

ENVIRONMENTS_MAX = 8


class _Place:
    """One environment's pool, and the calls it has."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.calls = 0


class EnvironmentPools:
    """One host's; lives on its loop. Has the interface of a ``WorkerPool``."""

    def __init__(self, settings: PoolSettings, environments: Environments) -> None:
        self._settings = settings
        self._environments = environments
        self._shared = WorkerPool(settings, environments=environments)
        self._places: dict[str, _Place] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def workers_max(self) -> int:
        return self._shared.workers_max

    @property
    def unplaceable(self) -> int:
        """As ``WorkerPool.unplaceable``."""
        return self._shared.unplaceable

    @property
    def environments(self) -> tuple[str, ...]:
        """Those that have a pool, the one used longest ago first."""
        return tuple(self._places)

    async def run(self, call: StepCall, tell: Tell | None = None) -> StepOutcome:
        """As ``WorkerPool.run``. Raises: also Overloaded when all environments of the host are at work."""
        if self._closed:
            raise Unavailable("the worker pools are closed")
        if call.code is None or call.resources is not None:
            return await self._shared.run(call, tell)
        name = call.code.environment
        place = self._places.pop(name, None) or self._make(call.code)
        self._places[name] = place  # in the order of their last use
        place.calls += 1
        try:
            return await place.pool.run(call, tell)
        finally:
            place.calls -= 1

    async def close(self) -> None:
        self._closed = True
        pools = [self._shared, *(place.pool for place in self._places.values())]
        self._places.clear()
        await asyncio.gather(*(pool.close() for pool in pools), *self._closing)
        await self._environments.close()

    def _make(self, code: Code) -> _Place:
        if len(self._places) >= ENVIRONMENTS_MAX:
            idle = next((name for name, place in self._places.items() if not place.calls), None)
            if idle is None:
                raise Overloaded(f"functions of {ENVIRONMENTS_MAX} environments are at work here")
            ending = asyncio.get_running_loop().create_task(self._places.pop(idle).pool.close())
            self._closing.add(ending)
            ending.add_done_callback(self._closing.discard)

        async def prepare() -> dict[str, Any]:
            return await self._environments.runtime_env(code)

        return _Place(WorkerPool(self._settings, prepare=prepare, objects=self._shared.objects))
