"""/api/admin/executions: cancel, pause, resume and signal any execution, whatever door it came in by."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.house_api import answer, body_of, json_answer, json_request, refusal
from gateway.idempotency import request_digest
from gateway.keys import ADMIN
from gateway.routes import Doc, Handler, Operation, Resource
from runtime.commands import Pause, RequestCancel, Resume, Signal
from runtime.events import Json

PREFIX = "/api/admin/executions"


class CancelFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class SignalFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``signal_id`` makes a repeat harmless; each signal without one is new."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    payload: Json = None
    signal_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None


class NoFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Sent(msgspec.Struct, frozen=True):
    """``status`` as of ``version``, the last event of the execution once the command was recorded."""

    execution_id: str
    previous_status: str
    status: str
    version: int


async def cancel_execution(call: Call) -> Response:
    fields = await body_of(call, CancelFields)
    head = (call.gateway.clock(), call.caller.key_id, call.correlation_id)
    at, by, cause = head
    return await _send(call, RequestCancel(at=at, by=by, cause=cause, reason=fields.reason))


async def pause_execution(call: Call) -> Response:
    await body_of(call, NoFields)
    return await _send(call, Pause(at=call.gateway.clock(), by=call.caller.key_id, cause=call.correlation_id))


async def resume_execution(call: Call) -> Response:
    await body_of(call, NoFields)
    return await _send(
        call, Resume(at=call.gateway.clock(), by=call.caller.key_id, cause=call.correlation_id)
    )


async def signal_execution(call: Call) -> Response:
    fields = await body_of(call, SignalFields)

    async def serve(request_id: str) -> Response:
        # A retry by Idempotency-Key gets the same request id, hence the same signal.
        command = Signal(
            at=call.gateway.clock(),
            by=call.caller.key_id,
            cause=call.correlation_id,
            signal_id=fields.signal_id or request_id,
            name=fields.name,
            payload=fields.payload,
        )
        return await _send(call, command)

    return await call.gateway.idempotency.once(call, request_digest(msgspec.json.encode(fields)), serve)


async def _send(call: Call, command: RequestCancel | Pause | Resume | Signal) -> Response:
    execution_id = call.execution_id = call.path["execution_id"]
    reply = await call.gateway.executions.send(execution_id, command)
    # Inline summary: it is never behind the reply.
    row = await call.gateway.reads.execution(execution_id)
    status = row.status if row is not None else reply.previous_status
    version = row.version if row is not None else reply.version
    return answer(Sent(execution_id, reply.previous_status, status, version))


# --- documentation and routes ---------------------------------------------------------------------------

_SENT = {
    "execution_id": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
    "previous_status": "running",
    "status": "paused",
    "version": 7,
}
_UNKNOWN = refusal("No such execution.", "execution_not_found", "Execution not found.")


def _resource(
    verb: str, handler: Handler, model: type[msgspec.Struct], example: object, doc: Doc
) -> Resource:
    answers = {
        200: json_answer("Recorded", Sent, _SENT),
        404: _UNKNOWN,
        409: refusal("Its state does not allow this.", "conflict", "the execution is already completed"),
    }
    request = json_request(model, example, required=model is SignalFields)
    documented = msgspec.structs.replace(doc, request=request, answers=answers)
    path = f"{PREFIX}/{{execution_id}}/{verb}"
    return Resource(path, {"POST": Operation(handler=handler, scope=ADMIN, doc=documented)})


RESOURCES = (
    _resource(
        "cancel",
        cancel_execution,
        CancelFields,
        {"reason": "wrong input"},
        Doc(
            summary="Cancel an execution",
            description="Running nodes get 10 seconds, then are killed. Refused once it has ended.",
        ),
    ),
    _resource(
        "pause",
        pause_execution,
        NoFields,
        {},
        Doc(summary="Pause an execution", description="Running nodes end; no further one starts."),
    ),
    _resource("resume", resume_execution, NoFields, {}, Doc(summary="Resume a paused execution")),
    _resource(
        "signal",
        signal_execution,
        SignalFields,
        {"name": "approved", "payload": {"by": "ada"}, "signal_id": "approval-17"},
        Doc(
            summary="Send a signal to an execution",
            description="Kept until a node waits for it. A repeat of the same signal_id changes nothing.",
        ),
    ),
)
