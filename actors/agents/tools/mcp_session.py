"""A session with one MCP server, as long as one run of a node.

    starting --> open --close--> ending --> gone
        |          |
        +----------+--- the server dies, the transport fails ---> lost: every call says so

The SDK's contexts belong to the task that entered them, so each session lives in a task of its own; calls
come from any task. Nothing of it outlasts ``close``: the session's task is given ``CLOSE_SECONDS``, then
cancelled, and its process group with it.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import cast

from mcp import Client, MCPError
from mcp.client import Transport
from mcp.client.streamable_http import streamable_http_client
from mcp_types import REQUEST_TIMEOUT, CallToolResult, RequestParamsMeta, Tool
from pydantic import ValidationError

from actors.agents.tools.bound_tool import ToolFailed
from actors.agents.tools.credentials import Credentials
from actors.agents.tools.interface import ToolsUnavailable
from actors.agents.tools.mcp_http import ANSWER_BYTES_MAX, VettedMcpTransport, mcp_client
from actors.agents.tools.mcp_stdio import StdioServer
from actors.egress import EgressGuard, EgressRefused
from runtime.agent_spec import McpServer
from runtime.events import Json

START_SECONDS = 30.0
"""For starting or reaching the server, the handshake and the list of its tools."""

CLOSE_SECONDS = 8.0
TOOLS_MAX = 512
PAGES_MAX = 32
REASON_CHARS_MAX = 1_000
KEY_META = "heliograph/idempotency-key"
"""Where in a call's ``_meta`` a server finds the stable key of the call's step."""


class McpSession:
    """``start`` once, then calls side by side, then ``close``."""

    def __init__(self, spec: McpServer, credentials: Credentials, guard: EgressGuard) -> None:
        self._spec = spec
        self._credentials = credentials
        self._guard = guard
        self._stdio: StdioServer | None = None
        self._http: VettedMcpTransport | None = None
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[Client] | None = None
        self._task: asyncio.Task[None] | None = None
        self.tools: tuple[Tool, ...] = ()
        self.instructions = ""

    async def start(self) -> None:
        """Connect and list the server's tools.

        Raises: ToolsUnavailable of kind McpUnavailable (also SecretNotFound) naming the server.
        """
        opened = self._opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(opened), name=f"mcp {self._spec.name}")
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait((opened, self._task), return_when=asyncio.FIRST_COMPLETED)
                if not opened.done():
                    await self._task  # it ended before it opened, so this raises
                await self._list(opened.result())
        except BaseException as error:
            await self.close()
            if isinstance(error, asyncio.CancelledError | ToolsUnavailable):
                raise
            raise self._unavailable(error) from None

    async def call(self, name: str, arguments: dict[str, Json], key: str, seconds: float) -> CallToolResult:
        """Raises: ToolFailed with what is to be told to the model; TimeoutError."""
        if self._opened is None or self._task is None or self._task.done():
            raise ToolFailed(f"MCP server {self._spec.name} is gone{self._last_words()}")
        client = self._opened.result()
        # Together with the session's end: a call on a lost connection must not wait for its time-out.
        calling = asyncio.create_task(
            client.call_tool(
                name, arguments, read_timeout_seconds=seconds, meta=cast(RequestParamsMeta, {KEY_META: key})
            )
        )
        try:
            await asyncio.wait((calling, self._task), return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise TimeoutError from None
            raise ToolFailed(f"MCP server {self._spec.name}: {error}"[:REASON_CHARS_MAX]) from None
        except (ValidationError, RuntimeError) as error:
            raise ToolFailed(
                f"MCP server {self._spec.name} gave an invalid answer: {error}"[:REASON_CHARS_MAX]
            ) from None
        finally:
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
        raise ToolFailed(f"MCP server {self._spec.name} is gone{self._last_words()}")

    async def close(self) -> None:
        """End the session and its process; it is gone when this returns, cancelled or not."""
        self._closing.set()
        if self._task is None:
            return
        try:
            await asyncio.wait((self._task,), timeout=CLOSE_SECONDS)
        finally:
            self._task.cancel()
            # One that is cancelled kills its process at once: no wait that could be bounded.
            await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self, opened: "asyncio.Future[Client]") -> None:
        async with AsyncExitStack() as stack:
            client = Client(await self._transport(stack), cache=None, read_timeout_seconds=START_SECONDS)
            await stack.enter_async_context(client)
            self.instructions = (client.instructions or "").strip()
            opened.set_result(client)
            await self._closing.wait()

    async def _transport(self, stack: AsyncExitStack) -> Transport:
        spec, credentials = self._spec, self._credentials
        if spec.command:
            environment = {**await credentials.fill_all(spec.env), **await credentials.environment()}
            self._stdio = StdioServer(spec.command, environment)
            return self._stdio.connect()
        await self._guard.check_url(spec.url)  # the transport checks too, but an error there is hard to tell
        self._http = VettedMcpTransport(self._guard)
        http = mcp_client(self._http, await credentials.fill_all(spec.headers))
        await stack.enter_async_context(http)
        return streamable_http_client(spec.url, http_client=http, max_sse_event_size=ANSWER_BYTES_MAX)

    async def _list(self, client: Client) -> None:
        found: list[Tool] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) > TOOLS_MAX:
                break
        allowed = self._spec.allow
        self.tools = tuple(tool for tool in found if not allowed or tool.name in allowed)[:TOOLS_MAX]

    def _unavailable(self, error: BaseException) -> ToolsUnavailable:
        reason = self._credentials.redactor.text(f"{_reason(error)}{self._last_words()}")
        message = f"MCP server {self._spec.name} can't be used: {reason}"[:REASON_CHARS_MAX]
        return ToolsUnavailable("McpUnavailable", message)

    def _last_words(self) -> str:
        if self._http is not None and self._http.failure:
            return f" (HTTP {self._http.failure})"
        words = "" if self._stdio is None else self._stdio.last_words
        return f"; it said: {words[-500:]}" if words else ""


def _reason(error: BaseException) -> str:
    """The first cause in plain words: the SDK's task groups wrap what happened, often more than once."""
    cause = error
    while isinstance(cause, BaseExceptionGroup):
        cause = cast("tuple[BaseException, ...]", cause.exceptions)[0]
    match cause:
        case TimeoutError():
            return f"it wasn't ready after {START_SECONDS:g} s"
        case FileNotFoundError():
            return f"there is no program called {cause.filename}"
        case EgressRefused():
            return cause.reason
        case other:
            return str(other) or type(other).__name__
