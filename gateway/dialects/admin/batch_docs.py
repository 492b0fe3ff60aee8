"""What batches look like on the wire, and what OpenAPI says about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from gateway.batch_documents import Format
from gateway.batch_progress import Counts
from gateway.dialects.admin.failed_items import PAGE_EXAMPLE, PLACE, FailedItemPage
from gateway.house_api import LIMIT, TENANT, json_answer, json_request, parameter, refusal, schema_of
from gateway.routes import Doc

PREFIX = "/api/admin/batches"

CONCURRENCY, CONCURRENCY_MAX = 64, 1_000
"""Items in flight: by default, and at most."""

INLINE_MAX = 10_000
"""Inputs that stand in a JSON body; more come as a file."""

Concurrency = Annotated[int, msgspec.Meta(ge=1, le=CONCURRENCY_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``inputs``: objects. ``source``: where the server reads them. One of them."""

    flow: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    inputs: Annotated[list[Any], msgspec.Meta(max_length=INLINE_MAX)] | None = None
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=2_048)] | None = None
    format: Format = ""
    concurrency: Concurrency = CONCURRENCY
    name: Name = ""


class FormFields(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the file in a form, as texts."""

    flow: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    format: Format = ""
    concurrency: Concurrency = CONCURRENCY
    name: Name = ""


class CancelFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class NoFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class RoundShown(msgspec.Struct, frozen=True):
    """``items`` None: not known before the source's end."""

    executions: tuple[str, ...]
    items: int | None


class BatchShown(msgspec.Struct, frozen=True, kw_only=True):
    """``status``: queued, running, paused, cancelling, completed, failed, timed_out, cancelled or archived.

    A batch completes when every item has ended, however many failed. ``rate``: items a second, lately or, at
    the end, over the last round. ``source``: the address, or the file's name.
    """

    batch_id: str
    name: str
    flow_id: str
    flow_version: str
    status: str
    counts: Counts
    rate: float | None
    seconds_left: float | None
    concurrency: int
    source: str
    error: str | None
    created_at: str
    created_by: str
    started_at: str | None
    ended_at: str | None
    rounds: list[RoundShown]


class BatchList(msgspec.Struct, frozen=True):
    """``total``: of all pages."""

    batches: list[BatchShown]
    total: int


# --- documentation --------------------------------------------------------------------------------------

_ID = "0198c2f4-7d1e-7b3a-9c55-0242ac120002"
_SHOWN: dict[str, Any] = {
    "batch_id": _ID,
    "name": "orders of May",
    "flow_id": "hello",
    "flow_version": "3f6d0b7a91c2e854",
    "status": "running",
    "counts": {
        "total": 1000,
        "queued": 536,
        "running": 64,
        "completed": 398,
        "failed": 2,
        "cancelled": 0,
    },
    "rate": 312.5,
    "seconds_left": 1.9,
    "concurrency": 64,
    "source": "orders.jsonl",
    "error": None,
    "created_at": "2026-01-31T12:00:00.000000Z",
    "created_by": "first",
    "started_at": "2026-01-31T12:00:00.010000Z",
    "ended_at": None,
    "rounds": [{"executions": ["0198c2f4-7d1e-7b3a-9c55-0242ac120003"], "items": 1000}],
}
_UNKNOWN = refusal("No such batch.", "batch_not_found", "Batch not found.")
_ENDED = refusal("Its state does not allow this.", "conflict", "the batch is already completed")
_NEW = {"flow": "hello", "inputs": [{"who": "Ada"}, {"who": "Grace"}], "concurrency": 64}
_RESUME = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Resume behind this event; also as the query last_event_id.",
    "schema": {"type": "integer"},
}


def _batch(description: str) -> dict[str, Any]:
    return json_answer(description, BatchShown, _SHOWN)


def _create_request() -> dict[str, Any]:
    form: dict[str, Any] = {
        "type": "object",
        "required": ["flow", "inputs"],
        "properties": {
            **schema_of(FormFields)["properties"],
            "inputs": {"type": "string", "format": "binary", "description": "JSON Lines, CSV or Parquet"},
        },
    }
    request = json_request(NewBatch, _NEW)
    example = {"flow": "hello", "inputs": "people.jsonl", "concurrency": "64"}
    request["content"]["multipart/form-data"] = {"schema": form, "example": example}
    return request


def _message(summary: str, description: str) -> Doc:
    return Doc(
        summary=summary,
        description=description,
        parameters=(TENANT,),
        request=json_request(NoFields, {}, required=False),
        answers={200: _batch("The batch behind it"), 404: _UNKNOWN, 409: _ENDED},
    )


def _file(media_type: str) -> dict[str, Any]:
    return {media_type: {"schema": {"type": "string", "format": "binary"}}}


DOCS: Mapping[tuple[str, str], Doc] = {
    ("", "GET"): Doc(
        summary="List batches, newest first",
        parameters=(LIMIT, parameter("offset", "Batches left out.", "integer", 0), TENANT),
        answers={200: json_answer("One page", BatchList, {"batches": [_SHOWN], "total": 1})},
    ),
    ("", "POST"): Doc(
        summary="Run a flow over many inputs",
        description="Every row is the input of one execution. `inputs` stand in the JSON body or come as a "
        "file in a form; `source` names a place the hosts read from, and takes an admin key. A row "
        "that the flow can't take is a failed item. Repeatable by Idempotency-Key.",
        parameters=(TENANT,),
        request=_create_request(),
        answers={
            201: _batch("It is recorded, and starts"),
            404: refusal("No such flow.", "flow_not_found", "Flow not found."),
            422: refusal(
                "The file can't be read, or a field breaks a rule.",
                "invalid_input",
                "inputs: orders.jsonl, line 3: not a JSON value",
                [{"field": "inputs", "rule": "orders.jsonl, line 3: not a JSON value"}],
            ),
        },
    ),
    ("/{batch}", "GET"): Doc(
        summary="Show a batch with its counts, rate and time left",
        parameters=(TENANT,),
        answers={200: _batch("The batch"), 404: _UNKNOWN},
    ),
    ("/{batch}/events", "GET"): Doc(
        summary="Follow a batch as server-sent events",
        description="One event whenever it got further, with the batch as it then is; ends with the batch.",
        parameters=(_RESUME, TENANT),
        answers={
            200: {
                "description": "Events until the batch ends",
                "content": {
                    "text/event-stream": {
                        "schema": {"type": "string"},
                        "example": 'id: 1042\ndata: {"batch_id":"...","status":"running"}\n\n',
                    }
                },
            },
            404: _UNKNOWN,
        },
    ),
    ("/{batch}/items", "GET"): Doc(
        summary="List a batch's failed items, in the order of inputs",
        parameters=(
            parameter("status", "Which items: failed.", example="failed"),
            LIMIT,
            PLACE,
            TENANT,
        ),
        answers={200: json_answer("One page", FailedItemPage, PAGE_EXAMPLE), 404: _UNKNOWN},
    ),
    ("/{batch}/results", "GET"): Doc(
        summary="All results as one file, in the order of inputs",
        description="What is there so far while the batch runs. A retried item has its latest outcome; one "
        "that never ran has none. Parquet: index, output (JSON text), error_type, error_message.",
        parameters=(parameter("format", "jsonl or parquet.", example="jsonl"), TENANT),
        answers={
            200: {
                "description": "The file",
                "content": {
                    "application/jsonl": {
                        "schema": {"type": "string"},
                        "example": '{"index":0,"output":"Hello Ada!"}\n'
                        '{"index":1,"error":{"type":"InvalidInput","message":"..."}}\n',
                    },
                    **_file("application/vnd.apache.parquet"),
                },
            },
            404: _UNKNOWN,
        },
    ),
    ("/{batch}/pause", "POST"): _message("Pause a batch", "Items that run end; no further one begins."),
    ("/{batch}/resume", "POST"): _message("Resume a paused batch", ""),
    ("/{batch}/cancel", "POST"): Doc(
        summary="Cancel a batch",
        description="Items that run are cancelled, no further one begins. What has ended keeps its outcome.",
        parameters=(TENANT,),
        request=json_request(CancelFields, {"reason": "wrong file"}, required=False),
        answers={200: _batch("The batch behind it"), 404: _UNKNOWN, 409: _ENDED},
    ),
    ("/{batch}/retry-failed", "POST"): _message(
        "Run a batch's failed items again",
        "A further round over what failed, once the batch has ended. Repeatable by Idempotency-Key.",
    ),
}
