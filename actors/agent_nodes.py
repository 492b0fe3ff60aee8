"""The agent nodes of one host: what the agent loop needs here, and the loop itself once there is such a node.

The loop's libraries take a second and 70 MB, so they are imported with the first agent node, on a thread.
"""

import asyncio
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import httpx

from actors.agents.home import AgentSettings
from actors.children import Children, child_id
from actors.egress_transport import VettedClientFactory
from actors.execution_actor import ExecutionActor
from actors.heap import settle
from actors.performer import Attempt, Performer
from actors.step_call import StepCall, StepOutcome
from actors.step_journal import StepJournal
from actors.turns import Turns
from runtime.blob_store import BlobStore
from runtime.events import BlobRef, Json
from runtime.ids import NodeId
from runtime.plan import CallTool, RunAgent
from runtime.state import ExecutionState, NodeState, item_prefix

if TYPE_CHECKING:
    from actors.agents.service import AgentService

SWITCH_SECONDS = 0.001
"""How long another thread of the host waits for the interpreter while the loop runs Python. With the usual
5 ms the commit's thread and Ray's, which carry on what the loop began, waited that long at every step beside
a loop that is busy with agents: the 99th percentile of text went from 110 ms to 58."""


class AgentNodes:
    """Implements ``agents.home.AgentHome``; lives on the host's loop."""

    def __init__(
        self, performer: Performer, children: Children, blobs: BlobStore, settings: AgentSettings, where: str
    ) -> None:
        self._performer = performer
        self._children = children
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._opening: asyncio.Task[AgentService] | None = None
        self._turns = Turns()
        self.blobs = blobs
        self.where = where

    async def run(self, actor: ExecutionActor, action: RunAgent | CallTool, attempt: Attempt) -> StepOutcome:
        """One attempt of an agent node, or of one item of a map. Raises: CancelledError only."""
        service = await asyncio.shield(self._service())
        prefix = "" if attempt.index is None else item_prefix(attempt.index)
        journal = StepJournal(actor, attempt.node_id, attempt.attempt, prefix, self._turns)
        return await service.run(action, journal, attempt.timeout_seconds)

    def prepare(self) -> None:
        """Import the loop now when a model is configured: the first run need not wait for it."""
        if self._settings.model:
            self._service()

    def _service(self) -> "asyncio.Task[AgentService]":
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._opening = asyncio.get_running_loop().create_task(self._open())
        return opening

    async def _open(self) -> "AgentService":
        module = await asyncio.to_thread(_import_loop)
        service: AgentService = module.AgentService(self, self._settings)
        return service

    async def close(self) -> None:
        opening = self._opening
        if opening is not None and not opening.done():
            opening.cancel()
        elif opening is not None and not opening.cancelled() and opening.exception() is None:
            await opening.result().close()
        if self._http is not None:
            await self._http.aclose()

    # --- what the loop needs --------------------------------------------------------------------------

    @property
    def http(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = VettedClientFactory(self._settings.tool_allow)()
        return self._http

    async def call_function(self, call: StepCall) -> StepOutcome:
        return await self._performer.call(call)

    async def run_child_flow(
        self, parent: ExecutionState, node_id: NodeId, child_id: str, flow_id: str, arguments: Json
    ) -> StepOutcome:
        node = NodeState(status="waiting", child_id=child_id, child_flow=flow_id, child_input=arguments)
        return await self._children.run(parent, node_id, node)

    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str:
        return child_id(parent.execution_id, node_id, attempt)

    async def load(self, ref: BlobRef) -> Json:
        return await self._performer.load(ref)

    async def store_if_large(self, value: Json) -> BlobRef | None:
        return await self._performer.store_if_large(value)


def _import_loop() -> ModuleType:
    module = import_module("actors.agents.service")
    settle()
    sys.setswitchinterval(SWITCH_SECONDS)
    return module
