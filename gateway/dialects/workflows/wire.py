"""How the workflows contract words times, statuses, objects and failures (its sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from gateway.envelopes import Envelope, Fault
from gateway.timestamps import utc_second
from projections.execution_summary import ExecutionRow

SOURCE = "workflows"
WORKFLOW, AGENT, SKILL, GUARDRAIL = "workflow", "agent", "skill", "guardrail"
"""Kinds of resources this contract speaks of."""

TaskStatus = Literal["pending", "running", "completed", "max_turns_reached", "failed", "halted"]

JSON = "application/json"
NO_STORE: Mapping[str, str] = {"cache-control": "no-store"}

encode = msgspec.json.Encoder().encode


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, {**NO_STORE, **(headers or {})}, JSON)


def no_content() -> Response:
    return Response(None, 204, dict(NO_STORE))


def iso(micros: int) -> str:
    """``2026-01-15T10:30:00.123456+00:00``."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{utc_second(seconds)}.{rest:06d}+00:00"


def iso_or_none(micros: int | None) -> str | None:
    return None if micros is None else iso(micros)


# --- statuses -------------------------------------------------------------------------------------------

_STATUSES: Mapping[str, TaskStatus] = {
    "queued": "pending",
    "running": "running",
    "waiting": "running",
    "paused": "running",
    "cancelling": "halted",
    "cancelled": "halted",
    "completed": "completed",
    "failed": "failed",
    "timed_out": "failed",
}
"""Internal status to the contract's; total. A completed run that its turns ended is told by its output."""


def task_status(row: ExecutionRow, stop_reason: str = "") -> TaskStatus:
    """``stop_reason``: that of a completed run's output."""
    if row.status == "paused" and row.started_at is None:
        return "pending"
    return shown_status(row.status, stop_reason)


def shown_status(status: str, stop_reason: str = "") -> TaskStatus:
    if status == "completed" and stop_reason == "max_turns":
        return "max_turns_reached"
    return _STATUSES[status]


def is_unfinished(row: ExecutionRow) -> bool:
    """Whether the task still runs in this contract's eyes: a halted one doesn't, though it may wind down."""
    return row.ended_at is None and row.cancel_requested_at is None


# --- objects --------------------------------------------------------------------------------------------


class UsageObject(msgspec.Struct, frozen=True):
    """``total_premium_requests`` is a figure of the original's provider: here always 0."""

    total_input_tokens: int
    total_output_tokens: int
    total_cache_read_tokens: int
    total_cache_write_tokens: int
    total_premium_requests: float
    total_cost: float


class LogObject(msgspec.Struct, frozen=True):
    timestamp: str
    event: str
    detail: str


class MessageObject(msgspec.Struct, frozen=True):
    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class WorkflowObject(msgspec.Struct, frozen=True, kw_only=True):
    """All keys always present. ``logs``, ``messages``, ``current_turn``, ``usage``: of the latest run."""

    id: str
    title: str | None
    agent_id: str
    github_user: str
    model: str
    max_turns: int
    current_turn: int
    session_id: str | None
    skill_ids: list[str]
    skill_tags: list[str]
    status: Literal["active", "running", "inactive"]
    output_format: str
    infinite_session: bool
    caveman: bool
    bypass_memory: bool
    auto_memory: bool
    tsv_tool_results: bool
    reasoning_effort: str | None
    guardrail_ids: list[str]
    guardrail_tags: list[str]
    repo_url: str | None
    repo_branch: str | None
    repo_token_name: str | None
    credential_overrides: dict[str, str]
    webhook_url: str | None
    error_webhook_url: str | None
    usage: UsageObject | None
    logs: list[LogObject]
    messages: list[MessageObject]
    task_count: int
    last_task_status: TaskStatus | None
    last_task_at: str | None
    created_at: str
    updated_at: str


class PromptObject(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt answers: the run is queued, and nothing of it is known yet."""

    workflow_id: str
    task_id: str
    status: Literal["running"] = "running"
    current_turn: int = 0
    max_turns: int
    response: None = None
    output_format: str
    infinite_session: bool
    caveman: bool
    tsv_tool_results: bool
    usage: None = None
    logs: list[LogObject] = []
    messages: list[MessageObject] = []
    stream_url: str


class TodoObject(msgspec.Struct, frozen=True):
    id: int
    title: str
    status: str


class ProgressObject(msgspec.Struct, frozen=True):
    todos: list[TodoObject] = []
    current_step: int | None = None
    percent_complete: float = 0.0


class TaskSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a workflow; ``prompt`` is the effective one."""

    id: str
    workflow_id: str
    workflow_title: str | None
    agent_name: str | None
    prompt: str
    status: TaskStatus
    worker: str | None
    model: str | None
    reasoning_effort: str | None
    tool_calls: int
    started_at: str | None
    finished_at: str | None
    elapsed_seconds: float | None
    created_at: str


class TaskObject(TaskSummary, frozen=True, kw_only=True):
    celery_task_id: None = None
    response: str | None
    progress: ProgressObject | None
    logs: list[LogObject]
    messages: list[MessageObject]
    usage: UsageObject | None


class SkillObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str = ""
    description: str = ""
    instructions: str = ""
    tags: list[str] = []
    created_at: str
    updated_at: str


class AgentObject(msgspec.Struct, frozen=True, kw_only=True):
    """Made through any contract; fields its own contract doesn't know have their defaults."""

    id: str
    name: str = ""
    description: str = ""
    system_prompt: str = ""
    model: str | None = None
    mcp_server_ids: list[str] = []
    mcp_server_tags: list[str] = []
    tool_definitions: list[dict[str, Any]] = []
    knowledge_source_ids: list[str] = []
    knowledge_tags: list[str] = []
    builtin_tools: list[str] = []
    custom_tool_ids: list[str] = []
    provider_id: str | None = None
    created_at: str
    updated_at: str


class GuardrailObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str = ""
    guardrail_type: str = "prompt"
    tags: list[str] = []
    enabled: bool = True
    prompt_config: dict[str, Any] | None = None
    request_config: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    created_at: str
    updated_at: str


class ImportOutcome(msgspec.Struct, frozen=True):
    created: int
    errors: list[str]
    ids: list[str]


class Detail(msgspec.Struct, frozen=True):
    detail: str


# --- failures -------------------------------------------------------------------------------------------


def _render(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    """``details`` are the list of a body that breaks its schema; everything else is one text."""
    return encode({"detail": [_listed(each) for each in details] if details else message})


def _listed(detail: Any) -> Any:
    """Pairs of field and rule come from shared code (e.g. about a header) and are worded like the others."""
    match detail:
        case (str(field), str(rule)):
            return {"type": "value_error", "loc": [field], "msg": rule, "input": None}
        case _:
            return detail


FAULTS: Mapping[str, Fault] = {
    "route_not_found": Fault(404, "Not Found"),
    "method_not_allowed": Fault(405, "Method Not Allowed"),
    "body_too_large": Fault(413, "Request body too large"),
    "unauthenticated": Fault(401, "Invalid or missing API key"),
    "forbidden": Fault(403, "API key lacks permission"),
    "rate_limited": Fault(429, "Rate limit exceeded"),
    "too_many_streams": Fault(429, "Rate limit exceeded"),
    "too_many_executions": Fault(429, "Rate limit exceeded"),
    "flow_not_found": Fault(404, "Not Found"),
    "execution_not_found": Fault(404, "Task not found"),
    "unsupported_media_type": Fault(415, "Unsupported Media Type"),
    "invalid_input": Fault(422, "Invalid request"),
    "idempotency_in_progress": Fault(409, "Idempotency-Key still in progress"),
    "idempotency_key_reused": Fault(422, "Idempotency-Key reused with a different request"),
    "conflict": Fault(409, "The state does not allow this"),
    "internal": Fault(500, "Internal Server Error"),
    "unavailable": Fault(503, "Service Unavailable"),
    # This contract's own:
    "workflow_not_found": Fault(404, "Workflow not found"),
    "agent_not_found": Fault(404, "Agent not found"),
    "skill_not_found": Fault(404, "Skill not found"),
    "guardrail_not_found": Fault(404, "Guardrail not found"),
    "not_installed": Fault(404, "Skill not installed in this workflow"),
    "already_installed": Fault(409, "Skill already installed"),
    "bad_value": Fault(400, "Bad request"),
    "bad_state": Fault(400, "The workflow's state does not allow this"),
    "guardrail_violated": Fault(422, "A guardrail refused the prompt"),
}


def envelope(prefix: str) -> Envelope:
    """Every failure below ``prefix``: ``{"detail": ...}`` (contract section 2)."""
    return Envelope(prefix=prefix, faults=FAULTS, render=_render)
