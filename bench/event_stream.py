"""A client of server-sent events for load: chunked bodies, frames, nothing else.

Each stream has a connection of its own, as in a browser. A frame is handed over as soon as its blank line
has arrived; comments and `retry` lines are no frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

from bench.http_client import ConnectionEnded
from bench.load_session import Session

OPEN_SECONDS_MAX = 60.0


class Frame(NamedTuple):
    event_id: int
    data: bytes


OnFrame = Callable[[Frame], None]


class EventStream(asyncio.Protocol):
    """Opened by ``open_stream``; ``ended`` waits for the proper end of the body."""

    def __init__(self, request: bytes, on_frame: OnFrame) -> None:
        self._request = request
        self._on_frame = on_frame
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._text = b""
        self._has_head = False
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self._end: asyncio.Future[None] = loop.create_future()

    async def ended(self) -> None:
        """Raises: ConnectionEnded when the connection broke before the body's end."""
        await self._end

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc or "closed by the server"))

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._has_head and not self._read_head():
            return
        while True:
            line_ends = self._buffer.find(b"\r\n")
            if line_ends < 0:
                return
            size = int(self._buffer[:line_ends].split(b";")[0], 16)
            begins = line_ends + 2
            if len(self._buffer) < begins + size + 2:
                return
            if size == 0:
                if not self._end.done():
                    self._end.set_result(None)
                self.close()
                return
            self._text += self._buffer[begins : begins + size]
            self._buffer = self._buffer[begins + size + 2 :]
            self._read_frames()

    def _read_head(self) -> bool:
        head_ends = self._buffer.find(b"\r\n\r\n")
        if head_ends < 0:
            return False
        head = self._buffer[:head_ends].lower()
        if not head.startswith(b"http/1.1 200") or b"transfer-encoding: chunked" not in head:
            self._fail(f"not a stream: {self._buffer[: head_ends + 200]!r}")
            return False
        self._buffer = self._buffer[head_ends + 4 :]
        self._has_head = True
        self.opened.set_result(None)
        return True

    def _read_frames(self) -> None:
        while True:
            ends = self._text.find(b"\n\n")
            if ends < 0:
                return
            text, self._text = self._text[:ends], self._text[ends + 2 :]
            event_id, data = 0, b""
            for line in text.split(b"\n"):
                if line.startswith(b"data: "):
                    data = line[6:]
                elif line.startswith(b"id: "):
                    event_id = int(line[4:])
            if data:
                self._on_frame(Frame(event_id, data))

    def _fail(self, reason: str) -> None:
        for future in (self.opened, self._end):
            if not future.done():
                future.set_exception(ConnectionEnded(reason))
                future.exception()  # whoever waits for the other of the two learns it
        self.close()


async def open_stream(session: Session, execution_id: str, on_frame: OnFrame, query: str = "") -> EventStream:
    """The execution's stream, once the server has answered 200. Raises: OSError, ConnectionEnded."""
    return await follow(session, f"/v1/executions/{execution_id}/stream{query}", on_frame)


async def follow(session: Session, path: str, on_frame: OnFrame) -> EventStream:
    """Any stream, once the server has answered 200. Raises: OSError, ConnectionEnded."""
    request = session.request("GET", path, b"", "Accept: text/event-stream")
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: EventStream(request, on_frame), session.host, session.port
    )
    async with asyncio.timeout(OPEN_SECONDS_MAX):
        await stream.opened
    return stream
