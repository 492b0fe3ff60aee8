"""/api/audit/events: everything that was recorded, in the order of the log, as pages and as a stream.

Whoever may not see every tenant gets the events of executions, callbacks and flows of their own; those of
API keys are for admins. The log has no tenant on each event, so streams are looked up, once each.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.audit.records import (
    AFTER,
    EVENTS_LIMIT_MAX,
    POSITION_MAX,
    RECORD_EXAMPLE,
    RESUME,
    STREAM_ANSWER,
    EventPage,
    frame_of,
    record_of,
)
from gateway.house_api import (
    TENANT,
    answer,
    broken,
    is_admin,
    json_answer,
    parameter,
    tenant_of,
    whole_number,
)
from gateway.keys import AUDIT
from gateway.routes import Doc, Operation, Resource
from gateway.sse import EventStream, last_event_id
from projections import execution_summary
from projections.store import ReadStore
from runtime.event_log import Recorded
from runtime.events import EVENT_TYPES
from runtime.ids import Position

PREFIX = "/api/audit/events"

SCANNED_MAX = 5_000
"""Events looked at for one page; a page may hold fewer than asked for, and says where to go on."""

STREAM_BATCH = 500
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.1, 1.0
"""How often a stream looks for news: soon after there were some, more seldom while there are none."""

TENANTS_MAX = 20_000
"""Streams whose tenant is kept in mind, for each reader."""


class Visible:
    """Which recorded events one reader may see. ``tenant`` None: all of them."""

    def __init__(self, store: ReadStore, tenant: str | None) -> None:
        self._store = store
        self._tenant = tenant
        self._tenants: OrderedDict[str, str] = OrderedDict()

    def among(self, found: Sequence[Recorded]) -> list[Recorded]:
        """Those of ``found`` that may be seen, in order. Blocks."""
        if self._tenant is None:
            return list(found)
        unknown = {execution_of(each.originator_id) for each in found} - self._tenants.keys() - {""}
        rows = execution_summary.get_many(self._store, sorted(unknown)) if unknown else {}
        tenants = self._tenants
        for execution_id, row in rows.items():
            tenants[execution_id] = row.tenant
        seen = [each for each in found if self._tenant_of(each.originator_id) == self._tenant]
        while len(tenants) > TENANTS_MAX:
            tenants.popitem(last=False)
        return seen

    def _tenant_of(self, stream: str) -> str | None:
        kind, _, rest = stream.partition(":")
        if kind == "flow":
            return rest.rpartition(":")[0]
        return self._tenants.get(execution_of(stream))


def execution_of(stream: str) -> str:
    """The execution a stream belongs to; empty for those that belong to none."""
    kind, colon, rest = stream.partition(":")
    if not colon:
        return stream
    return rest if kind == "callback" else ""


def _visible(call: Call) -> Visible:
    everything = is_admin(call) and call.query("tenant") is None
    return Visible(call.gateway.store, None if everything else tenant_of(call))


def _topics(call: Call) -> tuple[str, ...]:
    named = [part for value in call.query_values("type") for part in value.split(",") if part]
    for name in named:
        if name not in EVENT_TYPES:
            raise broken("type", f"unknown type of event '{name[:100]}'")
    return tuple(dict.fromkeys(named))


async def all_events(call: Call) -> Response:
    after = whole_number(call, "after", 0, 0, POSITION_MAX)
    limit = whole_number(call, "limit", 100, 1, EVENTS_LIMIT_MAX)
    visible, topics = _visible(call), _topics(call)
    return answer(await asyncio.to_thread(_page, call, visible, topics, after, limit))


def _page(call: Call, visible: Visible, topics: Sequence[str], after: int, limit: int) -> EventPage:
    found: list[Recorded] = []
    last, scanned, is_end = after, 0, False
    while len(found) < limit and scanned < SCANNED_MAX and not is_end:
        batch = call.gateway.log.feed(Position(last), limit, topics)
        is_end = len(batch) < limit
        scanned += len(batch)
        seen = visible.among(batch)
        taken = seen[: limit - len(found)]
        found += taken
        if len(taken) < len(seen):
            last, is_end = taken[-1].position, False
        elif batch:
            last = batch[-1].position
    return EventPage([record_of(each) for each in found], None if is_end else last, last)


async def all_event_stream(call: Call) -> Response:
    after = max(last_event_id(call), whole_number(call, "after", 0, 0, POSITION_MAX))
    return EventStream(call, _frames(call, _visible(call), _topics(call), after))


async def _frames(call: Call, visible: Visible, topics: Sequence[str], after: int) -> AsyncIterator[bytes]:
    """Never ends by itself. The log is the only source, so there is no gap and no repetition."""
    pause = POLL_SECONDS_MIN
    while True:
        batch = await asyncio.to_thread(call.gateway.log.feed, Position(after), STREAM_BATCH, topics)
        if batch:
            after = batch[-1].position
            for each in await asyncio.to_thread(visible.among, batch):
                yield frame_of(record_of(each))
        if len(batch) == STREAM_BATCH:
            continue
        pause = POLL_SECONDS_MIN if batch else min(pause * 1.5, POLL_SECONDS_MAX)
        await asyncio.sleep(pause)


# --- documentation and routes ---------------------------------------------------------------------------

_TYPE = parameter(
    "type", "Only these types, comma-separated.", example="execution.completed,execution.failed"
)

RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": Operation(
                handler=all_events,
                scope=AUDIT,
                doc=Doc(
                    summary="Everything recorded, from a position on",
                    description="A page may hold fewer events than asked for and still have a next one.",
                    parameters=(
                        AFTER,
                        parameter(
                            "limit", f"Events of one page, {EVENTS_LIMIT_MAX} at most.", "integer", 100
                        ),
                        _TYPE,
                        TENANT,
                    ),
                    answers={
                        200: json_answer(
                            "One page",
                            EventPage,
                            {"events": [RECORD_EXAMPLE], "next_after": 1042, "last_position": 1042},
                        )
                    },
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/stream",
        {
            "GET": Operation(
                handler=all_event_stream,
                scope=AUDIT,
                streams=True,
                doc=Doc(
                    summary="Follow everything recorded as server-sent events",
                    parameters=(AFTER, RESUME, _TYPE, TENANT),
                    answers={200: STREAM_ANSWER},
                ),
            )
        },
    ),
)
