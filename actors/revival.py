"""What becomes of an execution whose actor had to be dropped: it goes on from the log, or fails for good.

fenced (somebody else wrote its stream)  --> brought back if the log says that it is still ours
crashed (a fault of ours)                --> brought back after a pause, CRASHES_MAX times, then failed
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import structlog

from actors.patience import until_available
from actors.plans import Plans
from actors.recovery import Recovery
from actors.writer import Committed
from runtime import commands, execution, scheduling
from runtime.event_log import Append, Chain, EventLog, Recorded
from runtime.events import StepError
from runtime.ids import FlowId, FlowVersion, Micros, TenantId
from runtime.state import ExecutionState

log = structlog.get_logger(__name__)

CRASHES_MAX = 3
"""Times an execution is recovered from a fault of ours before it fails with ``InternalError``."""

REVIVE_SECONDS = 0.2
"""Pause before the first recovery from a fault of ours; the second waits twice as long."""


class Home(Protocol):
    """What a revival needs of its host."""

    owner: str

    def now(self) -> Micros: ...
    def is_here(self, execution_id: str) -> bool: ...
    def append(self, append: Append) -> Committed: ...
    def ended(self, execution_id: str) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


async def read_back(event_log: EventLog, execution_id: str) -> tuple[ExecutionState | None, list[Recorded]]:
    """The state the log gives, and the events it came from. Waits while the store is away."""
    recorded = await until_available(
        lambda: asyncio.to_thread(event_log.read, execution_id), "read an execution"
    )
    return execution.fold(event.event() for event in recorded), recorded


async def is_due(event_log: EventLog, plans: Plans, execution_id: str, now: Micros) -> bool:
    """Whether a passivated execution has something to do that no timer or message will bring."""
    state, _ = await read_back(event_log, execution_id)
    if state is None or state.is_closed:
        return False
    plan = await plans.plan(TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version))
    due = scheduling.due_nodes(state, plan, now)
    return due is not scheduling.NOTHING or scheduling.is_finished(state)


class Revival:
    """Lives on its host's loop."""

    def __init__(self, event_log: EventLog, plans: Plans, recovery: Recovery, home: Home) -> None:
        self._log = event_log
        self._plans = plans
        self._recovery = recovery
        self._home = home
        self._crashes: dict[str, int] = {}

    def fenced(self, execution_id: str) -> None:
        """Somebody else wrote its stream; its actor is dropped already."""
        self._home.spawn(self._reclaim(execution_id))

    def crashed(self, execution_id: str) -> None:
        """A fault of ours; its actor is dropped already, and with it what was not recorded."""
        crashes = self._crashes[execution_id] = self._crashes.get(execution_id, 0) + 1
        self._home.spawn(self._revive(execution_id, crashes))

    def forget(self, execution_id: str) -> None:
        self._crashes.pop(execution_id, None)

    async def _reclaim(self, execution_id: str) -> None:
        state, _ = await read_back(self._log, execution_id)
        if state is not None and not state.is_closed and state.owner == self._home.owner:
            await self._recovery.bring_back(execution_id)

    async def _revive(self, execution_id: str, crashes: int) -> None:
        await asyncio.sleep(crashes * REVIVE_SECONDS)
        if crashes < CRASHES_MAX:
            await self._recovery.bring_back(execution_id)
            return
        state, recorded = await read_back(self._log, execution_id)
        if state is None or state.is_closed or self._home.is_here(execution_id):
            return
        plan = await self._plans.plan(
            TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version)
        )
        command: commands.Command
        if state.cancel_requested_at is None:
            error = StepError(type="InternalError", message="the runtime failed; see the server's log")
            command = commands.Fail(at=self._home.now(), error=error)
        else:
            command = commands.ConfirmCancelled(at=self._home.now())
        decision = execution.decide(state, plan, command)
        chain = Chain(recorded[-1].hash())
        await self._home.append(Append(execution_id, decision.events, decision.state, chain))
        self._home.ended(execution_id)
