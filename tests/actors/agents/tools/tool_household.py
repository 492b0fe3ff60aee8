"""A home that really calls functions and dials loopback, two secrets, and MCP servers as processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from actors.agents.home import AgentSettings
from actors.agents.tools.interface import ToolResult
from actors.agents.tools.toolbox import HostToolBox, RunTools
from actors.egress import EgressGuard, EgressRules
from actors.egress_transport import vetted_client
from actors.step_call import StepCall, StepOutcome
from actors.step_context import StepContext
from actors.step_execution import AsyncSteps, execute
from actors.step_journal import StepJournal
from runtime.agent_spec import AgentSpec, McpServer
from runtime.blob_store import BlobStore
from runtime.errors import NotFound
from runtime.events import BlobRef, Json
from runtime.ids import NodeId
from runtime.state import ExecutionState
from tests.actors.agents.loop_household import NODE, Actor, Home

LOOPBACK = "127.0.0.0/8"
SECRETS = {"api": "s3cret-value-of-api", "other": "an0ther/s3cret+value"}
SERVER = str(Path(__file__).parents[3] / "mcp_servers" / "tools_server.py")
SECONDS_MAX = 60.0
"""A bound against hangs; nothing is expected to take this long."""

Result = TypeVar("Result")


class ToolHome(Home):
    def __init__(self, folder: Path, allow: str = LOOPBACK) -> None:
        super().__init__()
        self._blobs = BlobStore(str(folder / "blobs"))
        self._http = vetted_client(EgressGuard(EgressRules.parse(allow)))
        self.calls: list[StepCall] = []
        self.children: list[tuple[str, str, Json]] = []
        self.child_outcome = StepOutcome(output={"total": 3})

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    @property
    def http(self) -> httpx.AsyncClient:
        return self._http

    async def call_function(self, call: StepCall) -> StepOutcome:
        """As a worker would, on a thread of this process; the answer travels as bytes."""
        self.calls.append(call)
        outcome = await asyncio.to_thread(self._execute, call)
        return msgspec.json.decode(msgspec.json.encode(outcome), type=StepOutcome)

    def _execute(self, call: StepCall) -> StepOutcome:
        coroutines = AsyncSteps()
        try:
            return execute(
                call, StepContext(call, lambda: self._blobs), coroutines, lambda: self._blobs, 32 * 1024
            )
        finally:
            coroutines.close()

    async def run_child_flow(
        self, parent: ExecutionState, node_id: NodeId, child_id: str, flow_id: str, arguments: Json
    ) -> StepOutcome:
        self.children.append((child_id, flow_id, arguments))
        return self.child_outcome

    async def load(self, ref: BlobRef) -> Json:
        return msgspec.json.decode(self._blobs.get_bytes(ref))

    async def aclose(self) -> None:
        await self._http.aclose()


class Secrets:
    """Implements ``SecretSource``; remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def get(self, tenant: str, name: str) -> str:
        self.asked.append((tenant, name))
        if name not in SECRETS:
            raise NotFound(f"no secret {name}")
        return SECRETS[name]


class House:
    """A toolbox, the home under it, and the execution that its calls belong to."""

    def __init__(self, folder: Path, actor: Actor, settings: AgentSettings) -> None:
        self.home = ToolHome(folder, settings.tool_allow)
        self.box_settings = settings
        self.secrets = Secrets()
        self.box = HostToolBox(self.home, settings, self.secrets)
        self.actor = actor
        self.journal = StepJournal(actor, NODE, 1)

    @asynccontextmanager
    async def open(self, *tools: Any, **fields: Any) -> AsyncGenerator[RunTools]:
        async with self.box.open(AgentSpec(prompt="go", tools=tools, **fields), self.journal) as opened:
            yield opened

    async def call(self, opened: RunTools, name: str, step: str = "tool-1", **arguments: Any) -> ToolResult:
        return await opened.call(name, arguments, step, self.journal)


@asynccontextmanager
async def house(folder: Path, actor: Actor | None = None, **settings: Any) -> AsyncGenerator[House]:
    """Fails when a task is left behind."""
    before = asyncio.all_tasks()
    given: dict[str, Any] = {"tool_allow": LOOPBACK, "checkouts": str(folder / "checkouts"), **settings}
    opened = House(folder, actor or Actor(), AgentSettings(**given))
    try:
        yield opened
    finally:
        await opened.box.close()
        await opened.home.aclose()
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    assert left == []


def bounded(work: Coroutine[Any, Any, Result]) -> Result:
    async def body() -> Result:
        async with asyncio.timeout(SECONDS_MAX):
            return await work

    return asyncio.run(body())


def stdio(name: str = "local", *options: str, **fields: Any) -> McpServer:
    return McpServer(name=name, command=(sys.executable, SERVER, "stdio", *options), **fields)


@contextmanager
def http_server(*options: str) -> Generator[str]:
    """The URL of a server that speaks streamable HTTP."""
    process = subprocess.Popen([sys.executable, SERVER, "http", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def schema(properties: Mapping[str, Json], *required: str) -> dict[str, Json]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}
