"""The words of the External contract: envelope, codes, objects, and the rules its requests must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.envelopes import Envelope, Fault, Problem
from gateway.timestamps import utc_second

SOURCE = "external"
PREFIX = "/api/external"
VERSION = "1.0"

JSON = "application/json"
TEXT_MAX = 32_768
"""Characters of an input, a message or a content, after trimming."""

PAGE_DEFAULT, LIMIT_DEFAULT, LIMIT_MAX = 1, 20, 100
PAGE_MAX = 1_000_000_000

AGENT_RUN, TASK_RUN = "external-agent-exec-", "external-task-"
"""What shown execution ids begin with; the execution's own id follows."""

STATUSES: Mapping[str, str] = {
    "queued": "pending",
    "running": "running",
    "waiting": "running",
    "paused": "running",
    "cancelling": "cancelled",
    "cancelled": "cancelled",
    "completed": "completed",
    "failed": "failed",
    "timed_out": "failed",
}
"""Internal status to the contract's (section 2); total over both."""

TASK_STATUSES = ("pending", "running", "completed", "failed", "cancelled")

_encode = msgspec.json.Encoder().encode


# --- objects (section 2) --------------------------------------------------------------------------------


class Step(msgspec.Struct, frozen=True):
    """One step of a plan. ``input``: the action's arguments, as planned."""

    step: int
    mcp: str
    action: str
    input: Any


class Plan(msgspec.Struct, frozen=True):
    """``mcpWorkflow``. ``mcps``: each that a step names, once, described as in ``Mcp``."""

    mcps: tuple[dict[str, Any], ...]
    workflow: tuple[Step, ...]


class Mcp(msgspec.Struct, frozen=True, rename="camel"):
    """``auth_params``: names only; the values never leave the server."""

    name: str
    description: str
    category: str | None
    auth_required: bool
    auth_verified: bool
    auth_params: tuple[str, ...]


class Agent(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    name: str
    description: str
    status: str
    categories: tuple[str, ...]
    task_id: str | None
    usage_count: int
    related_questions: tuple[str, ...]
    created_at: str
    updated_at: str


class AgentDetails(Agent, frozen=True, rename="camel"):
    mcp_workflow: Plan | None = None


class Task(msgspec.Struct, frozen=True, rename="camel"):
    """``status``, ``result`` and ``completed_at`` are those of the latest run."""

    id: str
    title: str
    content: str
    status: str
    task_type: str
    mcp_workflow: Plan | None
    result: Any
    agent_id: str | None
    conversation_id: str | None
    created_at: str
    updated_at: str
    completed_at: str | None


class Pagination(msgspec.Struct, frozen=True, rename="camel"):
    page: int
    limit: int
    total: int
    total_pages: int


class Page(msgspec.Struct, frozen=True):
    """What a listing was asked for."""

    page: int
    limit: int

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.limit

    def of(self, total: int) -> Pagination:
        return Pagination(self.page, self.limit, total, -(-total // self.limit))


# --- requests -------------------------------------------------------------------------------------------


class Fields:
    """A JSON body's fields, read one by one; every broken rule is collected, then told at once."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._broken: list[tuple[str, str]] = []

    def text(self, name: str, most: int, *, required: bool = True) -> str:
        """A trimmed text; ``""`` for one that is absent and may be."""
        given = self._body.get(name)
        if given is None and not required:
            return ""
        if given is None:
            return self._refuse(name, "is required", "")
        if not isinstance(given, str):
            return self._refuse(name, "must be a string", "")
        trimmed = given.strip()
        if not 1 <= len(trimmed) <= most:
            return self._refuse(name, f"must have 1 to {most} characters", "")
        return trimmed

    def name(self, name: str, most: int) -> str:
        trimmed = self.text(name, most)
        if not trimmed.isprintable():
            return self._refuse(name, "must be printable", "")
        return trimmed

    def reference(self, name: str) -> str:
        """An id; absent, null and ``""`` are the same."""
        given = self._body.get(name)
        if given is None:
            return ""
        return given if isinstance(given, str) else self._refuse(name, "must be a string", "")

    def mapping(self, name: str) -> dict[str, Any]:
        given = self._body.get(name)
        if given is None:
            return {}
        if not isinstance(given, dict):
            return self._refuse(name, "must be an object", {})
        return cast("dict[str, Any]", given)

    def seconds(self, name: str, default: float, most: float) -> float:
        given = self._body.get(name)
        if given is None:
            return default
        if isinstance(given, bool) or not isinstance(given, int | float):
            return self._refuse(name, "must be a number", default)
        if not 0 < given <= most:
            return self._refuse(name, f"must be above 0 and at most {most:g}", default)
        return float(given)

    def done(self) -> None:
        """Raises: Problem invalid_input with all that was found."""
        if self._broken:
            raise invalid(*self._broken)

    def _refuse(self, name: str, rule: str, instead: Any) -> Any:
        self._broken.append((name, rule))
        return instead


def fields_of(call: Call, body: bytes) -> Fields:
    """Raises: Problem for a body that is no JSON object; an empty one counts as ``{}``."""
    return Fields(call.decoded(body, dict[str, Any]) or {})


def invalid(*broken: tuple[str, str]) -> Problem:
    return Problem("invalid_input", details=broken)


def page_of(call: Call) -> Page:
    """Raises: Problem invalid_input; a bad page or limit is refused, not clamped."""
    broken: list[tuple[str, str]] = []
    page = _whole(call, "page", PAGE_DEFAULT, PAGE_MAX, broken)
    limit = _whole(call, "limit", LIMIT_DEFAULT, LIMIT_MAX, broken)
    if broken:
        raise invalid(*broken)
    return Page(page, limit)


def _whole(call: Call, name: str, default: int, most: int, broken: list[tuple[str, str]]) -> int:
    text = call.query(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 18 and 1 <= int(text) <= most:
        return int(text)
    rule = (
        f"must be a whole number from 1 to {most}" if most < PAGE_MAX else "must be a whole number from 1 on"
    )
    broken.append((name, rule))
    return default


# --- answers --------------------------------------------------------------------------------------------


def iso(micros: int) -> str:
    """``2023-10-27T10:00:00.000Z``."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{utc_second(seconds)}.{rest // 1000:03d}Z"


def success(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = _encode({"success": True, "data": data})
    return Response(body, status, {"cache-control": "no-store", **(headers or {})}, JSON)


def as_object(value: Any) -> dict[str, Any]:
    """A result as the contract shows it: always an object (section 4.2)."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"output": value}


def _render(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    shown = [_detail(detail) for detail in details]
    return _encode({"success": False, "error": fault.code, "message": message, "details": shown})


def _detail(detail: Any) -> Any:
    if not isinstance(detail, tuple):
        return detail
    *where, rule = cast("tuple[str, ...]", detail)
    return {"field": ".".join(part for part in where if part) or "body", "message": rule}


FAULTS: Mapping[str, Fault] = {
    "route_not_found": Fault(404, "Not found", "NOT_FOUND"),
    "method_not_allowed": Fault(405, "Method not allowed", "METHOD_NOT_ALLOWED"),
    "body_too_large": Fault(413, "Request body too large", "PAYLOAD_TOO_LARGE"),
    "unauthenticated": Fault(401, "Invalid or missing API key", "UNAUTHORIZED"),
    "forbidden": Fault(403, "The API key does not allow this", "FORBIDDEN"),
    "rate_limited": Fault(429, "Too many requests", "RATE_LIMIT_EXCEEDED"),
    "too_many_streams": Fault(429, "Too many open streams", "RATE_LIMIT_EXCEEDED"),
    "too_many_executions": Fault(429, "Too many unfinished executions", "RATE_LIMIT_EXCEEDED"),
    "flow_not_found": Fault(404, "Not found", "NOT_FOUND"),
    "agent_not_found": Fault(404, "Agent not found", "NOT_FOUND"),
    "task_not_found": Fault(404, "Task not found", "NOT_FOUND"),
    "conversation_not_found": Fault(404, "Conversation not found", "NOT_FOUND"),
    "execution_not_found": Fault(404, "Execution not found", "NOT_FOUND"),
    "unsupported_media_type": Fault(415, "Send JSON as application/json", "UNSUPPORTED_MEDIA_TYPE"),
    "invalid_input": Fault(400, "Invalid request parameters", "INVALID_REQUEST"),
    "task_not_analyzed": Fault(400, "The task has no plan yet: analyze it first", "TASK_NOT_ANALYZED"),
    "mcp_auth_required": Fault(400, "The plan needs MCPs that are not authenticated", "MCP_AUTH_REQUIRED"),
    "task_not_completed": Fault(400, "The task is neither completed nor failed", "TASK_NOT_COMPLETED"),
    "request_timeout": Fault(408, "Execution timed out", "REQUEST_TIMEOUT"),
    "task_already_running": Fault(409, "The task is being executed", "TASK_ALREADY_RUNNING"),
    "agent_name_exists": Fault(409, "You have an agent of this name", "AGENT_NAME_EXISTS"),
    "conversation_busy": Fault(409, "Earlier turns of the conversation take too long", "CONVERSATION_BUSY"),
    "execution_cancelled": Fault(409, "The execution was cancelled", "EXECUTION_CANCELLED"),
    "idempotency_in_progress": Fault(
        409, "The request with this Idempotency-Key is still being accepted", "IDEMPOTENCY_IN_PROGRESS"
    ),
    "idempotency_key_reused": Fault(
        422, "Idempotency-Key was used with a different request", "IDEMPOTENCY_KEY_REUSED"
    ),
    "conflict": Fault(409, "The state does not allow this", "TASK_ALREADY_RUNNING"),
    "execution_failed": Fault(500, "The execution failed", "EXECUTION_FAILED"),
    "internal": Fault(500, "An unexpected error occurred", "INTERNAL_ERROR"),
    "unavailable": Fault(503, "Service unavailable", "SERVICE_UNAVAILABLE"),
}

ENVELOPE = Envelope(
    prefix=PREFIX,
    faults=FAULTS,
    render=_render,
    headers=((b"x-api-version", VERSION.encode()),),
)
