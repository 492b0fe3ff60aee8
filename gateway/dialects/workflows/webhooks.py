"""Webhooks (contract 3.12): completed tells ``webhook_url``, failed ``error_webhook_url``, no other end does.

Which URLs count was decided when the run was asked for: both stand in the execution's ``callback_url``, with
a space between them. Delivery is the gateway's own (gateway rule G9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from gateway.context import Gateway
from gateway.dialects.workflows.documents import document_of, workflow_id_of
from gateway.dialects.workflows.views import elapsed_seconds, response_text
from gateway.dialects.workflows.wire import WORKFLOW, encode, iso
from projections.execution_summary import ExecutionRow
from runtime.events import BlobRef

ERROR_TYPES: Mapping[str, str] = {
    "RateLimited": "rate_limit_exceeded",
    "ModelAuthenticationError": "authentication_error",
    "ModelConnectionError": "connection_error",
    "TimeoutError": "timeout_error",
    "ModelHTTPError": "http_error",
    "ModelError": "api_error",
}
"""Type of a run's error to the contract's; anything else is internal_error."""

_STATUS_CODE = re.compile(r"\(HTTP (\d{3})\)$")


def both_urls(webhook_url: str | None, error_webhook_url: str | None) -> str:
    """As they stand in the execution; empty when there is neither. A URL holds no space."""
    return f"{webhook_url or ''} {error_webhook_url or ''}" if webhook_url or error_webhook_url else ""


class _Stop(msgspec.Struct, frozen=True):
    """What of a completed run's output decides who is told."""

    stop_reason: str = ""


def webhook_of(gateway: Gateway, row: ExecutionRow) -> str:
    """Who is told of the run's end; empty: nobody. Blocks."""
    webhook_url, _, error_webhook_url = row.callback_url.partition(" ")
    match row.status:
        case "completed" if webhook_url:
            return webhook_url if _stop_reason(gateway, row) != "max_turns" else ""
        case "failed" | "timed_out":
            return error_webhook_url
        case _:
            return ""


def _stop_reason(gateway: Gateway, row: ExecutionRow) -> str:
    if row.output_ref is not None:
        data = gateway.blobs.get_bytes(msgspec.json.decode(row.output_ref, type=BlobRef))
    else:
        data = (row.output or "{}").encode()
    return msgspec.json.decode(data, type=_Stop).stop_reason


async def render_webhook(gateway: Gateway, row: ExecutionRow) -> bytes:
    """The body for whoever `webhook_of` names."""
    view = await gateway.agent_runs.view(row)
    workflow_id = workflow_id_of(row.subject)
    kept = await gateway.registry.get(row.tenant, WORKFLOW, workflow_id)
    body: dict[str, Any] = {
        "task_id": row.execution_id,
        "workflow_id": workflow_id,
        "workflow_title": None if kept is None else document_of(kept).title,
        "prompt": view.prompt,
    }
    if row.status == "completed":
        text = response_text(view)
        given = cast("dict[str, Any]", view.input) if isinstance(view.input, dict) else {}
        is_json = given.get("output_format") == "json"
        body["response"] = encode({"response": text}).decode() if is_json else text
        body["status"] = "completed"
    else:
        body["status"] = "failed"
    body["elapsed_seconds"] = elapsed_seconds(row, row.updated_at)
    body["timestamp"] = iso(row.ended_at if row.ended_at is not None else row.updated_at)
    if row.status != "completed":
        body |= error_fields(row)
    return encode(body)


def error_fields(row: ExecutionRow) -> dict[str, Any]:
    message = row.error_message or row.error_type or "The task failed"
    code = _STATUS_CODE.search(message)
    is_late = row.status == "timed_out"
    return {
        "error_type": "timeout_error" if is_late else ERROR_TYPES.get(row.error_type or "", "internal_error"),
        "error_message": message,
        "error_code": None if code is None else int(code[1]),
    }
