"""Asynchronous Execution API, `/v1/executions` (executions contract, sections 2 and 3).

Translates the contract's requests into commands, the summary row into its status, and recorded events
into its stream. Only executions that were started here are visible here; everything else is one 404.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from starlette.responses import Response

from gateway import cancelling
from gateway.call import Call
from gateway.context import Gateway
from gateway.dialects.executions.stream import frames
from gateway.dialects.executions.wire import STATUSES, iso, shown_error, shown_output
from gateway.envelopes import Envelope, Fault, Problem
from gateway.idempotency import request_digest
from gateway.keys import READ, RUN
from gateway.routes import Dialect, Doc, Operation, Resource
from gateway.settings import Settings
from gateway.sse import EventStream, last_event_id
from projections.execution_summary import ExecutionRow
from runtime.commands import StartExecution
from runtime.errors import InvalidInput
from runtime.events import BlobRef
from runtime.ids import NodeId
from runtime.inputs import check_input
from runtime.plan import Step
from runtime.queue_keys import placed

SOURCE = "executions"
PREFIX = "/v1/executions"

_JSON = "application/json"


class Accepted(msgspec.Struct, frozen=True):
    execution_id: str
    status_url: str
    stream_url: str
    cancel_url: str


class ExecutionStatus(msgspec.Struct, frozen=True):
    execution_id: str
    status: str
    progress: float
    current_node: str | None
    completed_nodes: int
    total_nodes: int
    final_output: Any
    error_message: str | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    retry_count: int
    execution_source: str
    is_temporary: bool
    cleanup_after: str | None


class Cancellation(msgspec.Struct, frozen=True):
    execution_id: str
    cancelled: bool
    message: str
    previous_status: str


_encode = msgspec.json.Encoder().encode


# --- 3.1 start --------------------------------------------------------------------------------------


async def start(call: Call) -> Response:
    gateway = call.gateway
    flow_id = call.path["chatbot_id"]
    published = await gateway.catalogue.published(call.caller.tenant, flow_id)
    if published is None:
        raise Problem("flow_not_found")
    body = await call.body()
    digest = request_digest(body) if b"idempotency-key" in call.headers else ""

    async def serve(execution_id: str) -> Response:
        given = _input_data(call.decoded(body, dict[str, Any]))
        try:
            check_input(published.definition, given)
        except InvalidInput as error:
            raise _named(error) from None
        await gateway.limits.count_start(call.caller)
        call.execution_id = execution_id
        command = StartExecution(
            at=gateway.clock(),
            by=call.caller.key_id,
            cause=call.correlation_id,
            execution_id=execution_id,
            tenant=call.caller.tenant,
            flow_id=flow_id,
            flow_version=published.version,
            placement=published.plan.placement,
            source=SOURCE,
            input=given,
            correlation_id=call.given_correlation_id,
        )
        with gateway.limits.starting():
            await gateway.executions.start(placed(command, published.plan))
        return _accepted(call, execution_id)

    return await gateway.idempotency.once(call, digest, serve)


def _input_data(body: dict[str, Any] | None) -> dict[str, Any]:
    given = (body or {}).get("input_data")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Problem("invalid_input", "input_data: must be an object")
    return cast("dict[str, Any]", given)


def _named(error: InvalidInput) -> Problem:
    """The first problem, named as the contract does: the path below ``input_data`` and the rule."""
    field, rule = error.problems[0]
    return Problem("invalid_input", f"input_data{'.' if field else ''}{field}: {rule}")


def _accepted(call: Call, execution_id: str) -> Response:
    url = f"{call.base_url()}{PREFIX}/{execution_id}"
    body = _encode(Accepted(execution_id, url, f"{url}/stream", url))
    return Response(body, 202, {"location": url, "cache-control": "no-store"}, _JSON)


# --- 3.2 status -------------------------------------------------------------------------------------


async def visible_row(call: Call) -> ExecutionRow:
    """The execution named by the path, if the caller may see it here. Raises: Problem execution_not_found."""
    execution_id = call.path["execution_id"]
    row = await call.gateway.reads.execution(execution_id)
    if row is None or row.tenant != call.caller.tenant or row.source != SOURCE:
        raise Problem("execution_not_found")
    cleanup_at = _cleanup_at(row, call.gateway.settings)
    if cleanup_at is not None and cleanup_at <= call.gateway.clock():
        raise Problem("execution_not_found")
    call.execution_id = execution_id
    return row


def _ended_at(row: ExecutionRow) -> int | None:
    """When a cancel was accepted, that is the end, though the last nodes may still be ending (G7)."""
    return row.cancel_requested_at if row.cancel_requested_at is not None else row.ended_at


def _cleanup_at(row: ExecutionRow, settings: Settings) -> int | None:
    return settings.kept_until(_ended_at(row))


def row_status(row: ExecutionRow) -> str:
    if row.status == "paused" and row.started_at is None:
        return "PENDING"
    return STATUSES[row.status]


async def status(call: Call) -> Response:
    row = await visible_row(call)
    shown = row_status(row)
    output = await _final_output(call.gateway, row) if row.status == "completed" else None
    ended_at = _ended_at(row)
    body = ExecutionStatus(
        execution_id=row.execution_id,
        status=shown,
        progress=row.progress,
        current_node=None if ended_at is not None else row.current_node,
        completed_nodes=row.completed_nodes,
        total_nodes=max(1, row.total_nodes),
        final_output=output,
        error_message=shown_error(row.error_message or "", row.failed_node or "")
        if shown == "FAILED"
        else None,
        created_at=iso(row.created_at),
        started_at=None if row.started_at is None else iso(row.started_at),
        completed_at=None if ended_at is None else iso(ended_at),
        retry_count=row.retry_count,
        execution_source="CHATBOT",
        is_temporary=call.gateway.settings.retention_seconds is not None,
        cleanup_after=_cleanup_text(row, call.gateway.settings),
    )
    return Response(_encode(body), 200, {"cache-control": "no-store"}, _JSON)


def _cleanup_text(row: ExecutionRow, settings: Settings) -> str | None:
    at = _cleanup_at(row, settings)
    return None if at is None else iso(at)


async def _final_output(gateway: Gateway, row: ExecutionRow) -> Any:
    """The whole result, as JSON that is copied through without being rebuilt."""
    if row.output_ref is not None:
        ref = msgspec.json.decode(row.output_ref, type=BlobRef)
        text = await asyncio.to_thread(gateway.blobs.get_bytes, ref)
    else:
        text = (row.output or "null").encode()
    return shown_output(text)


# --- 3.3 cancel -------------------------------------------------------------------------------------


async def cancel(call: Call) -> Response:
    row = await visible_row(call)
    reply, settled = await cancelling.cancel(call, row)
    if reply is not None:
        queued = reply.previous_status == "queued" or row_status(row) == "PENDING"
        previous = "PENDING" if queued and reply.previous_status != "running" else "RUNNING"
        return _cancelled(row.execution_id, True, "Execution cancelled successfully.", previous)
    if settled is not row:
        row = await visible_row(call)  # its retention may have ended with it
    shown = row_status(row)
    message = f"Execution cannot be cancelled: it is already {shown}."
    return _cancelled(row.execution_id, False, message, shown)


def _cancelled(execution_id: str, cancelled: bool, message: str, previous: str) -> Response:
    body = _encode(Cancellation(execution_id, cancelled, message, previous))
    return Response(body, 200, {"cache-control": "no-store"}, _JSON)


# --- 3.4 stream -------------------------------------------------------------------------------------


async def stream(call: Call) -> Response:
    row = await visible_row(call)
    gateway = call.gateway
    published = await gateway.catalogue.version(row.tenant, row.flow_id, row.flow_version)
    steps: Mapping[NodeId, Step] = {} if published is None else published.plan.steps
    deltas = (call.query("deltas") or "").lower() in ("true", "1")
    recorded = gateway.executions.follow(row.execution_id, deltas=deltas)
    return EventStream(call, frames(row.execution_id, recorded, steps, gateway.blobs, last_event_id(call)))


# --- envelope and routes ----------------------------------------------------------------------------


def _render(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    return _encode({"detail": message})


FAULTS: Mapping[str, Fault] = {
    "route_not_found": Fault(404, "Not found."),
    "method_not_allowed": Fault(405, "Method not allowed."),
    "body_too_large": Fault(413, "Request body too large."),
    "unauthenticated": Fault(401, "API key is missing or invalid."),
    "forbidden": Fault(403, "API key lacks permission."),
    "rate_limited": Fault(429, "Rate limit exceeded."),
    "too_many_streams": Fault(429, "Rate limit exceeded."),
    "too_many_executions": Fault(429, "Rate limit exceeded."),
    "flow_not_found": Fault(404, "Chatbot not found."),
    "execution_not_found": Fault(404, "Execution not found."),
    "unsupported_media_type": Fault(415, "Unsupported media type."),
    "invalid_input": Fault(422, "Invalid request."),
    "idempotency_in_progress": Fault(409, "Idempotency-Key still in progress."),
    "idempotency_key_reused": Fault(422, "Idempotency-Key reused with a different request."),
    "conflict": Fault(409, "The execution's state does not allow this."),
    "internal": Fault(500, "An unexpected error occurred."),
    "unavailable": Fault(503, "Service unavailable."),
}

ENVELOPE = Envelope(prefix=PREFIX, faults=FAULTS, render=_render)


def dialect(settings: Settings) -> Dialect:
    return Dialect(
        "executions",
        ENVELOPE,
        (
            Resource(
                f"{PREFIX}/{{chatbot_id}}/async",
                {"POST": Operation(handler=start, scope=RUN, doc=_START_DOC)},
            ),
            Resource(
                f"{PREFIX}/{{execution_id}}",
                {
                    "GET": Operation(handler=status, scope=READ, doc=_STATUS_DOC),
                    "DELETE": Operation(handler=cancel, scope=RUN, doc=_CANCEL_DOC),
                },
            ),
            Resource(
                f"{PREFIX}/{{execution_id}}/stream",
                {"GET": Operation(handler=stream, scope=READ, doc=_STREAM_DOC, streams=True)},
            ),
        ),
    )


_START_DOC = Doc(
    summary="Start an execution of a published flow",
    description="Answers once the execution is durable; the flow's latest version is pinned to it.",
    request={
        "required": False,
        "content": {
            _JSON: {
                "schema": {"type": "object", "properties": {"input_data": {"type": "object"}}},
                "example": {"input_data": {"query": "What is X?", "user_id": "user-123"}},
            }
        },
    },
    answers={202: {"description": "Accepted", "model": Accepted}, 422: {"description": "Invalid input"}},
)
_STATUS_DOC = Doc(
    summary="Status and result of an execution",
    answers={200: {"description": "The execution as it stands", "model": ExecutionStatus}},
)
_CANCEL_DOC = Doc(
    summary="Cancel an execution",
    description="Always 200 for a visible execution; `cancelled` says whether this request did it.",
    answers={200: {"description": "What the request did", "model": Cancellation}},
)
_STREAM_DOC = Doc(
    summary="Follow an execution as server-sent events",
    parameters=(
        {
            "name": "deltas",
            "in": "query",
            "schema": {"type": "boolean"},
            "description": "also text as it is made",
        },
        {
            "name": "last_event_id",
            "in": "query",
            "schema": {"type": "integer"},
            "description": "resume after it",
        },
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "integer"},
            "description": "resume after it",
        },
    ),
    answers={
        200: {
            "description": "Events until the execution ends. While a wide map runs, `progress_update` also"
            " has `items`: node, done, failed, total, rate per second and seconds left.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'id: 12\ndata: {"type":"progress_update","progress":50.0}\n\n',
                }
            },
        }
    },
)
