"""An MCP server as a process of the host: the SDK's transport contract with every size and wait bounded.

    started --stdin closed--> ending --grace--> SIGTERM to its group --grace--> SIGKILL to its group --> gone

The SDK's own stdio transport keeps a line of any length in memory and lets go of a process when its task is
cancelled natively; here a line has a maximum, and a cancelled task kills the whole process group at once. The
last of what the server writes to stderr is kept, to explain why it failed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from pydantic import ValidationError

LINE_BYTES_MAX = 16 * 1024 * 1024
"""One message. A server that sends a longer one is let go."""

STDERR_BYTES_MAX = 4 * 1024
END_SECONDS = 2.0
"""How long a server may take after its stdin was closed, and again after SIGTERM."""

_READ_BYTES = 64 * 1024

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class StdioServer:
    """One server to be started. ``environment`` comes on top of a minimal one (PATH, HOME and the like)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._stderr = bytearray()

    @property
    def last_words(self) -> str:
        """The end of what the server wrote to stderr."""
        return self._stderr.decode(errors="replace").strip()

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Streams]:
        """Start the process; on leaving it is gone, with whatever it started in its process group.

        Raises: OSError or ValueError when it can't be started.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**get_default_environment(), **self._environment},
            start_new_session=True,
            limit=_READ_BYTES,
        )
        from_server, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        to_send, for_server = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            asyncio.create_task(self._keep_stderr(process)),
            asyncio.create_task(_receive(process, from_server)),
            asyncio.create_task(_send(process, for_server, from_server)),
        ]
        try:
            yield received, to_send
        finally:
            try:
                await _end(process)
            finally:
                # When that was cancelled: no politeness, and nothing to wait for.
                _kill_group(process, signal.SIGKILL)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for stream in (from_server, received, to_send, for_server):
                    stream.close()
                _close_pipes(process)

    async def _keep_stderr(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is not None:
            while chunk := await process.stderr.read(_READ_BYTES):
                self._stderr += chunk
                del self._stderr[:-STDERR_BYTES_MAX]


async def _receive(
    process: asyncio.subprocess.Process, out: MemoryObjectSendStream[SessionMessage | Exception]
) -> None:
    """Messages of the server's stdout, one for each line. Closes ``out`` at the end: so the session knows."""
    if process.stdout is None:
        raise RuntimeError("the server's process was started without a pipe for its stdout")
    line = bytearray()
    with out, suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        while chunk := await process.stdout.read(_READ_BYTES):
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                line += end
                if line.strip():
                    await out.send(_message(bytes(line)))
                line.clear()
            line += rest
            if len(line) > LINE_BYTES_MAX:
                await out.send(ValueError(f"a message is longer than {LINE_BYTES_MAX} bytes"))
                return


def _message(line: bytes) -> SessionMessage | Exception:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValidationError:
        # Without the line: it may be anything, a secret included.
        return ValueError("a line of the server's stdout is no JSON-RPC message")


async def _send(
    process: asyncio.subprocess.Process,
    messages: MemoryObjectReceiveStream[SessionMessage],
    answers: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    if process.stdin is None:
        raise RuntimeError("the server's process was started without a pipe for its stdin")
    try:
        async for message in messages:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
    except (OSError, anyio.ClosedResourceError):
        answers.close()  # or a request would wait for its time-out


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    for politeness in (signal.SIGTERM, signal.SIGKILL, None):
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
                return
        if politeness is not None:
            _kill_group(process, politeness)


def _kill_group(process: asyncio.subprocess.Process, how: signal.Signals) -> None:
    # The group may outlive the process; its number is not given away while it has members. Without any,
    # and the process waited for, there is nothing to be found by it.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, how)


def _close_pipes(process: asyncio.subprocess.Process) -> None:
    """A descendant that left the group may hold a pipe open; the transport must not wait for it."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
