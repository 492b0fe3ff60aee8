"""How an execution came about: its events, its past states, and their verification."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.audit.executions import EXAMPLE_ID, UNKNOWN, folded, get_resource, visible_row
from gateway.dialects.audit.records import (
    AFTER,
    EVENTS_LIMIT,
    EVENTS_LIMIT_MAX,
    POSITION_MAX,
    RECORD_EXAMPLE,
    RESUME,
    STREAM_ANSWER,
    EventPage,
    frame_of,
    record_of,
)
from gateway.house_api import answer, broken, iso, json_answer, parameter, whole_number
from gateway.routes import Doc
from gateway.sse import EventStream, last_event_id
from projections.execution_summary import ExecutionRow
from runtime.event_log import Recorded
from runtime.ids import Position
from runtime.state import ExecutionState
from runtime.verification import Violation, verify

VERSION_MAX = 1_000_000


class PastState(msgspec.Struct, frozen=True):
    """``state``: every field of the execution's state once the event of that version was recorded."""

    execution_id: str
    version: int
    latest_version: int
    at: str
    state: dict[str, Any]


# --- events -----------------------------------------------------------------------------------------------


async def execution_events(call: Call) -> Response:
    row = await visible_row(call)
    after = whole_number(call, "after", 0, 0, POSITION_MAX)
    limit = whole_number(call, "limit", 100, 1, EVENTS_LIMIT_MAX)
    found = await asyncio.to_thread(_events_after, call, row, after, limit + 1)
    page = found[:limit]
    last = page[-1].position if page else after
    return answer(EventPage([record_of(each) for each in page], last if len(found) > limit else None, last))


def _events_after(call: Call, row: ExecutionRow, after: int, limit: int) -> list[Recorded]:
    """Its events behind a position of the log; positions rise with versions, so halving finds the first."""
    low, high = 0, row.version if after else 0
    while low < high:
        middle = (low + high) // 2
        at = call.gateway.log.read(row.execution_id, middle, 1)
        if at and at[0].position <= after:
            low = middle + 1
        else:
            high = middle
    return call.gateway.log.read(row.execution_id, low, limit)


async def execution_event_stream(call: Call) -> Response:
    row = await visible_row(call)
    after = max(last_event_id(call), whole_number(call, "after", 0, 0, POSITION_MAX))
    recorded = call.gateway.executions.follow(row.execution_id, Position(after))
    return EventStream(call, _frames(recorded))


async def _frames(recorded: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async with aclosing(cast("Any", recorded)) as source:
        async for item in source:
            if isinstance(item, Recorded):
                yield frame_of(record_of(item))


# --- past states ------------------------------------------------------------------------------------------


async def execution_state(call: Call) -> Response:
    row = await visible_row(call)
    version = whole_number(call, "version", row.version, 1, VERSION_MAX)
    if version > row.version:
        raise broken("version", f"the execution has {row.version} versions")
    state = await asyncio.to_thread(_state_at, call, row.execution_id, version)
    body = PastState(row.execution_id, version, row.version, iso(state.updated_at), state_fields(state))
    return answer(body)


def _state_at(call: Call, execution_id: str, version: int) -> ExecutionState:
    return folded(each.event() for each in call.gateway.log.read(execution_id, 0, version))


def state_fields(state: ExecutionState) -> dict[str, Any]:
    """The state as JSON, times readable; equal states give equal JSON."""
    fields = cast("dict[str, Any]", msgspec.to_builtins(state, order="deterministic", str_keys=True))
    _show_times(fields)
    for node in fields["nodes"].values():
        _show_times(node)
    return fields


def _show_times(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if name.endswith("_at") and isinstance(value, int):
            # 0 stands for "not yet" in a node that was skipped or never started.
            fields[name] = iso(value) if value else None


# --- verification -----------------------------------------------------------------------------------------


class Verified(msgspec.Struct, frozen=True):
    """``violations`` are empty when every promise is kept; ``head`` is the hash of the last event."""

    execution_id: str
    ok: bool
    events: int
    status: str
    head: str
    violations: list[Violation]


async def execution_verification(call: Call) -> Response:
    row = await visible_row(call)
    return answer(await asyncio.to_thread(_verified, call, row.execution_id))


def _verified(call: Call, execution_id: str) -> Verified:
    recorded = call.gateway.log.read(execution_id)
    report = verify(recorded)
    status = next(iter(report.executions), "unknown")
    head = recorded[-1].hash() if recorded else ""
    return Verified(execution_id, report.is_clean, report.events, status, head, report.violations)


# --- documentation and routes ---------------------------------------------------------------------------

RESOURCES = (
    get_resource(
        "/{execution_id}/events",
        execution_events,
        Doc(
            summary="The events of an execution",
            parameters=(
                AFTER,
                EVENTS_LIMIT,
            ),
            answers={
                200: json_answer(
                    "One page",
                    EventPage,
                    {"events": [RECORD_EXAMPLE], "next_after": 1042, "last_position": 1042},
                ),
                404: UNKNOWN,
            },
        ),
    ),
    get_resource(
        "/{execution_id}/events/stream",
        execution_event_stream,
        Doc(
            summary="Follow the events of an execution as server-sent events",
            description="Replays what was recorded, goes on live, and ends after the terminal event.",
            parameters=(AFTER, RESUME),
            answers={200: STREAM_ANSWER, 404: UNKNOWN},
        ),
        streams=True,
    ),
    get_resource(
        "/{execution_id}/state",
        execution_state,
        Doc(
            summary="The state of an execution as of one of its versions",
            description="Folded from its first events; the same for ever.",
            parameters=(parameter("version", "Default: the latest.", "integer", 3),),
            answers={
                200: json_answer(
                    "The state then",
                    PastState,
                    {
                        "execution_id": EXAMPLE_ID,
                        "version": 3,
                        "latest_version": 5,
                        "at": "2026-01-31T12:00:00.004211Z",
                        "state": {"status": "running", "current_node": "greet"},
                    },
                ),
                404: UNKNOWN,
            },
        ),
    ),
    get_resource(
        "/{execution_id}/verification",
        execution_verification,
        Doc(
            summary="Verify an execution",
            description="Holds its events against every promise: hashes, versions, owners, outcomes, end.",
            answers={
                200: json_answer(
                    "What was found",
                    Verified,
                    {
                        "execution_id": EXAMPLE_ID,
                        "ok": True,
                        "events": 5,
                        "status": "completed",
                        "head": RECORD_EXAMPLE["hash"],
                        "violations": [],
                    },
                ),
                404: UNKNOWN,
            },
        ),
    ),
)
