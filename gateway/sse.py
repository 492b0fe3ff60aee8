"""Event streams over HTTP (gateway rule G8), on sse-starlette.

The library brings keep-alives, the watch for a client that leaves, the time-out of a blocked send and the
end of all streams when uvicorn stops. Here: the headers, the `retry` line, the places of G5, and a clean
end of the response whenever a stream is ended from this side, so that a client resumes instead of failing.

A stream's state is its response: open from the first byte until the last chunk, the client's leaving, or
the send time-out. Its place is given back exactly once, whichever comes first. A run never depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial

import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from gateway.call import Call
from runtime.errors import DomainError

log = structlog.get_logger("gateway.sse")

RETRY = b"retry: 3000\n\n"

CHUNK_BYTES = 64 * 1024
"""Frames behind this much that a reader has not taken wait where they come from."""

_HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "Content-Type": "text/event-stream; charset=utf-8",
}


def last_event_id(call: Call) -> int:
    """What the client saw last, from the header, else the query; 0 when absent or not a number."""
    for text in (call.header(b"last-event-id"), call.query("last_event_id") or ""):
        if text.isascii() and text.isdigit() and len(text) <= 19:
            return int(text)
    return 0


def frame(event_id: int, data: bytes, event: str = "") -> bytes:
    """One event; ``data`` is one line of JSON. Without ``event`` there is no such line."""
    name = b"event: %s\n" % event.encode() if event else b""
    return b"id: %d\n%sdata: %s\n\n" % (event_id, name, data)


class EventStream(EventSourceResponse):
    """A response that sends ``frames`` as they come, and holds one of the caller's stream places.

    ``keep_alive``: the comment that is sent in silence. ``seconds_max``: when the body ends properly
    whatever still comes; None: never.

    Raises: Problem too_many_streams or unavailable, before any byte is sent.
    """

    def __init__(
        self,
        call: Call,
        frames: AsyncIterator[bytes],
        headers: Mapping[str, str] | None = None,
        keep_alive: str = "keep-alive",
        seconds_max: float | None = None,
    ) -> None:
        settings = call.gateway.settings
        super().__init__(
            chunks(frames, seconds_max),
            headers={**_HEADERS, **(headers or {})},
            ping=settings.keep_alive_seconds,
            ping_message_factory=partial(ServerSentEvent, comment=keep_alive, sep="\n"),
            send_timeout=settings.send_timeout_seconds,
            sep="\n",
        )
        self._call = call
        # Last, so that nothing can fail between taking the place and returning the response.
        call.gateway.limits.open_stream(call.caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False
        gone = False
        cut = False

        async def watched_send(message: Message) -> None:
            nonlocal ended
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = True

        async def watched_receive() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            await super().__call__(scope, watched_receive, watched_send)
        except SendTimeoutError:
            cut = gone = True
            log.info("stream_cut", reason="the reader takes nothing", **_fields(self._call))
        except DomainError as error:
            cut = True
            log.info("stream_cut", reason=str(error) or type(error).__name__, **_fields(self._call))
        finally:
            self._call.gateway.limits.close_stream(self._call.caller, cut=cut)
        if not ended and not gone:
            # The server stops, or the reader fell behind: end the body properly; the client may resume.
            with contextlib.suppress(SendTimeoutError):
                await self._send_with_timeout(
                    send, {"type": "http.response.body", "body": b"", "more_body": False}
                )


async def chunks(frames: AsyncIterator[bytes], seconds_max: float | None = None) -> AsyncIterator[bytes]:
    """The `retry` line, then whatever is ready at a time as one chunk: a send costs more than its frames.

    Ends with ``frames``, or after ``seconds_max``.
    """
    waiting = bytearray(RETRY)
    news = asyncio.Event()
    room = asyncio.Event()
    is_over = False

    def end() -> None:
        nonlocal is_over
        is_over = True
        news.set()

    async def gather() -> None:
        try:
            async for each in frames:
                waiting.extend(each)
                news.set()
                if len(waiting) >= CHUNK_BYTES:
                    room.clear()
                    await room.wait()
        finally:
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    def gathered(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # raised below, unless the client left first
        news.set()

    task = asyncio.create_task(gather())
    task.add_done_callback(gathered)
    timer = None if seconds_max is None else asyncio.get_running_loop().call_later(seconds_max, end)
    try:
        while True:
            if waiting:
                chunk = bytes(waiting)
                waiting.clear()
                room.set()
                yield chunk
            elif task.done():
                await task
                return
            elif is_over:
                return
            else:
                news.clear()
                await news.wait()
    finally:
        if timer is not None:
            timer.cancel()
        task.cancel()
        await asyncio.wait((task,))


def _fields(call: Call) -> dict[str, str]:
    return {"request_id": call.correlation_id, "execution_id": call.execution_id}
