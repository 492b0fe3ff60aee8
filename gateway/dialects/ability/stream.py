"""Recorded events as the ability contract's stream, in its two framings (its section 3.2).

Framing A is what the seed's JavaScript client reads: it takes each network read for one frame, so a frame is
one write, and writes keep their distance. A standard parser sees nothing in it, hence framing B, standard
server-sent events. A frame's number is its event's position in the log, in both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
from starlette.types import Message, Receive, Scope, Send

from gateway.dialects.ability.wire import EventType, encode, failure_reason, shown_results
from gateway.sse import EventStream, frame
from runtime import events
from runtime.event_log import Recorded
from runtime.events import BlobRef, Event, Json
from runtime.ids import NodeId, Position
from runtime.plan import Step

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.context import Executions
    from runtime.blob_store import BlobStore

PLAIN_MESSAGE_BYTES_MAX = 15 * 1024
"""Of a `node_output` in framing A: what one network read is sure to hold, with room for the chunk's frame."""

PLAIN_INPUT_BYTES_MAX = 4 * 1024
"""Of its `input` (debug), once the whole is too long."""

PLAIN_GAP_SECONDS = 0.020
"""Least distance between two writes of framing A. The contract asks for 10 ms, at which the seed's client
loses nothing on an idle machine; on a busy one that client may sleep for longer."""

PLAIN_KEEP_ALIVE = b"\n"


class AbilityFrame(NamedTuple):
    """``message`` as it goes out, before any cut. ``seq``: the event's position in the log."""

    seq: int
    event_type: EventType
    message: dict[str, Any]


class AbilityEncoder:
    """From events to frames; works with no request behind it. Feed it the whole history, in order."""

    def __init__(
        self, request_id: str, steps: Mapping[NodeId, Step], blobs: BlobStore, *, debug: bool
    ) -> None:
        self._request_id = request_id
        self._steps = steps
        self._blobs = blobs
        self._debug = debug
        self._began: dict[str, tuple[int, int]] = {}
        self._params: Json = None
        self._params_ref: BlobRef | None = None
        self._outputs: dict[str, Json | BlobRef] = {}

    async def encode(self, position: int, event: Event) -> AbilityFrame | None:
        """The event's frame, if it has one. Payloads are only read for events that do."""
        match event:
            case events.Queued():
                if self._debug:
                    self._params, self._params_ref = event.input, event.input_ref
            case events.NodeStarted():
                self._began[event.node_id] = (event.at, event.attempt)
            case events.NodeCompleted():
                return AbilityFrame(position, "node_output", await self._node_output(position, event))
            case events.Completed():
                results = shown_results(await self._json(event.output, event.output_ref))
                message = {"request_id": self._request_id, "status": "COMPLETED", "results": results}
                return AbilityFrame(position, "final_response", message)
            case events.Failed():
                reason = failure_reason(
                    node_id=event.node_id, message=event.error.message or event.error.type, is_timeout=False
                )
                code = "NODE_FAILED" if event.node_id else "INTERNAL_ERROR"
                return self._error(position, "FAILED", code, reason, event.node_id or None)
            case events.TimedOut():
                message = f"Execution timed out after {event.timeout_seconds:g} s"
                reason = failure_reason(node_id="", message=message, is_timeout=True)
                return self._error(position, "FAILED", "TIMEOUT", reason, None)
            case events.CancellationRequested():
                # From here on cancelled is the only possible end, and every view shows it at once (G7).
                return self._error(position, "CANCELED", "CANCELED", None, None)
            case _:
                pass
        return None

    def _error(
        self, position: int, status: str, code: str, reason: str | None, node_id: str | None
    ) -> AbilityFrame:
        message = {
            "request_id": self._request_id,
            "status": status,
            "code": code,
            "failure_reason": reason,
            "node_id": node_id,
        }
        return AbilityFrame(position, "error", message)

    async def _node_output(self, position: int, event: events.NodeCompleted) -> dict[str, Any]:
        step = self._steps.get(NodeId(event.node_id))
        message: dict[str, Any] = {
            "request_id": self._request_id,
            "seq": position,
            "node_id": event.node_id,
            "node_name": step.name if step else event.node_id,
            "output": msgspec.Raw(await self._json(event.output, event.output_ref)),
        }
        if self._debug:
            began, attempt = self._began.get(event.node_id, (event.at, event.attempt))
            message["input"] = await self._input(step)
            message["duration_ms"] = (event.at - began) // 1000
            message["attempt"] = attempt
            self._outputs[event.node_id] = event.output_ref or event.output
        return message

    async def _input(self, step: Step | None) -> dict[str, Any]:
        """What the node could see: the params, and the outputs of the nodes it reads."""
        nodes: dict[str, Any] = {}
        for node_id in step.reads if step else ():
            value = self._outputs.get(node_id)
            ref = value if isinstance(value, BlobRef) else None
            nodes[node_id] = msgspec.Raw(await self._json(value, ref))
        return {"inputs": msgspec.Raw(await self._json(self._params, self._params_ref)), "nodes": nodes}

    async def _json(self, value: Json, ref: BlobRef | None) -> bytes:
        if ref is None:
            return encode(value)
        data = await asyncio.to_thread(self._blobs.get_bytes, ref)
        # A message is one line, and a blob is whatever JSON its writer wrote.
        return encode(msgspec.json.decode(data)) if b"\n" in data else data


async def recorded_events(
    executions: Executions, request_id: str, *, is_cut: bool
) -> AsyncIterator[Recorded]:
    """The run's events from the first on.

    ``is_cut``: a reader too far behind the run is cut off, as it can resume (G8). Framing A can't resume, and
    its pace alone can put it behind; so it goes back to the log instead, where what it missed stands.
    """
    # Loaded with Ray, in the background, long before a stream can be opened.
    from actors.client import LaggedBehind

    after = Position(0)
    while True:
        try:
            async with aclosing(cast("Any", executions.follow(request_id, after))) as source:
                async for item in source:
                    if isinstance(item, Recorded):
                        after = item.position
                        yield item
            return
        except LaggedBehind:
            if is_cut:
                raise


async def ability_frames(
    recorded: AsyncIterator[Recorded], encoder: AbilityEncoder
) -> AsyncIterator[AbilityFrame]:
    """The frames of one run, from its first event to the one that shows its end."""
    async with aclosing(cast("Any", recorded)) as source:
        async for item in source:
            made = await encoder.encode(item.position, item.event())
            if made is not None:
                yield made
                if made.event_type != "node_output":
                    return


# --- framing B: standard server-sent events --------------------------------------------------------------


async def standard_frames(frames: AsyncIterator[AbilityFrame], after: int) -> AsyncIterator[bytes]:
    """``after``: number of the last frame the client saw."""
    async with aclosing(cast("Any", frames)) as source:
        async for made in source:
            if made.seq > after:
                yield standard_frame(made)


def standard_frame(made: AbilityFrame) -> bytes:
    return frame(made.seq, encode(made.message), made.event_type)


# --- framing A: the seed's plain frames -------------------------------------------------------------------


async def plain_frames(frames: AsyncIterator[AbilityFrame]) -> AsyncIterator[bytes]:
    async with aclosing(cast("Any", frames)) as source:
        async for made in source:
            yield plain_frame(made)


def plain_frame(made: AbilityFrame) -> bytes:
    """``{event_type}:\\n{message}\\n\\n``; a long `node_output` is cut to a preview."""
    message = encode(made.message)
    if made.event_type == "node_output" and len(message) > PLAIN_MESSAGE_BYTES_MAX:
        message = _cut(made.message)
    return b"%s:\n%s\n\n" % (made.event_type.encode(), message)


def _cut(message: Mapping[str, Any]) -> bytes:
    """The message within its bound: `output` (and a long `input`) as the beginning of its text."""
    short: dict[str, Any] = {**message, "truncated": True}
    if "input" in message:
        text = encode(message["input"])
        if len(text) > PLAIN_INPUT_BYTES_MAX:
            short["input"] = preview(text, PLAIN_INPUT_BYTES_MAX)
    room = PLAIN_MESSAGE_BYTES_MAX - len(encode({**short, "output": ""}))
    output = encode(message["output"])
    if len(output) - 2 > room:  # the two quotes of the empty text are counted already
        short["output"] = preview(output, room + 2)
    return encode(short)


def preview(text: bytes, bytes_max: int) -> str:
    """The beginning of a JSON value: of the text itself if it is one, else of its JSON.

    Encoded as JSON again it takes at most ``bytes_max`` bytes.
    """
    whole = msgspec.json.decode(text) if text[:1] == b'"' else text.decode()
    kept = whole[:bytes_max]
    while len(encoded := encode(kept)) > bytes_max:
        # Escapes and other scripts take more bytes than characters; each round leaves at least one out.
        kept = kept[: min(len(kept) - 1, len(kept) * bytes_max // len(encoded))]
    return kept


class PlainStream(EventStream):
    """Framing A on the wire: one write a frame, `PLAIN_GAP_SECONDS` between writes, no `retry` line.

    Keep-alives are a lone line feed: a comment would look like an event to the seed's client.
    """

    def __init__(
        self, call: Call, frames: AsyncIterator[bytes], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(call, frames, headers)
        self.body_iterator = frames
        self.ping_message_factory = cast("Any", lambda: PLAIN_KEEP_ALIVE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        turn = asyncio.Lock()
        free_at = 0.0

        async def paced(message: Message) -> None:
            nonlocal free_at
            if message["type"] != "http.response.body" or not message.get("body"):
                await send(message)
                return
            async with turn:
                pause = free_at - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                await send(message)
                free_at = time.monotonic() + PLAIN_GAP_SECONDS

        await super().__call__(scope, receive, paced)
