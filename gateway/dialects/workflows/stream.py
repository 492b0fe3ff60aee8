"""A workflow's runs as the contract's event stream (3.8): frames without `event:` lines, ids that only rise.

Whoever follows needs a key or a ticket (see `tickets`); the stream belongs to the workflow and goes on across
its runs until it is deleted, or for an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows import docs
from gateway.dialects.workflows.documents import subject_of
from gateway.dialects.workflows.tickets import installation_tickets
from gateway.dialects.workflows.views import (
    log_detail,
    message_object,
    progress_object,
    text_of,
    usage_object,
)
from gateway.dialects.workflows.wire import WORKFLOW, encode, iso, shown_status
from gateway.dialects.workflows.workflows import found
from gateway.envelopes import Problem
from gateway.happenings import (
    Happening,
    Logged,
    Message,
    Progress,
    RunEnded,
    RunStarted,
    StepBegan,
    StepEnded,
    TextDelta,
    UsageTotal,
)
from gateway.keys import READ
from gateway.routes import Operation, admit
from gateway.run_stream import follow_subject
from gateway.sse import EventStream, frame, last_event_id

KEEP_ALIVE = "keepalive"
STREAM_SECONDS_MAX = 3_600.0
"""How long a stream stays open (contract 3.8); the client may resume."""

FRAMES_EACH = 2
"""Frames of one happening, at most: a violation is logged, and told by itself."""


async def follow(call: Call) -> Response:
    await _admit(call)
    kept = await found(call)
    gateway, tenant, workflow_id = call.gateway, call.caller.tenant, kept.resource_id
    gateway.executions  # noqa: B018 - without hosts: 503 before the first byte
    after = last_event_id(call)

    async def is_gone() -> bool:
        return await gateway.registry.get(tenant, WORKFLOW, workflow_id) is None

    async def frames() -> AsyncIterator[bytes]:
        source = follow_subject(
            gateway,
            tenant,
            subject_of(workflow_id),
            after=after,
            until_terminal=call.query("until") == "terminal",
            frames_each=FRAMES_EACH,
            is_gone=is_gone,
        )
        async with aclosing(source):
            async for number, happening in source:
                told = b"".join(
                    _frame(each, kind, data, happening.at)
                    for each, (kind, data) in enumerate(payloads(happening), number)
                    if each > after
                )
                if told:
                    yield told

    return EventStream(call, frames(), keep_alive=KEEP_ALIVE, seconds_max=STREAM_SECONDS_MAX)


async def _admit(call: Call) -> None:
    """By key as everywhere, else by ticket. Raises: Problem."""
    ticket_text = call.query("ticket")
    if ticket_text is None:
        await admit(call, _KEYED)
        return
    tickets = await asyncio.to_thread(installation_tickets, call.gateway.settings)
    ticket = tickets.check(ticket_text, call.path["workflow_id"], call.gateway.clock())
    caller = None if ticket is None else await call.gateway.keys.caller(ticket.key_id)
    if ticket is None or caller is None or caller.tenant != ticket.tenant:
        raise Problem("unauthenticated")
    call.caller = caller
    call.gateway.limits.take(caller, call.answer_headers)


_KEYED = Operation(handler=follow, scope=READ, doc=docs.STREAM)


def _frame(number: int, kind: str, data: Any, at: int) -> bytes:
    return frame(number, encode({"id": number, "type": kind, "data": data, "timestamp": iso(at)}))


def payloads(happening: Happening) -> list[tuple[str, Any]]:
    """The frames of one happening, at most ``FRAMES_EACH``: type and data."""
    match happening:
        case RunStarted():
            return [("status", {"status": "running", "current_turn": 0})]
        case Logged():
            return _log(happening)
        case TextDelta():
            return [("message_delta", {"delta": happening.text})]
        case Message():
            shown = msgspec.structs.asdict(message_object(happening.message))
            plain = {name: value for name, value in shown.items() if value is not None}
            return [("message", {"content": None, **plain})]
        case UsageTotal():
            usage = usage_object(happening.usage)
            more = {
                "total_in": happening.usage.input_tokens,
                "total_out": happening.usage.output_tokens,
                "cost": happening.usage.cost,
                "cost_known": happening.usage.cost_known,
            }
            return [("usage", {**({} if usage is None else msgspec.structs.asdict(usage)), **more})]
        case Progress():
            return [("progress", progress_object(happening))]
        case RunEnded():
            status = shown_status(happening.status, happening.stop_reason)
            return [("status", {"status": status, "current_turn": happening.current_turn})]
        case StepBegan() | StepEnded():
            return []


def _log(log: Logged) -> list[tuple[str, Any]]:
    data: dict[str, Any] = {"event": log.event, "detail": log_detail(log)}
    # Beside the contract's fields: which call it is, and how it went.
    if log.event == "tool_call":
        data |= {"tool_input": log.tool_input, **_facts(log, "tool", "step")}
    elif log.event == "tool_result":
        facts = _facts(log, "tool", "step", "is_error", "duration_ms")
        data |= {"tool_output": log.tool_output, **facts}
    told: list[tuple[str, Any]] = [("log", data)]
    if log.event == "output_guardrail_violation":
        violations: Any = log.detail.get("violations") or ()
        told.append(("output_guardrail_violation", {"violations": [text_of(each) for each in violations]}))
    return told


def _facts(log: Logged, *names: str) -> dict[str, Any]:
    return {name: log.detail[name] for name in names if name in log.detail}
