"""What the handlers of this contract share: who asks, pages, and a create that a repeat can't double."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows.wire import answer
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from gateway.registry import Resource
from projections.resources import LIST_MAX
from runtime.administration import Cause
from runtime.errors import AlreadyExists

PAGE_MAX = 500


def cause_of(call: Call) -> Cause:
    return Cause(
        at=call.gateway.clock(),
        by=call.caller.key_id,
        cause=call.correlation_id,
        corr=call.given_correlation_id,
    )


def page_of(call: Call) -> tuple[int, int]:
    """``limit`` and ``offset``; without them everything. Raises: Problem invalid_input."""
    return _number(call, "limit", 1, PAGE_MAX, LIST_MAX), _number(call, "offset", 0, 10**9, 0)


def _number(call: Call, name: str, least: int, most: int, default: int) -> int:
    text = call.query(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise _out_of_bounds(name, "int_parsing", "Input should be a valid integer", text)
    if int(text) < least:
        rule = f"Input should be greater than or equal to {least}"
        raise _out_of_bounds(name, "greater_than_equal", rule, text)
    if int(text) > most:
        raise _out_of_bounds(name, "less_than_equal", f"Input should be less than or equal to {most}", text)
    return int(text)


def _out_of_bounds(name: str, kind: str, message: str, text: str) -> Problem:
    detail = {"type": kind, "loc": ["query", name], "msg": message, "input": text}
    return Problem("invalid_input", details=[detail])


async def once(call: Call, body: bytes, serve: Callable[[str], Awaitable[Response]]) -> Response:
    """The answer of ``serve``; with an Idempotency-Key (gateway rule G6) the one that was given before.

    ``serve`` gets an id for what it makes, the same one when it has to be asked again.
    """
    digest = request_digest(body) if b"idempotency-key" in call.headers else ""
    return await call.gateway.idempotency.once(call, digest, serve)


async def created_once(
    call: Call,
    body: bytes,
    kind: str,
    document: Callable[[], Awaitable[Mapping[str, Any]]],
    shown: Callable[[Resource], Any],
) -> Response:
    """201 with the new resource; with an Idempotency-Key the same one again.

    ``document`` checks the request and gives what is kept; it is asked only when the request is a new one.
    """
    gateway = call.gateway

    async def serve(resource_id: str) -> Response:
        given = await document()
        try:
            kept = await gateway.registry.create(call.caller.tenant, kind, given, cause_of(call), resource_id)
        except AlreadyExists:
            # The gateway that had this request before got so far; what it made is the answer.
            before = await gateway.registry.get(call.caller.tenant, kind, resource_id)
            if before is None:
                raise
            kept = before
        return answer(shown(kept), 201)

    return await once(call, body, serve)
