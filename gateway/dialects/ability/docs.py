"""What OpenAPI says about the Ability API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.dialects.ability.wire import AbilityRequest
from gateway.routes import Doc

_FIELDS: Mapping[str, Any] = {
    "params_json": {
        "type": "string",
        "description": "The ability's input parameters: a JSON object as text or as a file part",
    },
    "callback_url": {
        "type": "string",
        "description": "Where to POST the result; signed, retried for 12 hours",
    },
    "debug": {"type": "string", "enum": ["true", "false", "1", "0"], "default": "false"},
    "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
}
_EXAMPLE = {"params_json": '{"inputData": "Hello"}', "debug": "false"}
_FORM: Mapping[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["params_json"], "properties": _FIELDS},
            "example": _EXAMPLE,
        },
        "application/x-www-form-urlencoded": {
            "schema": {
                "type": "object",
                "required": ["params_json"],
                "properties": {name: field for name, field in _FIELDS.items() if name != "files"},
            },
            "example": _EXAMPLE,
        },
    },
}
_IDEMPOTENCY: Mapping[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 255},
    "description": "the same request again starts nothing twice",
}
_TRUE: Mapping[str, Any] = {
    "description": "Cancelled",
    "content": {"application/json": {"schema": {"type": "boolean"}, "example": True}},
}
_BAD_FORM = {
    400: {"description": "A field breaks its rule"},
    413: {"description": "Too large, or too many files"},
}

RUN = Doc(
    summary="Run an ability",
    description="Answers with the request id once the request is durable.",
    parameters=(_IDEMPOTENCY,),
    request=_FORM,
    answers={
        200: {
            "description": "The request id",
            "content": {
                "application/json": {
                    "schema": {"type": "string", "format": "uuid"},
                    "example": "a1b2c3d4-e5f6-7890-abcd-ef1234567890",
                }
            },
        },
        **_BAD_FORM,
    },
)

STREAM = Doc(
    summary="Run an ability and stream what its nodes put out",
    description=(
        "Frames `{event_type}:` and a line of JSON, for clients that read it so; standard server-sent events "
        "for those that accept `text/event-stream` (or ask with `?framing=sse`)."
    ),
    parameters=(
        _IDEMPOTENCY,
        {"name": "framing", "in": "query", "schema": {"type": "string", "enum": ["sse", "plain"]}},
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "integer"},
            "description": "resume after it",
        },
    ),
    request=_FORM,
    answers={
        200: {
            "description": "node_output frames, then one final_response or error",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'final_response:\n{"request_id":"a1b2","status":"COMPLETED","results":{}}\n\n',
                }
            },
        },
        **_BAD_FORM,
    },
)

STATUS = Doc(
    summary="Status and result of a request",
    answers={200: {"description": "The request as it stands", "model": AbilityRequest}},
)

CANCEL = Doc(
    summary="Cancel a request",
    description="A request that was cancelled before answers the same, so a retry is safe.",
    answers={200: _TRUE, 409: {"description": "The request has completed or failed"}},
)

CANCEL_MANY = Doc(
    summary="Cancel up to 100 requests",
    description="With an unknown id nothing is cancelled; otherwise every unfinished one is.",
    parameters=(
        {
            "name": "request_ids",
            "in": "query",
            "required": True,
            "explode": True,
            "schema": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 100},
        },
    ),
    answers={
        200: _TRUE,
        400: {"description": "No ids, or more than 100"},
        409: {"description": "Some had completed or failed; the others are cancelled"},
    },
)
