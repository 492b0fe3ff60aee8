"""How the ability contract words statuses, times, results and errors (its sections 1, 2 and 3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.envelopes import Envelope, Fault
from gateway.settings import Settings
from gateway.timestamps import utc_second
from projections.execution_summary import ExecutionRow
from runtime.events import BlobRef
from runtime.evolution import begin, evolve
from runtime.ids import SECOND

if TYPE_CHECKING:
    from gateway.context import Gateway
    from runtime.state import ExecutionState

SOURCE = "ability"
PREFIX = "/api/ability"

Status = Literal["PENDING", "PROCESSING", "COMPLETED", "FAILED", "CANCELED"]
EventType = Literal["node_output", "final_response", "error"]

STATUSES: Mapping[str, Status] = {
    "queued": "PENDING",
    "running": "PROCESSING",
    "waiting": "PROCESSING",
    "paused": "PROCESSING",
    "cancelling": "CANCELED",
    "cancelled": "CANCELED",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "timed_out": "FAILED",
}
"""Internal status to the contract's; total over both."""

encode = msgspec.json.Encoder().encode


class AbilityRequest(msgspec.Struct, frozen=True):
    """What 3.3 answers and callbacks carry; all keys always present."""

    request_id: str
    chat_room_id: None
    status: Status
    failure_reason: str | None
    results: Any
    artifact_metadata_json: str | None
    request_params_json: str
    result_metadata_json: str | None
    requested_time: str
    updated_time: str


def row_status(row: ExecutionRow) -> Status:
    if row.status == "paused" and row.started_at is None:
        return "PENDING"
    return STATUSES[row.status]


def shown_time(micros: int) -> str:
    """``2026-01-15T10:30:00``: UTC, no zone, no fraction."""
    return utc_second(micros // SECOND)


def one_line(text: str) -> str:
    return " ".join(text.replace("\x00", "\ufffd").split())


def failure_reason(*, node_id: str, message: str, is_timeout: bool) -> str:
    """Node id and cause in one line; a timeout of the whole run starts with ``TIMEOUT``."""
    cause = one_line(message) or "failed without a message"
    if is_timeout:
        return f"TIMEOUT: {cause}"
    return f"{node_id}: {cause}" if node_id else cause


def shown_results(data: bytes) -> Any:
    """A flow's output as ``results``: an object as it is, anything else as ``{"output": value}``."""
    return msgspec.Raw(data) if data[:1] == b"{" else {"output": msgspec.Raw(data)}


# --- the 3.3 object -------------------------------------------------------------------------------------


async def request_body(gateway: Gateway, row: ExecutionRow) -> bytes:
    """The 3.3 object as compact JSON."""
    status = row_status(row)
    reason = None
    if status == "FAILED":
        reason = failure_reason(
            node_id=row.failed_node or "",
            message=row.error_message or row.error_type or "",
            is_timeout=row.status == "timed_out",
        )
    results = None
    if status == "COMPLETED":
        results = shown_results(await _json(gateway, row.output, row.output_ref))
    body = AbilityRequest(
        request_id=row.execution_id,
        chat_room_id=None,
        status=status,
        failure_reason=reason,
        results=results,
        artifact_metadata_json=None if row.files == "[]" else f'{{"inputs":{row.files},"outputs":[]}}',
        request_params_json=(await _json(gateway, row.input, row.input_ref)).decode(),
        result_metadata_json=await _result_metadata(gateway, row) if row.debug else None,
        requested_time=shown_time(row.created_at),
        updated_time=shown_time(row.updated_at),
    )
    return encode(body)


async def _json(gateway: Gateway, text: str | None, ref: str | None) -> bytes:
    """A value of the row, which for a large one only names the blob it is in."""
    if ref is None:
        return (text or "null").encode()
    return await asyncio.to_thread(gateway.blobs.get_bytes, msgspec.json.decode(ref, type=BlobRef))


async def _result_metadata(gateway: Gateway, row: ExecutionRow) -> str:
    """What a debug run's nodes did, folded from its events: only debug reads pay for it."""
    state = await asyncio.to_thread(_fold, gateway, row)
    nodes = [
        {
            "node_id": node_id,
            "status": node.status,
            "duration_ms": None if node.ended_at is None else (node.ended_at - node.started_at) // 1000,
            "attempts": node.attempt,
        }
        for node_id, node in (state.nodes.items() if state else ())
    ]
    usage = {
        "input_tokens": state.input_tokens if state else 0,
        "output_tokens": state.output_tokens if state else 0,
    }
    return encode({"nodes": nodes, "usage": usage}).decode()


def _fold(gateway: Gateway, row: ExecutionRow) -> ExecutionState | None:
    """The state as of the row's version, so that both parts of the body tell of the same moment."""
    state: ExecutionState | None = None
    for recorded in gateway.log.read(row.execution_id, 0, row.version):
        event: Any = recorded.event()
        state = begin(event) if state is None else evolve(state, event)
    return state


# --- errors ---------------------------------------------------------------------------------------------


def _render(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    return encode(
        {"error_code": fault.code, "message": message, "details": [_detail(each) for each in details]}
    )


def _detail(detail: Any) -> Any:
    """A pair of field and rule as the contract writes it; anything else as it is."""
    match detail:
        case (str(field), str(message)):
            return {"field": field, "message": message}
        case _:
            return detail


def envelope(settings: Settings) -> Envelope:
    """Every failure below the prefix: `error_code`, `message`, `details` (contract section 2)."""
    faults = {
        "route_not_found": Fault(404, "Not found.", "NOT_FOUND"),
        "method_not_allowed": Fault(405, "Method not allowed.", "METHOD_NOT_ALLOWED"),
        "body_too_large": Fault(413, "Request body too large.", "PAYLOAD_TOO_LARGE"),
        "unauthenticated": Fault(
            settings.ability_auth_failure_status, "API key is missing or invalid.", "UNAUTHORIZED"
        ),
        "forbidden": Fault(403, "API key lacks permission.", "FORBIDDEN"),
        "rate_limited": Fault(429, "Rate limit exceeded.", "RATE_LIMITED"),
        "too_many_streams": Fault(429, "Too many open streams.", "RATE_LIMITED"),
        "too_many_executions": Fault(429, "Too many unfinished requests.", "RATE_LIMITED"),
        "flow_not_found": Fault(404, "Ability not found.", "ABILITY_NOT_FOUND"),
        "execution_not_found": Fault(404, "Request not found.", "REQUEST_NOT_FOUND"),
        "unsupported_media_type": Fault(415, "Use multipart/form-data.", "UNSUPPORTED_MEDIA_TYPE"),
        "invalid_input": Fault(400, "params_json is not valid.", "INVALID_PARAMS_JSON"),
        "invalid_callback_url": Fault(400, "callback_url is not valid.", "INVALID_CALLBACK_URL"),
        "invalid_debug": Fault(400, "debug must be true or false.", "INVALID_DEBUG"),
        "invalid_request_ids": Fault(400, "Name 1 to 100 request_ids.", "INVALID_REQUEST_IDS"),
        "idempotency_in_progress": Fault(
            409, "Idempotency-Key still in progress.", "IDEMPOTENCY_IN_PROGRESS"
        ),
        "idempotency_key_reused": Fault(
            422, "Idempotency-Key reused with a different request.", "IDEMPOTENCY_KEY_REUSED"
        ),
        "conflict": Fault(409, "The request can't be cancelled: it has ended.", "CANCEL_FAILED"),
        "internal": Fault(500, "An unexpected error occurred.", "INTERNAL_ERROR"),
        "unavailable": Fault(503, "Service unavailable.", "UNAVAILABLE"),
    }
    return Envelope(prefix=PREFIX, faults=faults, render=_render)
