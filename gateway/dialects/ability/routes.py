"""The handlers and routes of the Ability API (ability contract section 3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import Response

from gateway import cancelling
from gateway.dialects.ability import docs
from gateway.dialects.ability.intake import (
    Submission,
    body_bytes_max,
    command_of,
    published_ability,
    read_submission,
)
from gateway.dialects.ability.stream import (
    AbilityEncoder,
    AbilityFrame,
    PlainStream,
    ability_frames,
    plain_frames,
    recorded_events,
    standard_frames,
)
from gateway.dialects.ability.wire import (
    PREFIX,
    SOURCE,
    STATUSES,
    Status,
    encode,
    envelope,
    request_body,
    row_status,
)
from gateway.envelopes import Problem
from gateway.keys import READ, RUN
from gateway.routes import Dialect, Operation, Resource
from gateway.settings import Settings
from gateway.sse import EventStream, last_event_id
from projections.execution_summary import ExecutionRow

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.catalogue import PublishedFlow
    from gateway.context import Gateway

REQUEST_IDS_MAX = 100
_JSON = "application/json"
_NO_STORE = {"cache-control": "no-store"}
_REQUEST_ID = "x-ability-request-id"


# --- 3.1 run, 3.2 run and stream ------------------------------------------------------------------------


async def run(call: Call) -> Response:
    published = await published_ability(call)
    given = await read_submission(call)
    try:
        return await _start_once(call, published, given)
    finally:
        await given.form.discard()


async def _start_once(call: Call, published: PublishedFlow, given: Submission) -> Response:
    """The answer of 3.1; with an Idempotency-Key, the one given before."""
    gateway = call.gateway

    async def serve(execution_id: str) -> Response:
        client = gateway.executions  # before files are kept: without hosts nothing can start
        command = await command_of(call, published, given, execution_id)
        call.execution_id = execution_id
        with gateway.limits.starting():
            await client.start(command)
        location = f"{PREFIX}/{call.path['api_endpoint']}/{execution_id}/status"
        headers = {**_NO_STORE, "location": location, _REQUEST_ID: execution_id}
        return Response(encode(execution_id), 200, headers, _JSON)

    return await gateway.idempotency.once(call, given.digest(), serve)


async def run_and_stream(call: Call) -> Response:
    published = await published_ability(call)
    given = await read_submission(call)
    try:
        request_id = ""

        is_standard = _wants_standard(call)

        async def frames() -> AsyncIterator[AbilityFrame]:
            steps = published.plan.steps
            encoder = AbilityEncoder(request_id, steps, call.gateway.blobs, debug=given.debug)
            recorded = recorded_events(call.gateway.executions, request_id, is_cut=is_standard)
            async with aclosing(cast("Any", ability_frames(recorded, encoder))) as source:
                async for made in source:
                    yield cast(AbilityFrame, made)

        # The stream's place is taken first: once the run has begun, nothing may refuse the request.
        if is_standard:
            response = EventStream(call, standard_frames(frames(), last_event_id(call)))
        else:
            response = PlainStream(call, plain_frames(frames()))
        try:
            started = await _start_once(call, published, given)
        except BaseException:
            call.gateway.limits.close_stream(call.caller)
            raise
        if started.status_code != 200:
            call.gateway.limits.close_stream(call.caller)
            return started
    finally:
        await given.form.discard()
    request_id = call.execution_id = started.headers[_REQUEST_ID]
    response.headers["vary"] = "Accept"
    for name in (_REQUEST_ID, "idempotency-replayed"):
        if name in started.headers:
            response.headers[name] = started.headers[name]
    return response


def _wants_standard(call: Call) -> bool:
    """Framing B for whoever names its type; libraries for server-sent events do, curl and fetch don't."""
    framing = call.query("framing")
    if framing in ("sse", "plain"):
        return framing == "sse"
    accepted = (part.partition(";")[0].strip().lower() for part in call.header(b"accept").split(","))
    return "text/event-stream" in accepted


# --- 3.3 status and result ------------------------------------------------------------------------------


async def status(call: Call) -> Response:
    row = await visible_request(call, call.path["request_id"])
    return Response(await request_body(call.gateway, row), 200, _NO_STORE, _JSON)


async def result(call: Call) -> Response:
    """The same under its other name."""
    return await status(call)


async def find_request(call: Call, request_id: str) -> ExecutionRow | None:
    """The request, if it was started through the path's ability by the caller's tenant and is not purged."""
    row = await call.gateway.reads.execution(request_id)
    if (
        row is None
        or row.tenant != call.caller.tenant
        or row.source != SOURCE
        or row.flow_id != call.path["api_endpoint"]
        or _is_purged(call.gateway, row)
    ):
        return None
    return row


def _is_purged(gateway: Gateway, row: ExecutionRow) -> bool:
    kept_until = gateway.settings.kept_until(row.ended_at)
    return kept_until is not None and kept_until <= gateway.clock()


async def visible_request(call: Call, request_id: str) -> ExecutionRow:
    """Raises: Problem flow_not_found when the ability doesn't exist, else execution_not_found."""
    row = await find_request(call, request_id)
    if row is None:
        # Only now: what was accepted stays readable when its ability is withdrawn.
        await published_ability(call)
        raise Problem("execution_not_found")
    call.execution_id = request_id
    return row


async def render_callback(gateway: Gateway, row: ExecutionRow) -> bytes:
    """The body of a callback: exactly the 3.3 object (contract 3.6)."""
    return await request_body(gateway, row)


# --- 3.4, 3.5 cancel ------------------------------------------------------------------------------------


async def cancel(call: Call) -> Response:
    row = await visible_request(call, call.path["request_id"])
    reached = await _cancel(call, row)
    if reached != "CANCELED":
        raise Problem("conflict", details=[{"request_id": row.execution_id, "status": reached}])
    return _cancelled()


async def cancel_many(call: Call) -> Response:
    ids = list(dict.fromkeys(call.query_values("request_ids")))
    if not 1 <= len(ids) <= REQUEST_IDS_MAX or "" in ids:
        await published_ability(call)
        raise Problem("invalid_request_ids")
    found = await asyncio.gather(*(find_request(call, request_id) for request_id in ids))
    unknown = [request_id for request_id, row in zip(ids, found, strict=True) if row is None]
    if unknown:
        await published_ability(call)
        raise Problem("execution_not_found", details=[{"request_id": each} for each in unknown])
    # Every one is tried, whatever becomes of the others; a failure shows only after that.
    results = await asyncio.gather(*(_cancel(call, row) for row in found if row), return_exceptions=True)
    reached: list[Status] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        reached.append(result)
    if any(each != "CANCELED" for each in reached):
        pairs = zip(ids, reached, strict=True)
        raise Problem("conflict", details=[{"request_id": each, "status": end} for each, end in pairs])
    return _cancelled()


async def _cancel(call: Call, row: ExecutionRow) -> Status:
    """The request's status after the attempt to cancel it; CANCELED also when it was already."""
    reply, row = await cancelling.cancel(call, row)
    if reply is not None:
        return STATUSES["cancelling"]
    return row_status(row)


def _cancelled() -> Response:
    return Response(b"true", 200, _NO_STORE, _JSON)


# --- routes ---------------------------------------------------------------------------------------------


def dialect(settings: Settings) -> Dialect:
    bound = body_bytes_max(settings)
    request = f"{PREFIX}/{{api_endpoint}}/{{request_id}}"
    resources: Sequence[Resource] = (
        Resource(
            f"{PREFIX}/{{api_endpoint}}",
            {
                "POST": Operation(handler=run, scope=RUN, doc=docs.RUN, body_max=bound),
                "DELETE": Operation(handler=cancel_many, scope=RUN, doc=docs.CANCEL_MANY),
            },
        ),
        Resource(
            f"{PREFIX}/{{api_endpoint}}/sse",
            {
                "POST": Operation(
                    handler=run_and_stream, scope=RUN, doc=docs.STREAM, body_max=bound, streams=True
                )
            },
        ),
        Resource(request, {"DELETE": Operation(handler=cancel, scope=RUN, doc=docs.CANCEL)}),
        *(
            Resource(f"{request}/{name}", {"GET": Operation(handler=handler, scope=READ, doc=docs.STATUS)})
            for name, handler in (("status", status), ("result", result))
        ),
    )
    return Dialect("ability", envelope(settings), tuple(resources))
