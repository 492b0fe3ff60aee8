"""An agent node without a host: the real aggregate in memory, a journal over it, and a service to run it.

``Actor`` stops for good once ``events_max`` events are recorded, as a killed process does: what came after is
lost, and whoever waits for it to be durable waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import httpx
import msgspec

from actors.agents.home import AgentSettings
from actors.agents.service import AgentService
from actors.agents.tools.interface import OpenTools, ToolBox, ToolDefinition, ToolResult
from actors.step_call import StepCall, StepOutcome
from actors.step_journal import StepJournal
from runtime import commands, events
from runtime.agent_spec import AgentOutput, AgentSpec
from runtime.blob_store import BlobStore
from runtime.events import BlobRef, Event, Json
from runtime.execution import decide, fold, start
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import Micros, NodeId
from runtime.plan import CallTool, Plan, RunAgent
from runtime.state import ExecutionState

NODE = NodeId("agent")
SMALL_BYTES = 2_000
"""Above it, this home puts a value into its blob store."""


class Actor:
    """Keeps one execution with one agent node. ``history``: events of an earlier life."""

    def __init__(self, history: Sequence[Event] = (), events_max: int | None = None) -> None:
        self.plan = _plan()
        self.killed = asyncio.Event()
        self.deltas: list[tuple[str, int, str]] = []
        self._events_max = events_max
        self._clock = 1_000_000
        if history:
            self.events = list(history)
            state = fold(self.events)
            assert state is not None
            self.state: ExecutionState = state
        else:
            begun = start(_start(), self.plan)
            self.events = list(begun.events)
            self.state = begun.state
            self._decide(commands.Admit(at=self.now()))
            self._decide(commands.StartNode(at=self.now(), node_id=NODE))

    def _decide(self, command: commands.Command) -> None:
        if self.killed.is_set():
            return
        decision = decide(self.state, self.plan, command)
        for event in decision.events:
            if self._events_max is not None and len(self.events) >= self._events_max:
                self.killed.set()
                state = fold(self.events)
                assert state is not None
                self.state = state
                return
            self.events.append(event)
        self.state = decision.state

    # --- what a journal asks of its actor ---------------------------------------------------------------

    def record_step(
        self, command: commands.BeginStep | commands.RetryStep | commands.EndStep | commands.LogNode
    ) -> None:
        self._decide(command)

    async def durable(self) -> None:
        if self.killed.is_set():
            await asyncio.Event().wait()

    def now(self) -> Micros:
        self._clock += 1_000
        return Micros(self._clock)

    def draw(self) -> float:
        return 0.0

    def delta(self, node_id: NodeId, step: str, offset: int, text: str) -> None:
        self.deltas.append((step, offset, text))

    def idempotency_key(self, node_id: NodeId, attempt: int) -> str:
        return f"{self.state.execution_id}:{node_id}:{attempt}"

    # --- what tests ask ---------------------------------------------------------------------------------

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def logged(self, name: str) -> list[Json]:
        return [event.detail for event in self.told(events.NodeLogged) if event.event == name]

    def steps(self) -> list[str]:
        return list(self.state.nodes[NODE].steps)


class Home:
    """Implements ``AgentHome``."""

    where = "test"

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    @property
    def blobs(self) -> BlobStore:
        raise AssertionError("no test of the loop reads blobs itself")

    @property
    def http(self) -> httpx.AsyncClient:
        raise AssertionError("no test of the loop makes requests itself")

    async def call_function(self, call: StepCall) -> StepOutcome:
        raise AssertionError("the tools of these tests are functions of their own")

    async def run_child_flow(
        self, parent: ExecutionState, node_id: NodeId, child_id: str, flow_id: str, arguments: Json
    ) -> StepOutcome:
        raise AssertionError("the tools of these tests are functions of their own")

    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str:
        return f"child-of-{node_id}"

    async def load(self, ref: BlobRef) -> Json:
        return msgspec.json.decode(self.stored[ref.sha256])

    async def store_if_large(self, value: Json) -> BlobRef | None:
        data = msgspec.json.encode(value)
        if len(data) <= SMALL_BYTES:
            return None
        digest = sha256(data).hexdigest()
        self.stored[digest] = data
        return BlobRef(sha256=digest, size=len(data))


Function = Callable[..., Any]


class Tools:
    """Implements ``ToolBox`` and ``OpenTools`` over plain functions; counts what is really called."""

    instructions = ""

    def __init__(self, functions: Mapping[str, Function], **options: Any) -> None:
        """``options``: of every ``ToolDefinition``."""
        self._functions = dict(functions)
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.definitions = tuple(
            ToolDefinition(name=name, parameters={"type": "object", "properties": {}}, **options)
            for name in functions
        )

    @asynccontextmanager
    async def open(self, spec: AgentSpec, journal: StepJournal) -> AsyncGenerator[OpenTools]:
        yield self

    async def call(
        self, name: str, arguments: Mapping[str, Json], step: str, journal: StepJournal
    ) -> ToolResult:
        self.calls.append((name, dict(arguments), journal.key(step)))
        result = self._functions[name](**arguments)
        if asyncio.iscoroutine(result):
            result = await result
        return result if isinstance(result, ToolResult) else ToolResult(content=result)

    async def call_once(self, action: CallTool, step: str, journal: StepJournal) -> ToolResult:
        return await self.call(action.name, action.arguments, step, journal)

    async def finish(self, journal: StepJournal) -> Json:
        return None

    async def close(self) -> None:
        self.calls.append(("close", {}, ""))


def run(
    spec: AgentSpec,
    settings: AgentSettings,
    tools: ToolBox | None = None,
    *,
    actor: Actor | None = None,
    timeout_seconds: float | None = 60.0,
    home: Home | None = None,
) -> tuple[Actor, StepOutcome]:
    """One run to its end."""

    async def body() -> tuple[Actor, StepOutcome]:
        keeper = actor or Actor()
        service = AgentService(home or Home(), settings, tools)
        try:
            return keeper, await service.run(RunAgent(spec), StepJournal(keeper, NODE, 1), timeout_seconds)
        finally:
            await service.close()

    return asyncio.run(body())


def run_until_killed(
    spec: AgentSpec,
    settings: AgentSettings,
    tools: ToolBox | None,
    history: Sequence[Event],
    events_max: int,
    home: Home,
) -> tuple[list[Event], StepOutcome | None]:
    """Run until ``events_max`` events stand in the log, or to the end: then with the outcome."""

    async def body() -> tuple[list[Event], StepOutcome | None]:
        keeper = Actor(history, events_max)
        service = AgentService(home, settings, tools)
        task = asyncio.create_task(service.run(RunAgent(spec), StepJournal(keeper, NODE, 1), None))
        killed = asyncio.create_task(keeper.killed.wait())
        await asyncio.wait((task, killed), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        is_killed = keeper.killed.is_set()
        for each in (task, killed):
            each.cancel()
        await asyncio.gather(task, killed, return_exceptions=True)
        await service.close()
        return keeper.events, None if is_killed else task.result()

    return asyncio.run(body())


def output_of(outcome: StepOutcome) -> AgentOutput:
    assert outcome.error is None, outcome.error
    return msgspec.convert(outcome.output, AgentOutput)


def _start() -> commands.StartExecution:
    return commands.StartExecution(
        at=Micros(1),
        execution_id="exec-1",
        tenant="t",
        flow_id="f",
        flow_version="1",
        source="test",
        owner="host",
    )


def _plan() -> Plan:
    node = {"id": NODE, "kind": "agent", "prompt": "${inputs.prompt}"}
    return compile_flow(parse_flow({"heliograph": 1, "id": "f", "name": "F", "nodes": [node]}))
