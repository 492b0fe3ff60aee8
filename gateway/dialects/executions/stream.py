"""Recorded events as the executions contract's stream (its section 3.4).

The encoder folds the whole history, since a frame shows counts that no single event holds, and passes on
what the client hasn't seen. One recorded event makes at most two frames, so the frames of the event at
position p are numbered 2p and 2p + 1: every frame has a number of its own to resume after, rising with the
log and the same on every replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway.context import Delta
from gateway.dialects.executions.wire import STATUSES, iso, shown_error, shown_output
from gateway.sse import frame
from runtime import chunks, events
from runtime.event_log import Recorded
from runtime.events import BlobRef, Event, Json
from runtime.evolution import begin, evolve
from runtime.ids import NodeId
from runtime.plan import Step
from runtime.state import ExecutionState

if TYPE_CHECKING:
    from runtime.blob_store import BlobStore

OUTPUT_BYTES_MAX = 256 * 1024
"""A larger output appears as its size; the status shows the whole."""

DELTA_TEXT_MAX = 4 * 1024 * 1024
"""Characters of one node's deltas that are kept to check them against its output."""

_encode = msgspec.json.Encoder().encode

_ENDS = (events.CancellationRequested, *events.TERMINAL_EVENTS)


async def frames(
    execution_id: str,
    recorded: AsyncIterator[Recorded | Delta],
    steps: Mapping[NodeId, Step],
    blobs: BlobStore,
    after: int,
) -> AsyncIterator[bytes]:
    """The stream of one execution, from its first event on; ``after`` was the last frame seen.

    Ends with the frame of the execution's end, which for a cancellation is its request.
    """
    encoder = StreamEncoder(execution_id, steps, blobs)
    async with aclosing(cast("Any", recorded)) as source:
        async for item in source:
            if not isinstance(item, Recorded):
                fresh = encoder.delta(item)
                if fresh is not None and encoder.last_id >= after:
                    yield fresh
                continue
            if item.position * 2 + 1 <= after:
                encoder.skip(item.event())
                continue
            event = item.event()
            missed = encoder.missed_delta(event)
            out = [made for number, made in await encoder.encode(item.position, event) if number > after]
            if missed is not None:
                out.insert(0, missed)
            if out:
                yield b"".join(out)
            if isinstance(event, _ENDS):
                return


class StreamEncoder:
    """From events to frames; works with no request behind it."""

    def __init__(self, execution_id: str, steps: Mapping[NodeId, Step], blobs: BlobStore) -> None:
        self.last_id = 0
        self._execution_id = execution_id
        self._steps = steps
        self._blobs = blobs
        self._state: ExecutionState | None = None
        self._attempt_began: dict[str, int] = {}
        self._deltas: dict[str, tuple[str, str]] = {}
        """By node: the step that is producing text, and its text as it was sent."""

    def skip(self, event: Event) -> ExecutionState:
        """Fold an event without a frame."""
        if self._state is None:
            self._state = begin(cast("events.Queued", event))
        else:
            self._state = evolve(self._state, event)
        if isinstance(event, events.NodeStarted):
            self._attempt_began[event.node_id] = event.at
            self._deltas.pop(event.node_id, None)
        return self._state

    async def encode(self, position: int, event: Event) -> list[tuple[int, bytes]]:
        """The event's frames with their numbers, in order."""
        state = self.skip(event)
        numbered: list[tuple[int, bytes]] = []
        for offset, fields in enumerate(await self._frames_of(event, state)):
            number = position * 2 + offset
            numbered.append((number, self._frame(number, fields, event.at)))
        if numbered:
            self.last_id = numbered[-1][0]
        return numbered

    def delta(self, delta: Delta) -> bytes | None:
        """The part that is new; None when there is none, or when it doesn't continue what was sent.

        Deltas aren't in the log: they carry the number of the last frame, so a resume repeats none.
        """
        node_id = delta.node_id
        step, sent = self._deltas.get(node_id, ("", ""))
        if step != delta.step:
            sent = ""
        known = len(sent) - delta.offset
        if known < 0 or sent[delta.offset :] != delta.text[:known] or len(delta.text) <= known:
            return None
        self._deltas[node_id] = (delta.step, (sent + delta.text[known:])[:DELTA_TEXT_MAX])
        return self._delta_frame(node_id, delta.text[known:], self._state.updated_at if self._state else 0)

    def missed_delta(self, event: Event) -> bytes | None:
        """What the live feed dropped of a finished node's text: joined deltas equal the output."""
        if not isinstance(event, events.NodeCompleted) or event.node_id not in self._deltas:
            return None
        _, seen = self._deltas.pop(event.node_id)
        if not isinstance(event.output, str) or not event.output.startswith(seen) or event.output == seen:
            return None
        return self._delta_frame(event.node_id, event.output[len(seen) :], event.at)

    def _delta_frame(self, node_id: str, text: str, at: int) -> bytes:
        return self._frame(self.last_id, {"type": "output_delta", "node_id": node_id, "delta": text}, at)

    def _frame(self, number: int, fields: Mapping[str, Any], at: int) -> bytes:
        body = {
            "type": fields["type"],
            "execution_id": self._execution_id,
            "event_id": number,
            "timestamp": iso(at),
            **fields,
        }
        return frame(number, _encode(body))

    async def _frames_of(self, event: Event, state: ExecutionState) -> list[dict[str, Any]]:
        match event:
            case events.Started():
                return [{"type": "execution_started", "total_nodes": max(1, state.total_nodes)}]
            case events.NodeStarted():
                step = self._steps.get(NodeId(event.node_id))
                return [
                    {
                        "type": "node_started",
                        "node_id": event.node_id,
                        "node_name": step.name if step else event.node_id,
                        "node_type": step.kind if step else "",
                        "attempt": event.attempt,
                    }
                ]
            case events.NodeCompleted():
                began = self._attempt_began.get(event.node_id, event.at)
                output = await self._output(event.output, event.output_ref)
                return [
                    self._node_completed(event.node_id, output, (event.at - began) // 1000, skipped=False),
                    _progress(state),
                ]
            case events.NodeSkipped():
                return [self._node_completed(event.node_id, None, 0, skipped=True), _progress(state)]
            case events.ChunksRecorded():
                return [{**_progress(state), "items": _items(event, state)}]
            case events.NodeFailed():
                return [
                    {
                        "type": "node_failed",
                        "node_id": event.node_id,
                        "error_message": event.error.message,
                        "attempt": event.attempt,
                        "will_retry": event.retry_at is not None,
                    }
                ]
            case events.CancellationRequested():
                previous = event.previous_status
                if previous == "paused" and state.started_at is None:
                    previous = "queued"
                return [
                    {
                        "type": "execution_cancelled",
                        "previous_status": STATUSES[previous],
                        "status": "CANCELLED",
                    }
                ]
            case events.Completed():
                output = await self._output(event.output, event.output_ref, whole_object=True)
                return [{"type": "execution_completed", "final_output": output, "progress": 100.0}]
            case events.Failed() | events.TimedOut():
                message = state.error.message if state.error else ""
                return [
                    {
                        "type": "execution_failed",
                        "error_message": shown_error(message, state.failed_node),
                        "status": "FAILED",
                    }
                ]
            case _:
                return []

    def _node_completed(
        self, node_id: str, output: Any, duration_ms: int, *, skipped: bool
    ) -> dict[str, Any]:
        step = self._steps.get(NodeId(node_id))
        return {
            "type": "node_completed",
            "node_id": node_id,
            "node_name": step.name if step else node_id,
            "output": output,
            "duration_ms": duration_ms,
            "skipped": skipped,
        }

    async def _output(self, value: Json, ref: BlobRef | None, *, whole_object: bool = False) -> Any:
        if ref is not None and ref.size > OUTPUT_BYTES_MAX:
            return {"truncated": True, "size": ref.size}
        text = _encode(value) if ref is None else await asyncio.to_thread(self._blobs.get_bytes, ref)
        if len(text) > OUTPUT_BYTES_MAX:
            return {"truncated": True, "size": len(text)}
        return shown_output(text) if whole_object else msgspec.Raw(text)


def _progress(state: ExecutionState) -> dict[str, Any]:
    return {
        "type": "progress_update",
        "progress": state.progress,
        "completed_nodes": state.completed_nodes,
        "total_nodes": max(1, state.total_nodes),
        "current_node": state.current_node,
    }


def _items(event: events.ChunksRecorded, state: ExecutionState) -> dict[str, Any]:
    """How far a wide map is: what the contract's progress can't say of a node with very many items."""
    known = state.nodes[NodeId(event.node_id)].chunks
    total = known.total if known else event.total
    return {
        "node_id": event.node_id,
        "done": event.done,
        "failed": event.failed,
        "total": total,
        "rate": event.rate,
        "seconds_left": chunks.seconds_left(total, event.done, event.rate),
    }
