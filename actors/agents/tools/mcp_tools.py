"""The MCP servers of one run: started together, ended together, their tools bound.

A host runs a bounded number of servers as processes. A run takes the places for all of its servers at once,
so that two runs can't each hold what the other waits for.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from mcp_types import Tool

from actors.agents.tools.bound_tool import Arguments, BoundTool
from actors.agents.tools.credentials import Credentials
from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.agents.tools.mcp_results import told
from actors.agents.tools.mcp_session import McpSession
from actors.egress import EgressGuard
from actors.step_journal import StepJournal
from runtime.agent_spec import McpServer

PLACE_SECONDS = 120.0
"""How long a run waits for its places: who holds some may be waiting for a child run that needs some."""

DESCRIPTION_CHARS_MAX = 4_000
INSTRUCTIONS_CHARS_MAX = 4_000


class ProcessPlaces:
    """``most``: MCP servers that one host runs as processes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = most
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, count: int) -> AsyncGenerator[None]:
        """Hold ``count`` places. Raises: ToolsUnavailable when there are never, or too long not, so many."""
        if count > self._most:
            message = f"the run needs {count} MCP servers as processes; a host runs at most {self._most}"
            raise ToolsUnavailable("McpUnavailable", message)
        async with self._changed:
            try:
                async with asyncio.timeout(PLACE_SECONDS):
                    await self._changed.wait_for(lambda: self._free >= count)
            except TimeoutError:
                message = f"all {self._most} places for MCP servers were taken for {PLACE_SECONDS:g} s"
                raise ToolsUnavailable("McpUnavailable", message) from None
            self._free -= count
        try:
            yield
        finally:
            # At once, whatever happens: the lock is only needed to wake others.
            self._free += count
            async with self._changed:
                self._changed.notify_all()


@asynccontextmanager
async def open_sessions(
    servers: Sequence[McpServer], credentials: Credentials, guard: EgressGuard, places: ProcessPlaces
) -> AsyncGenerator[list[McpSession]]:
    """A started session for each of ``servers``. Leaving ends them all.

    Raises: ToolsUnavailable naming the first server that can't be used.
    """
    async with places.take(sum(bool(server.command) for server in servers)):
        sessions = [McpSession(server, credentials, guard) for server in servers]
        starting = [asyncio.create_task(session.start()) for session in sessions]
        try:
            await asyncio.gather(*starting)
            yield sessions
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await _close(sessions)


async def _close(sessions: Sequence[McpSession]) -> None:
    closing = asyncio.gather(*(session.close() for session in sessions))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        # Passed on to every session, which then ends at once; waited for all the same.
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        raise


def bind_mcp(server: McpServer, session: McpSession) -> list[BoundTool]:
    """The server's tools that ``server.allow`` lets through, under the server's own names."""
    return [_bound(server, session, tool) for tool in session.tools]


def instructions_of(server: McpServer, session: McpSession) -> str:
    text = session.instructions[:INSTRUCTIONS_CHARS_MAX]
    return f"About the tools of {server.name}: {text}" if text else ""


def _bound(server: McpServer, session: McpSession, tool: Tool) -> BoundTool:
    async def call(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
        # The server checks its arguments itself: its word on them is the better one.
        key = journal.key(step)
        return told(await session.call(tool.name, dict(arguments), key, server.timeout_seconds))

    definition = ToolDefinition(
        name=tool.name,
        description=(tool.description or tool.title or "")[:DESCRIPTION_CHARS_MAX],
        parameters=tool.input_schema,
        timeout_seconds=server.timeout_seconds,
        result_bytes_max=server.result_bytes_max,
    )
    return BoundTool(definition=definition, call=call, server=server.name, own_name=tool.name)
