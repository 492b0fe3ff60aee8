"""The one mechanism around every request: correlation, routes, admission, failures, metrics.

Plain ASGI and one layer: each layer of middleware costs every request of every contract. Invariants: each
answer carries X-Correlation-Id; each failure, unmatched paths and crashes included, is worded by the
envelope of its path's prefix; a 500 shows nothing of the inside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from gateway.call import Call, ClientGone
from gateway.envelopes import HOUSE, Envelope, Problem, problem_of
from gateway.metrics import Metrics
from gateway.routes import Dialect, RouteTable, admit
from runtime.errors import DomainError

if TYPE_CHECKING:
    from gateway.context import Gateway

log = structlog.get_logger("gateway")

CORRELATION_ID_MAX = 128
"""Characters of a correlation id taken over from a caller; a longer or unprintable one is replaced."""

OPERATIONS = "operations"
"""The dialect of /health and the like: answered whatever is away."""

CLIENT_GONE = 499
"""Status that metrics show when the client left before its answer; it is never sent."""

_HTTP_CODES = {
    404: "route_not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


class Chassis:
    """ASGI application in front of ``fallback``, which serves what no dialect owns."""

    def __init__(
        self,
        fallback: ASGIApp,
        state: State,
        dialects: Sequence[Dialect],
        metrics: Metrics,
        log_requests: bool,
    ) -> None:
        self._fallback = fallback
        self._state = state
        self._routes = RouteTable(dialects)
        # Longest prefix first, so that a nested contract would win over the one around it.
        owned = {dialect.envelope.prefix: dialect.envelope for dialect in dialects if dialect.envelope.prefix}
        self._envelopes = sorted(owned.items(), key=lambda item: -len(item[0]))
        self._metrics = metrics
        self._log_requests = log_requests
        self._quiet_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        began = time.perf_counter()
        gateway: Gateway = self._state.gateway
        call = Call(scope, receive, gateway)
        _correlate(call)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *call.envelope.headers, *call.answer_headers]
            await send(message)

        try:
            await self._serve(call, answer)
        except ClientGone:
            status = CLIENT_GONE
        except Exception as error:
            if status:
                # Bytes are out already: the connection is all that can be closed.
                log.exception("answer_broken", **_fields(call))
            else:
                await self._refuse(call, error, answer)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.request(call.resource, status, seconds)
            if self._log_requests:
                log.info("request", status=status, ms=round(seconds * 1000, 2), **_fields(call))

    async def _serve(self, call: Call, send: Send) -> None:
        match = self._routes.match(call.url_path)
        if match is None:
            call.envelope = self._envelope_of(call.url_path)
            await self._fallback(call.scope, call.receive, send)
            return
        call.envelope = self._envelope_of(call.url_path)
        call.resource, call.path = match.dialect, match.values
        operation = match.resource.operation(call.method)
        if call.gateway.pulse is not None and match.dialect != OPERATIONS:
            call.gateway.pulse.check()
        await admit(call, operation)
        response = await operation.handler(call)
        await response(call.scope, call.receive, send)

    def _envelope_of(self, path: str) -> Envelope:
        for prefix, envelope in self._envelopes:
            if path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/"):
                return envelope
        return HOUSE

    async def _refuse(self, call: Call, error: Exception, send: Send) -> None:
        """Answer with what went wrong, in the envelope of the path."""
        problem = as_problem(error)
        status, body = call.envelope.word(problem)
        if problem.code == "internal":
            log.error("crash", exc_info=error, **_fields(call))
        elif status >= 500 and time.monotonic() >= self._quiet_until:
            # One line a second: an overload must not be made worse by its own log. Metrics count them all.
            self._quiet_until = time.monotonic() + 1.0
            log.warning("unavailable", reason=str(error), **_fields(call))
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": problem_headers(call.envelope, problem, status, len(body)),
            }
        )
        await send({"type": "http.response.body", "body": body})


def as_problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case DomainError():
            return problem_of(error)
        case HTTPException():
            code = _HTTP_CODES.get(error.status_code, "internal")
            return Problem(code, headers=dict(error.headers or {}))
        case _:
            return Problem("internal")


def problem_headers(
    envelope: Envelope, problem: Problem, status: int, length: int
) -> list[tuple[bytes, bytes]]:
    headers = {
        "content-type": envelope.media_type,
        "content-length": str(length),
        "cache-control": "no-store",
        **problem.headers,
    }
    if status == 401:
        headers["www-authenticate"] = "ApiKey"
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    elif status in (429, 503):
        headers["retry-after"] = "1"
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _correlate(call: Call) -> None:
    given = call.headers.get(b"x-correlation-id")
    if given and len(given) <= CORRELATION_ID_MAX and all(0x21 <= byte <= 0x7E for byte in given):
        call.correlation_id = call.given_correlation_id = given.decode("ascii")
    else:
        call.correlation_id = str(uuid7())
    call.answer_headers.append((b"x-correlation-id", call.correlation_id.encode("ascii")))


def _fields(call: Call) -> dict[str, str]:
    fields = {"request_id": call.correlation_id, "method": call.method, "path": call.url_path}
    if call.execution_id:
        fields["execution_id"] = call.execution_id
    return fields
