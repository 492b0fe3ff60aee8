"""What OpenAPI says about the External API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.external.wire import JSON, TASK_STATUSES
from gateway.routes import Doc

_IDEMPOTENCY: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "the same request again starts nothing twice; a stream attaches to its run",
}
_RESUME: Mapping[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "integer"},
    "description": "resume after it",
}
_DONE: Mapping[str, Any] = {
    "name": "done",
    "in": "query",
    "schema": {"type": "boolean"},
    "description": "end with `data: [DONE]`",
}
_PAGE: tuple[Mapping[str, Any], ...] = (
    {"name": "page", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 1}},
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    },
)
_BAD = {"description": "A field breaks its rule; `details` lists {field, message}"}
_UNKNOWN = {"description": "No such thing here"}
_RUN_ENDS = {
    400: {"description": "A field breaks its rule, or an MCP is not authenticated"},
    404: _UNKNOWN,
    408: {"description": "The run took longer than its time-out"},
    409: {"description": "The run was cancelled, or the task is being executed"},
    500: {"description": "A step failed; `details` says which"},
}


def _data(description: str, example: Any) -> dict[str, Any]:
    body = {"success": True, "data": example}
    schema = {"type": "object", "properties": {"success": {"const": True}, "data": {"type": "object"}}}
    return {"description": description, "content": {JSON: {"schema": schema, "example": body}}}


def _body(example: Any, *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {JSON: {"schema": {"type": "object"}, "example": example}}}


def _events(example: str) -> dict[str, Any]:
    return {
        "description": "Frames `id: n` and `data: {event, data}`",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": example}},
    }


_AT = "2026-01-31T12:00:00.000Z"
_AGENT: dict[str, Any] = {
    "id": "0199a0b1",
    "name": "Market Report Assistant",
    "description": "An agent that generates market analysis reports automatically.",
    "status": "private",
    "categories": [],
    "taskId": "0199a0b0",
    "usageCount": 0,
    "relatedQuestions": [],
    "createdAt": _AT,
    "updatedAt": _AT,
}
_PLAN = {
    "mcps": [{"name": "assistant", "description": "A language model follows an instruction"}],
    "workflow": [{"step": 1, "mcp": "assistant", "action": "answer", "input": {"instruction": "Write it."}}],
}
_TASK: dict[str, Any] = {
    "id": "0199a0b0",
    "title": "Generate quarterly sales report",
    "content": "Please generate a detailed PDF sales report based on last quarter's data.",
    "status": "pending",
    "taskType": "mcp",
    "mcpWorkflow": None,
    "result": None,
    "agentId": None,
    "conversationId": None,
    "createdAt": _AT,
    "updatedAt": _AT,
    "completedAt": None,
}
_PAGINATION = {"page": 1, "limit": 20, "total": 1, "totalPages": 1}
_CANCELLED = {"executionId": "external-task-0199a0b2", "cancelled": True}
_EXECUTE = {"input": "I need a market analysis report.", "parameters": {"lang": "en"}, "timeout": 180}

HEALTH = Doc(
    summary="Health of the API",
    answers={
        200: _data(
            "It works",
            {
                "status": "healthy",
                "timestamp": _AT,
                "version": "1.0",
                "service": "mcp-server-external-api",
            },
        ),
        503: {"description": "The runtime is down"},
    },
)
INFO = Doc(summary="What this API is", answers={200: _data("Name, version, endpoints", {"version": "1.0"})})
LIST_AGENTS = Doc(
    summary="List agents: your own and the public ones",
    parameters=(*_PAGE, {"name": "category", "in": "query", "schema": {"type": "string"}}),
    answers={
        200: _data("One page, newest first", {"agents": [_AGENT], "pagination": _PAGINATION}),
        400: _BAD,
    },
)
SHOW_AGENT = Doc(
    summary="Show an agent",
    answers={200: _data("The agent", {"agent": {**_AGENT, "mcpWorkflow": _PLAN}}), 404: _UNKNOWN},
)
CREATE_AGENT = Doc(
    summary="Make an agent of a finished task",
    description="The agent keeps a copy of the task's plan.",
    parameters=(_IDEMPOTENCY,),
    request=_body({"taskId": "0199a0b0", "name": _AGENT["name"], "description": _AGENT["description"]}),
    answers={
        201: _data("The agent", {"agent": {**_AGENT, "mcpWorkflow": _PLAN}}),
        400: {"description": "A field breaks its rule, or the task is neither completed nor failed"},
        404: _UNKNOWN,
        409: {"description": "You have an agent of this name"},
    },
)
EXECUTE_AGENT = Doc(
    summary="Execute an agent and wait for the result",
    description="Makes a task, which stays readable when the caller goes away.",
    parameters=(_IDEMPOTENCY,),
    request=_body(_EXECUTE),
    answers={
        200: _data(
            "The result",
            {
                "taskId": "0199a0b2",
                "agentId": "0199a0b1",
                "result": {"output": "The report ..."},
                "status": "completed",
                "executionId": "external-agent-exec-0199a0b2",
            },
        ),
        **_RUN_ENDS,
    },
)
STREAM_AGENT = Doc(
    summary="Execute an agent and stream what happens",
    parameters=(_IDEMPOTENCY, _RESUME, _DONE),
    request=_body(_EXECUTE),
    answers={
        200: _events('id: 2\ndata: {"event":"task_created","data":{"taskId":"0199a0b2","title":"..."}}\n\n'),
        400: _BAD,
        404: _UNKNOWN,
    },
)
CANCEL_AGENT = Doc(
    summary="Cancel an execution of an agent",
    description="A repeat answers the same; after the end `cancelled` is false and `status` says why.",
    answers={200: _data("What the request did", _CANCELLED), 404: _UNKNOWN},
)
CHAT = Doc(
    summary="Chat with an agent",
    description="Without `conversationId` a conversation begins. Its turns are handled in order.",
    parameters=(_IDEMPOTENCY,),
    request=_body({"message": "Hello, what can you do?", "conversationId": None}),
    answers={
        200: _data(
            "The answer",
            {
                "conversationId": "0199a0b3",
                "response": {
                    "id": "0199a0b4",
                    "role": "assistant",
                    "content": "I write reports.",
                    "createdAt": _AT,
                    "taskId": None,
                    "usage": {"inputTokens": 20, "outputTokens": 4, "totalTokens": 24, "modelCalls": 1},
                },
            },
        ),
        400: _BAD,
        404: _UNKNOWN,
        408: {"description": "The turn took longer than 120 s; it leaves no trace"},
        409: {"description": "Earlier turns take too long"},
    },
)
LIST_TASKS = Doc(
    summary="List tasks",
    parameters=(
        *_PAGE,
        {"name": "status", "in": "query", "schema": {"type": "string", "enum": list(TASK_STATUSES)}},
    ),
    answers={200: _data("One page, newest first", {"tasks": [_TASK], "pagination": _PAGINATION}), 400: _BAD},
)
SHOW_TASK = Doc(summary="Show a task", answers={200: _data("The task", {"task": _TASK}), 404: _UNKNOWN})
CREATE_TASK = Doc(
    summary="Create a task",
    parameters=(_IDEMPOTENCY,),
    request=_body({"title": _TASK["title"], "content": _TASK["content"]}),
    answers={201: _data("The task", {"task": _TASK}), 400: _BAD},
)
ANALYZE = Doc(
    summary="Plan a task",
    description="A model plans the steps; the plan becomes a flow. Repeating it replaces the plan.",
    answers={
        200: _data(
            "The task with its plan",
            {
                "task": {**_TASK, "mcpWorkflow": _PLAN},
                "recommendedMCPs": [
                    {
                        "name": "assistant",
                        "description": "A language model follows an instruction",
                        "category": "assistant",
                        "authRequired": False,
                        "authVerified": True,
                        "authParams": [],
                    }
                ],
                "message": "Task analyzed successfully. Please authenticate required MCPs before execution.",
            },
        ),
        404: _UNKNOWN,
        408: {"description": "No plan within 60 s; the old one is kept"},
        409: {"description": "The task is being executed"},
        500: {"description": "No plan could be made; `details` says why"},
    },
)
EXECUTE_TASK = Doc(
    summary="Execute a task and wait for the result",
    parameters=(_IDEMPOTENCY,),
    request=_body({"timeoutSeconds": 600}, required=False),
    answers={
        200: _data(
            "The result",
            {
                "taskId": "0199a0b0",
                "title": _TASK["title"],
                "content": _TASK["content"],
                "result": {"output": "The report ..."},
                "executionTime": 5.2,
                "status": "completed",
            },
        ),
        **_RUN_ENDS,
    },
)
STREAM_TASK = Doc(
    summary="Execute a task and stream what happens",
    parameters=(_IDEMPOTENCY, _RESUME, _DONE),
    request=_body({"timeoutSeconds": 600}, required=False),
    answers={
        200: _events(
            'id: 1\ndata: {"event":"connection_established","data":{"taskId":"0199a0b0","status":"connected",'
            '"executionId":"external-task-0199a0b2"}}\n\n'
        ),
        400: {"description": "A field breaks its rule, or the task has no plan"},
        404: _UNKNOWN,
        409: {"description": "The task is being executed"},
    },
)
CANCEL_TASK = Doc(
    summary="Cancel an execution of a task",
    answers={200: _data("What the request did", {"taskId": "0199a0b0", **_CANCELLED}), 404: _UNKNOWN},
)
EXECUTIONS = Doc(
    summary="What the executions of a task did, step by step",
    answers={
        200: _data(
            "By run, then by step",
            {
                "taskId": "0199a0b0",
                "executions": [
                    {
                        "executionId": "external-task-0199a0b2",
                        "step": 1,
                        "mcp": "assistant",
                        "action": "answer",
                        "success": True,
                        "result": "The report ...",
                        "error": None,
                        "startedAt": _AT,
                        "executedAt": _AT,
                    }
                ],
            },
        ),
        404: _UNKNOWN,
    },
)
