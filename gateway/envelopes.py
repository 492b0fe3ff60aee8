"""What goes wrong in a request, and how each contract words it.

A `Problem` is raised anywhere behind the chassis; it names a code. Each contract has one `Envelope`: a
table from code to status and wording, total over `CODES`, and a function that writes the body. The
prefix of the path chooses the envelope, for unmatched routes and crashes too (gateway rule G1).
Runtime errors become problems by `problem_of`; nothing of theirs but refusals' own words reaches a body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from runtime import errors

CODES = (
    "route_not_found",
    "method_not_allowed",
    "body_too_large",
    "unauthenticated",
    "forbidden",
    "rate_limited",
    "too_many_streams",
    "too_many_executions",
    "flow_not_found",
    "execution_not_found",
    "unsupported_media_type",
    "invalid_input",
    "idempotency_in_progress",
    "idempotency_key_reused",
    "conflict",
    "internal",
    "unavailable",
)
"""Every dialect's table has at least these; it may add codes of its own."""


class Problem(Exception):
    """A request that can't be served. ``message`` replaces the table's wording when the caller may know.

    ``details``: what the dialect's envelope can list (pairs of field path and rule, or its own shape).
    ``headers`` are added to the answer; ``retry_after`` in seconds becomes Retry-After.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        details: Sequence[Any] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details
        self.headers = dict(headers or {})
        self.retry_after = retry_after


class Fault(msgspec.Struct, frozen=True):
    """One row of a dialect's table: HTTP status, default wording, and the dialect's own code if any."""

    status: int
    message: str
    code: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """How one contract words its failures. ``render(fault, message, details)`` writes the body.

    ``headers`` stand on every answer below the prefix, successes and unmatched paths included.
    """

    prefix: str
    faults: Mapping[str, Fault]
    render: Callable[[Fault, str, Sequence[Any]], bytes]
    media_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def word(self, problem: Problem) -> tuple[int, bytes]:
        """Status and body for a problem. A code the table lacks is our bug and shows as internal."""
        fault = self.faults.get(problem.code) or self.faults["internal"]
        return fault.status, self.render(fault, problem.message or fault.message, problem.details)


_PROBLEM_CODES: Mapping[type[Exception], str] = {
    errors.NotFound: "execution_not_found",
    errors.InvalidInput: "invalid_input",
    errors.InvalidGraph: "invalid_input",
    errors.Refused: "conflict",
    # A writer that lost its version again and again tells nothing about the request itself.
    errors.Conflict: "unavailable",
    errors.Unavailable: "unavailable",
    errors.Diverged: "internal",
    errors.DomainError: "internal",
    errors.InvariantViolated: "internal",
}
"""Branch of the error tree to problem code; the nearest base class decides."""


def problem_of(error: Exception) -> Problem:
    """The problem a runtime error is to the caller."""
    for cls in type(error).__mro__:
        code = _PROBLEM_CODES.get(cls)
        if code is None:
            continue
        match error:
            case errors.InvalidInput():
                return Problem(code, str(error), error.problems)
            case errors.InvalidGraph():
                return Problem(code, str(error), error.problems)
            case errors.Overloaded():
                return Problem(code, retry_after=error.retry_after_seconds)
            case errors.Unavailable() | errors.Conflict():
                return Problem(code, retry_after=1)
            case errors.Refused() if code == "conflict":
                return Problem(code, str(error))
            case _:
                return Problem(code)
    return Problem("internal")


def _render_house(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    body: dict[str, Any] = {"code": fault.code, "message": message}
    if details:
        body["details"] = details
    return msgspec.json.encode({"error": body})


HOUSE = Envelope(
    prefix="",
    faults={
        "route_not_found": Fault(404, "Not found.", "not_found"),
        "method_not_allowed": Fault(405, "Method not allowed.", "method_not_allowed"),
        "body_too_large": Fault(413, "Request body too large.", "body_too_large"),
        "unauthenticated": Fault(401, "API key is missing or invalid.", "unauthenticated"),
        "forbidden": Fault(403, "API key lacks permission.", "forbidden"),
        "rate_limited": Fault(429, "Rate limit exceeded.", "rate_limited"),
        "too_many_streams": Fault(429, "Too many open streams.", "too_many_streams"),
        "too_many_executions": Fault(429, "Too many unfinished executions.", "too_many_executions"),
        "flow_not_found": Fault(404, "Flow not found.", "flow_not_found"),
        "execution_not_found": Fault(404, "Execution not found.", "execution_not_found"),
        "unsupported_media_type": Fault(415, "Unsupported media type.", "unsupported_media_type"),
        "invalid_input": Fault(422, "Invalid request.", "invalid_input"),
        "idempotency_in_progress": Fault(
            409, "Idempotency-Key still in progress.", "idempotency_in_progress"
        ),
        "idempotency_key_reused": Fault(
            422, "Idempotency-Key reused with a different request.", "idempotency_key_reused"
        ),
        "conflict": Fault(409, "The state does not allow this.", "conflict"),
        "internal": Fault(500, "An unexpected error occurred.", "internal"),
        "unavailable": Fault(503, "Service unavailable.", "unavailable"),
    },
    render=_render_house,
)
"""For every path no contract owns: the gateway's own APIs and unknown paths."""
