"""Recorded events as the audit API shows them: what stands in the log, not our reading of it."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from gateway.house_api import iso, parameter
from gateway.sse import frame
from runtime import codec
from runtime.event_log import Recorded
from runtime.events import Event

EVENTS_LIMIT_MAX = 1_000
"""Events of one page."""

POSITION_MAX = 2**63 - 1

_encode = msgspec.json.Encoder().encode
_HEAD = frozenset({"prev", *(field.encode_name for field in msgspec.structs.fields(Event))})


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``position`` is the event's place in the whole log, ``version`` its place in its stream.

    ``data`` holds the event's own fields as stored; what has its default value is left out. ``hash`` is what
    the next event of the stream carries as ``prev``.
    """

    position: int
    stream: str
    version: int
    type: str
    at: str
    by: str
    cause: str
    correlation_id: str
    prev: str
    hash: str
    data: dict[str, Any]


class EventPage(msgspec.Struct, frozen=True):
    """``next_after``: pass it as ``after`` for the next page; null when there is none yet.

    ``last_position``: the position up to which this page is complete; a reader that polls goes on from it.
    """

    events: list[EventRecord]
    next_after: int | None
    last_position: int


def record_of(recorded: Recorded) -> EventRecord:
    fields = cast("dict[str, Any]", msgspec.json.decode(recorded.data))
    return EventRecord(
        position=recorded.position,
        stream=recorded.originator_id,
        version=recorded.originator_version,
        type=recorded.topic,
        at=iso(fields["at"]),
        by=fields.get("by", "system"),
        cause=fields.get("cause", ""),
        correlation_id=fields.get("corr", "") or recorded.originator_id,
        prev=codec.previous_hash(recorded.data),
        hash=recorded.hash(),
        data={name: value for name, value in fields.items() if name not in _HEAD},
    )


def frame_of(record: EventRecord) -> bytes:
    """``id`` is the position, so one rule resumes every stream: after the last id that was seen.

    There is no ``event:`` line: a browser's ``onmessage`` then sees all, and ``data`` has the type.
    """
    return frame(record.position, _encode(record))


# --- documentation ------------------------------------------------------------------------------------

AFTER = parameter("after", "Only events behind this position of the log.", "integer", 0)
EVENTS_LIMIT = parameter("limit", f"Events of one page, {EVENTS_LIMIT_MAX} at most.", "integer", 100)
STREAM_ANSWER = {
    "description": "One frame an event; `id` is its position, `data` the record as JSON",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'id: 1042\ndata: {"position":1042,"type":"execution.node_started"}\n\n',
        }
    },
}
RESUME = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Resume after this position; also as the query last_event_id.",
    "schema": {"type": "integer"},
}
RECORD_EXAMPLE = {
    "position": 1042,
    "stream": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
    "version": 3,
    "type": "execution.node_started",
    "at": "2026-01-31T12:00:00.004211Z",
    "by": "system",
    "cause": "v2",
    "correlation_id": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
    "prev": "5d2f1c0e9b7a4c3d8e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d",
    "hash": "b7e23ec29af22b0b4e41da31e868d57226121c84a3b1f0c9d8e7f6a5b4c3d2e1",
    "data": {"node_id": "greet", "where": "host-1"},
}
