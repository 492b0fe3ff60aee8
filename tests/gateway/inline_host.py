"""A host in the test's own process: appends real events through the real log and runs no node.

It does what `actors.client.ExecutionClient` promises for start, send and follow, so that the gateway can be
tested without Ray; ``fault`` makes the next start fail after or instead of recording.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from actors.messages import Delta, Reply
from gateway.catalogue import Catalogue
from gateway.context import Gateway
from runtime import execution
from runtime.commands import Command, StartExecution
from runtime.errors import NotFound
from runtime.event_log import Append, Chain, Recorded
from runtime.events import TERMINAL_EVENTS
from runtime.ids import FlowId, HostName, Position, TenantId
from runtime.state import ExecutionState

START = Position(0)

_ENDS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


class InlineHost:
    """Client and runtime in one. ``started`` lists every start that arrived, repeats included."""

    def __init__(self, gateway: Gateway) -> None:
        self._log = gateway.log
        self._catalogue: Catalogue = gateway.catalogue
        self._states: dict[str, ExecutionState] = {}
        self._chains: dict[str, Chain] = {}
        self._news = asyncio.Condition()
        self._deltas: dict[str, list[Delta]] = {}
        self._heard: dict[str, int] = {}
        self.started: list[str] = []
        self.fault: Exception | None = None
        self.fault_before_record = True

    async def _plan(self, tenant: str, flow_id: str, version: str) -> Any:
        flow = await self._catalogue.version(TenantId(tenant), FlowId(flow_id), version)
        assert flow is not None
        return flow.plan

    async def start(self, command: StartExecution) -> None:
        self.started.append(command.execution_id)
        fault, self.fault = self.fault, None
        if fault is not None and self.fault_before_record:
            raise fault
        if command.execution_id not in self._states:
            plan = await self._plan(command.tenant, command.flow_id, command.flow_version)
            decision = execution.start(command, plan)
            self._chains[command.execution_id] = Chain()
            await self._record(command.execution_id, decision)
        if fault is not None:
            raise fault

    async def send(self, execution_id: str, command: Command) -> Reply:
        """Also takes the commands that a real host gives itself, so that a test can drive a run."""
        state = self._states.get(execution_id)
        if state is None:
            raise NotFound("execution not found")
        plan = await self._plan(state.tenant, state.flow_id, state.flow_version)
        decision = execution.decide(state, plan, command)
        await self._record(execution_id, decision)
        return Reply(state.status, decision.state.version)

    async def _record(self, execution_id: str, decision: execution.Decision) -> None:
        if decision.events:
            chain = self._chains[execution_id]
            append = Append(execution_id, decision.events, decision.state, chain)
            [outcome] = await asyncio.to_thread(self._log.append, [append])
            assert isinstance(outcome, tuple)
        self._states[execution_id] = decision.state
        async with self._news:
            self._news.notify_all()

    async def say(self, execution_id: str, node_id: str, text: str) -> None:
        """A piece of text on the live feed."""
        spoken = self._deltas.setdefault(execution_id, [])
        offset = sum(len(delta.text) for delta in spoken if delta.node_id == node_id)
        spoken.append(Delta(execution_id, node_id, "model-1", offset, text))
        async with self._news:
            self._news.notify_all()

    async def follow(
        self, execution_id: str, after: Position = START, *, deltas: bool = False
    ) -> AsyncGenerator[Recorded | Delta]:
        version = told = 0
        while True:
            for recorded in await asyncio.to_thread(self._log.read, execution_id, version):
                version = recorded.originator_version
                if recorded.position > after:
                    yield recorded
                if recorded.topic in _ENDS:
                    return
            spoken = self._deltas.get(execution_id, [])
            for delta in spoken[told:]:
                if deltas:
                    yield delta
                    self._heard[execution_id] = self._heard.get(execution_id, 0) + 1
                    async with self._news:
                        self._news.notify_all()
            told = len(spoken)
            async with self._news:
                if self._states[execution_id].version == version and len(spoken) == told:
                    await asyncio.wait_for(self._news.wait(), 20)

    async def until_started(self, count: int) -> str:
        """Wait until ``count`` executions are recorded; the id of the last one."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(self._states) >= count)
            return list(self._states)[-1]

    async def until_heard(self, execution_id: str, count: int) -> None:
        """Wait until readers took ``count`` pieces of text and came back for more."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: self._heard.get(execution_id, 0) >= count)

    @property
    def ray(self) -> bool:
        return True

    @property
    def hosts(self) -> dict[str, bool]:
        return {str(HostName("host-0")): True}

    @property
    def problem(self) -> str:
        return ""

    @property
    def is_ready(self) -> bool:
        return True

    def readiness(self) -> InlineHost:
        return self

    async def close(self) -> None:
        return None


async def connect_inline(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    host = InlineHost(gateway)
    gateway.client = host
    gateway.runtime = host
    on_ready()
