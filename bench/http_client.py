"""A small HTTP/1.1 client for load: one keep-alive connection, one request at a time.

It shares the server's cores, so it does only what honesty needs: it reads the status line, the framing
headers and the whole body of every answer. About 20 us of CPU a request.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

ANSWER_SECONDS_MAX = 60.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024


class ConnectionEnded(Exception):
    """The server closed the connection, or never answered; the request's outcome is unknown."""


class Answer(NamedTuple):
    status: int
    body: bytes


def request(method: str, path: str, host: str, key: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"X-API-Key: {key}", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class Connection(asyncio.Protocol):
    """Opened by ``connect``; ``ask`` sends one request and returns its answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._body_from = 0
        self._answer_ends = 0
        self._status = 0
        self._waiting: asyncio.Future[Answer] | None = None

    async def ask(self, data: bytes) -> Answer:
        """Raises: ConnectionEnded."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionEnded("closed")
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._transport.write(data)
        guard = loop.call_later(ANSWER_SECONDS_MAX, self._fail, "no answer in time")
        try:
            return await self._waiting
        finally:
            guard.cancel()
            self._waiting = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc or "closed by the server"))

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        if not self._answer_ends:
            head_ends = buffer.find(b"\r\n\r\n")
            if head_ends < 0:
                return
            self._body_from = head_ends + 4
            length = _content_length(buffer[: head_ends + 2])
            if buffer[:9] != b"HTTP/1.1 " or length is None or length > ANSWER_BYTES_MAX:
                self._fail("an answer that this client does not understand")
                return
            self._status = int(buffer[9:12])
            self._answer_ends = self._body_from + length
        if len(buffer) < self._answer_ends:
            return
        answer = Answer(self._status, buffer[self._body_from : self._answer_ends])
        self._buffer = buffer[self._answer_ends :]
        self._answer_ends = 0
        if self._waiting is None or self._waiting.done():
            self._fail("an answer nobody asked for")
        else:
            self._waiting.set_result(answer)

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionEnded(reason))
        self.close()


def _content_length(head: bytes) -> int | None:
    lowered = head.lower()
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0:
        return None
    return int(lowered[at + 17 : lowered.index(b"\r\n", at + 2)])


async def connect(host: str, port: int) -> Connection:
    """Raises: OSError."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection
