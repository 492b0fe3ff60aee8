"""What OpenAPI says about the Workflows API and its companion paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from pydantic import BaseModel

from gateway.dialects.workflows.bodies import CreateWorkflow, ImportWorkflows, Prompt, UpdateWorkflow
from gateway.dialects.workflows.wire import (
    Detail,
    ImportOutcome,
    ProgressObject,
    PromptObject,
    TaskObject,
    WorkflowObject,
)
from gateway.routes import Doc

_JSON = "application/json"
_IDEMPOTENCY: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "the same request again does nothing twice",
}
_PAGE: tuple[Mapping[str, Any], ...] = tuple(
    {"name": name, "in": "query", "schema": {"type": "integer"}, "description": description}
    for name, description in (
        ("limit", "1 to 500; without it all"),
        ("offset", "how many to pass over; X-Total-Count has the number of all"),
    )
)
_EXAMPLE = {"agent_id": "<AGENT_ID>", "model": "gpt-4.1", "max_turns": 10, "output_format": "markdown"}
_INVALID = {422: {"description": "The body breaks its schema: a list of type, loc, msg, input"}}
_WORKFLOW: Mapping[int, Mapping[str, Any]] = {
    200: {"description": "The workflow as it stands", "model": WorkflowObject}
}
_BUNDLE = {
    200: {
        "description": "A bundle that import takes as it is",
        "content": {
            _JSON: {
                "schema": {"type": "object"},
                "example": {
                    "version": "1.0",
                    "exported_at": "2026-01-15T10:30:00.000000+00:00",
                    "resource_type": "workflow",
                    "items": [_EXAMPLE],
                },
            }
        },
    }
}


def _request(model: type[BaseModel], example: Any = None) -> Mapping[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content: dict[str, Any] = {"schema": _inlined(schema, definitions)}
    if example is not None:
        content["example"] = example
    return {"required": True, "content": {_JSON: content}}


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """In one piece: the models here never contain themselves."""
    match part:
        case {"$ref": str(name)}:
            return _inlined(definitions[name.rpartition("/")[2]], definitions)
        case dict():
            fields = cast("dict[str, Any]", part)
            return {name: _inlined(value, definitions) for name, value in fields.items()}
        case list():
            return [_inlined(item, definitions) for item in cast("list[Any]", part)]
        case _:
            return part


CREATE = Doc(
    summary="Create a workflow",
    parameters=(_IDEMPOTENCY,),
    request=_request(CreateWorkflow, _EXAMPLE),
    answers={
        201: {"description": "Created", "model": WorkflowObject},
        400: {"description": "A value is not among those allowed"},
        404: {"description": "The agent is unknown"},
        **_INVALID,
    },
)
LIST = Doc(
    summary="Your workflows, oldest first",
    parameters=_PAGE,
    answers={200: {"description": "An array of workflow objects"}},
)
GET = Doc(summary="A workflow with the logs, messages and usage of its latest run", answers=_WORKFLOW)
UPDATE = Doc(
    summary="Change the keys that are present",
    description="Allowed during a run; takes effect at the next prompt.",
    request=_request(UpdateWorkflow, {"title": "Nightly report"}),
    answers={**_WORKFLOW, 400: {"description": "A value is not among those allowed"}, **_INVALID},
)
DELETE = Doc(
    summary="Delete a workflow; a running task is halted first",
    answers={204: {"description": "Deleted"}, 404: {"description": "Unknown, or deleted already"}},
)
PROMPT = Doc(
    summary="Send a prompt: the agent runs in the background",
    description="Answers once the run is durable. `stream_url` works without headers for 10 minutes.",
    parameters=(_IDEMPOTENCY,),
    request=_request(Prompt, {"prompt": "What happened last night?"}),
    answers={
        201: {"description": "The run is queued", "model": PromptObject},
        400: {"description": "Nothing to run, or the workflow's state does not allow it"},
        422: {"description": "The body breaks its schema, or a guardrail refuses the prompt"},
    },
)
HALT = Doc(
    summary="Halt the running task",
    answers={
        200: {"description": "The task ends halted", "model": Detail},
        400: {"description": "Nothing runs"},
    },
)
STREAM = Doc(
    summary="Follow the workflow's runs as server-sent events",
    description=(
        "Begins with the unfinished run's first event, else with what comes next; stays open across runs. "
        "There are no `event:` lines; the type stands in the data."
    ),
    parameters=(
        {
            "name": "until",
            "in": "query",
            "schema": {"type": "string", "enum": ["terminal"]},
            "description": "close after the next end; replays the latest run if none is unfinished",
        },
        {
            "name": "ticket",
            "in": "query",
            "schema": {"type": "string"},
            "description": "instead of a key: from the stream_url of a prompt",
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
            "description": "status, log, message_delta, message, usage, progress",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": (
                        'id: 1048576\ndata: {"id":1048576,"type":"status",'
                        '"data":{"status":"running","current_turn":0},'
                        '"timestamp":"2026-01-15T10:30:00.000000+00:00"}\n\n'
                    ),
                }
            },
        }
    },
)
INSTALL = Doc(
    summary="Install a skill",
    answers={**_WORKFLOW, 404: {"description": "Unknown skill"}, 409: {"description": "Installed already"}},
)
REMOVE = Doc(summary="Remove a skill", answers={**_WORKFLOW, 404: {"description": "Not installed"}})
EXPORT_ALL = Doc(summary="Export all workflows", answers=_BUNDLE)
EXPORT = Doc(summary="Export one workflow", answers=_BUNDLE)
IMPORT = Doc(
    summary="Import workflows",
    description="Items that name an unknown agent are told in `errors`; the others become new workflows.",
    parameters=(_IDEMPOTENCY,),
    request=_request(ImportWorkflows, {"items": [_EXAMPLE]}),
    answers={201: {"description": "What was made", "model": ImportOutcome}, **_INVALID},
)

TASKS = Doc(
    summary="Tasks of all workflows, newest first",
    parameters=_PAGE,
    answers={200: {"description": "An array of task summaries"}},
)
WORKFLOW_TASKS = Doc(
    summary="Tasks of a workflow, newest first",
    parameters=_PAGE,
    answers={200: {"description": "An array of task summaries"}},
)
TASK = Doc(
    summary="A task with its logs, messages and response",
    answers={200: {"description": "The task as it stands", "model": TaskObject}},
)
PROGRESS = Doc(
    summary="The plan a task works by",
    answers={200: {"description": "Empty when it shows none", "model": ProgressObject}},
)
STOP = Doc(
    summary="Halt a task",
    answers={
        202: {"description": "The task ends halted"},
        400: {"description": "It has ended"},
    },
)


def companion(
    kind: str, create: type[BaseModel], update: type[BaseModel], shown: type[msgspec.Struct]
) -> Mapping[str, Doc]:
    """By operation."""
    unknown = {404: {"description": f"The {kind} is unknown"}}
    one = {200: {"description": f"The {kind}", "model": shown}, **unknown}
    return {
        "create": Doc(
            summary=f"Create a {kind}",
            parameters=(_IDEMPOTENCY,),
            request=_request(create),
            answers={201: {"description": "Created", "model": shown}, **_INVALID},
        ),
        "list": Doc(
            summary=f"Your {kind}s, oldest first",
            parameters=(
                *_PAGE,
                {"name": "tag", "in": "query", "schema": {"type": "string"}, "description": "only with it"},
            ),
            answers={200: {"description": "An array"}},
        ),
        "get": Doc(summary=f"A {kind}", answers=one),
        "export_all": Doc(summary=f"Export all {kind}s", answers=_BUNDLE),
        "export": Doc(summary=f"Export a {kind}", answers={**_BUNDLE, **unknown}),
        "import": Doc(
            summary=f"Import {kind}s",
            parameters=(_IDEMPOTENCY,),
            request={"required": True, "content": {_JSON: {"schema": {"type": "object"}}}},
            answers={201: {"description": "What was made", "model": ImportOutcome}, **_INVALID},
        ),
        "update": Doc(
            summary=f"Change keys of a {kind}", request=_request(update), answers={**one, **_INVALID}
        ),
        "delete": Doc(summary=f"Delete a {kind}", answers={204: {"description": "Deleted"}, **unknown}),
    }
