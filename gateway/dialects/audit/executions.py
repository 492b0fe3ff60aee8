"""/api/audit/executions: the list, and one execution with its timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, get_args

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.audit.timeline import NODE_EXAMPLE, Node, timeline
from gateway.envelopes import Problem
from gateway.house_api import (
    LIMIT,
    answer,
    broken,
    is_admin,
    iso,
    iso_or_none,
    json_answer,
    moment,
    page_size,
    parameter,
    read_cursor,
    refusal,
    tenant_of,
    write_cursor,
)
from gateway.keys import AUDIT
from gateway.queues import waits_for
from gateway.routes import Doc, Handler, Operation, Resource
from projections import execution_summary
from projections.execution_summary import Cursor, ExecutionRow
from runtime.events import BlobRef, Event
from runtime.execution import fold
from runtime.state import ExecutionState, Status

PREFIX = "/api/audit/executions"
TEXT_MAX = 200
PAYLOAD_BYTES_MAX = 16 * 1024 * 1024


class ExecutionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """``source`` is the door it came in by; ``position`` that of its last event in the whole log.

    ``queue``: its key among those of its tenant and flow.
    """

    execution_id: str
    tenant: str
    source: str
    flow_id: str
    flow_version: str
    status: str
    progress: float
    current_node: str | None
    completed_nodes: int
    total_nodes: int
    retry_count: int
    owner: str
    placement: str
    queue: str | None
    priority: int
    parent_id: str | None
    correlation_id: str
    created_by: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    updated_at: str
    deadline_at: str | None
    wakes_at: str | None
    version: int
    position: int
    failed_node: str | None
    error: dict[str, str] | None


class ExecutionPage(msgspec.Struct, frozen=True):
    executions: list[ExecutionSummary]
    next_cursor: str | None


class ExecutionDetail(ExecutionSummary, frozen=True, kw_only=True):
    """A payload above 16 MiB stands as ``{"blob": {"sha256", "size", "media_type"}}``.

    ``waits_for``: what a queued one waits for, in words.
    """

    input: Any
    output: Any
    files: list[dict[str, Any]]
    waits_for: str | None
    callback_url: str | None
    nodes: list[Node]


# --- who may see what -------------------------------------------------------------------------------------


async def visible_row(call: Call) -> ExecutionRow:
    """The execution named by the path. Raises: Problem execution_not_found, also for another tenant's."""
    row = await call.gateway.reads.execution(call.path["execution_id"])
    if row is None or not (row.tenant == call.caller.tenant or is_admin(call)):
        raise Problem("execution_not_found")
    call.execution_id = row.execution_id
    return row


# --- list and show ----------------------------------------------------------------------------------------


async def list_executions(call: Call) -> Response:
    filters: dict[str, object] = {}
    # An admin sees every tenant unless one is named.
    if not is_admin(call) or call.query("tenant") is not None:
        filters["tenant"] = tenant_of(call)
    for name, column in (("flow", "flow_id"), ("source", "source"), ("correlation_id", "correlation_id")):
        if value := call.query(name):
            filters[column] = value
    if statuses := _statuses(call):
        filters["status"] = statuses
    for name in ("created_from", "created_until"):
        at = moment(call, name)
        if at is not None:
            filters[name] = at
    if text := call.query("text"):
        if len(text) > TEXT_MAX:
            raise broken("text", f"may have {TEXT_MAX} characters at most")
        filters["text"] = text
    rows, following = await asyncio.to_thread(
        execution_summary.search, call.gateway.store, filters, read_cursor(call, Cursor), page_size(call)
    )
    page = [ExecutionSummary(**summary_fields(row)) for row in rows]
    return answer(ExecutionPage(page, None if following is None else write_cursor(following)))


def _statuses(call: Call) -> list[str]:
    """``status=failed&status=timed_out`` or ``status=failed,timed_out``."""
    named = [part for value in call.query_values("status") for part in value.split(",") if part]
    for name in named:
        if name not in get_args(Status):
            raise broken("status", f"unknown status '{name[:50]}'; there are {', '.join(get_args(Status))}")
    return named


def summary_fields(row: ExecutionRow) -> dict[str, Any]:
    error = None
    if row.error_type is not None:
        error = {"type": row.error_type, "message": row.error_message or ""}
    return {
        "execution_id": row.execution_id,
        "tenant": row.tenant,
        "source": row.source,
        "flow_id": row.flow_id,
        "flow_version": row.flow_version,
        "status": row.status,
        "progress": row.progress,
        "current_node": row.current_node,
        "completed_nodes": row.completed_nodes,
        "total_nodes": row.total_nodes,
        "retry_count": row.retry_count,
        "owner": row.owner,
        "placement": row.placement,
        "queue": row.queue_key or None,
        "priority": row.priority,
        "parent_id": row.parent_id or None,
        "correlation_id": row.correlation_id or row.execution_id,
        "created_by": row.by,
        "created_at": iso(row.created_at),
        "started_at": iso_or_none(row.started_at),
        "ended_at": iso_or_none(row.ended_at),
        "updated_at": iso(row.updated_at),
        "deadline_at": iso_or_none(row.deadline_at),
        "wakes_at": iso_or_none(row.wake_at),
        "version": row.version,
        "position": row.position,
        "failed_node": row.failed_node,
        "error": error,
    }


async def show_execution(call: Call) -> Response:
    row = await visible_row(call)
    state, nodes = await asyncio.to_thread(_story, call, row)
    given = await asyncio.to_thread(_payload, call, state.input, state.input_ref)
    output = await asyncio.to_thread(_payload, call, state.output, state.output_ref)
    return answer(
        ExecutionDetail(
            **summary_fields(row),
            input=given,
            output=output,
            files=[msgspec.to_builtins(file) for file in state.files],
            waits_for=await waits_for(call.gateway, row),
            callback_url=row.callback_url or None,
            nodes=nodes,
        )
    )


def _payload(call: Call, value: Any, ref: BlobRef | None) -> Any:
    """The value itself, also when only its reference is in the log."""
    if ref is None:
        return value
    if ref.size > PAYLOAD_BYTES_MAX:
        return {"blob": msgspec.to_builtins(ref)}
    return msgspec.Raw(call.gateway.blobs.get_bytes(ref))


def _story(call: Call, row: ExecutionRow) -> tuple[ExecutionState, list[Node]]:
    """The state at the row's version and how it came about."""
    history = [each.event() for each in call.gateway.log.read(row.execution_id, 0, row.version)]
    state = folded(history)
    return state, timeline(state, history)


def folded(history: Iterable[Event]) -> ExecutionState:
    state = fold(history)
    if state is None:
        raise Problem("execution_not_found")
    return state


# --- documentation and routes ---------------------------------------------------------------------------

EXAMPLE_ID = "0198c2f4-7d1e-7b3a-9c55-0242ac120002"
_SUMMARY: dict[str, Any] = {
    "execution_id": EXAMPLE_ID,
    "tenant": "default",
    "source": "executions",
    "flow_id": "hello",
    "flow_version": "3f6d0b7a91c2e854",
    "status": "completed",
    "progress": 100.0,
    "current_node": None,
    "completed_nodes": 1,
    "total_nodes": 1,
    "retry_count": 0,
    "owner": "host-1",
    "placement": "pooled",
    "queue": None,
    "priority": 0,
    "parent_id": None,
    "correlation_id": EXAMPLE_ID,
    "created_by": "first",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "started_at": "2026-01-31T12:00:00.002000Z",
    "ended_at": "2026-01-31T12:00:00.009000Z",
    "updated_at": "2026-01-31T12:00:00.009000Z",
    "deadline_at": None,
    "wakes_at": None,
    "version": 5,
    "position": 1044,
    "failed_node": None,
    "error": None,
}
_DETAIL: dict[str, Any] = {
    **_SUMMARY,
    "input": {"name": "World"},
    "output": "Hello World",
    "files": [],
    "waits_for": None,
    "callback_url": None,
    "nodes": [NODE_EXAMPLE],
}
UNKNOWN = refusal("No such execution.", "execution_not_found", "Execution not found.")
_FILTERS = (
    parameter("flow", "Only executions of this flow."),
    parameter("status", "Only these statuses, comma-separated.", example="failed,timed_out"),
    parameter("tenant", "Only this tenant's. An admin key sees all without it; others see their own."),
    parameter("source", "Only those that came in by this door.", example="executions"),
    parameter("correlation_id", "Only those of this correlation id."),
    parameter("created_from", "Created then or later.", example="2026-01-31T00:00:00Z"),
    parameter("created_until", "Created before then.", example="2026-02-01T00:00:00Z"),
    parameter("text", "Part of the id, the input, the output or the error, in any case."),
    LIMIT,
    parameter("cursor", "The next_cursor of the page before."),
)


def get_resource(path: str, handler: Handler, doc: Doc, *, streams: bool = False) -> Resource:
    return Resource(
        f"{PREFIX}{path}", {"GET": Operation(handler=handler, scope=AUDIT, doc=doc, streams=streams)}
    )


RESOURCES = (
    get_resource(
        "",
        list_executions,
        Doc(
            summary="List executions, newest first",
            description="Pages stay stable while executions are added: a cursor marks a place, not a number.",
            parameters=_FILTERS,
            answers={
                200: json_answer("One page", ExecutionPage, {"executions": [_SUMMARY], "next_cursor": None})
            },
        ),
    ),
    get_resource(
        "/{execution_id}",
        show_execution,
        Doc(
            summary="Show an execution with its node timeline",
            answers={200: json_answer("The execution", ExecutionDetail, _DETAIL), 404: UNKNOWN},
        ),
    ),
)
