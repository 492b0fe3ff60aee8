"""What can go wrong between a program and a server.

    ClientError
      Unreachable            no answer, also after every repeat; whether it was done may be unknown
      Refused                the server said no: .status, .code, .message, .details
        Unauthenticated      401: no key, or one that is unknown, revoked or expired
        Forbidden            403: the key lacks the scope
        NotFound             404: also what another tenant owns
        Conflict             409: the state does not allow this
        Invalid              every other 4xx: .details names field and rule
        Overloaded           429 and 503, also after every repeat: .retry_after in seconds
        ServerFailed         every other 5xx
      NotCompleted           the execution ended otherwise: .execution, .error_type, .node
        Failed, Cancelled, TimedOut
      BatchNotCompleted      the batch ended before its inputs did: .batch
      ItemFailed             one input of a map failed: .index, .error_type
      StillRunning           a wait was over before the execution or batch was; also a TimeoutError

Arguments that can't be right raise ValueError or TypeError before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from gateway.client.views import BatchSnapshot, Snapshot


class ClientError(Exception):
    """Anything that went wrong with a request or an execution; the branch says what to do."""


class Unreachable(ClientError):
    """``was_sent``: the request may have reached the server, so what it asks for may have been done."""

    def __init__(self, message: str, was_sent: bool = True) -> None:
        super().__init__(message, was_sent)
        self.message = message
        self.was_sent = was_sent

    def __str__(self) -> str:
        return self.message


class Refused(ClientError):
    """``code`` is the envelope's, empty where the contract has none; ``retry_after`` in seconds.

    ``correlation_id`` names the request in the server's log.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        details: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
        correlation_id: str = "",
    ) -> None:
        super().__init__(status, message, code, details, retry_after, correlation_id)
        self.status = status
        self.message = message
        self.code = code
        self.details = details
        self.retry_after = retry_after
        self.correlation_id = correlation_id

    def __str__(self) -> str:
        rules = "; ".join(map(describe_rule, self.details))
        return f"{self.message} ({rules})" if rules else self.message


class Unauthenticated(Refused):
    pass


class Forbidden(Refused):
    pass


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class Invalid(Refused):
    pass


class Overloaded(Refused):
    pass


class ServerFailed(Refused):
    pass


class NotCompleted(ClientError):
    """``execution`` as it ended."""

    def __init__(self, execution: Snapshot) -> None:
        super().__init__(execution)
        self.execution = execution
        self.node = execution.failed_node or ""
        self.error_type = execution.error.type if execution.error else ""

    def __str__(self) -> str:
        told = self.execution
        where = f" at node {self.node}" if self.node else ""
        why = f": {self.error_type}: {told.error.message}" if told.error else ""
        return f"execution {told.execution_id} of flow {told.flow_id} {told.status}{where}{why}"


class Failed(NotCompleted):
    pass


class Cancelled(NotCompleted):
    pass


class TimedOut(NotCompleted):
    pass


class BatchNotCompleted(ClientError):
    """``batch`` as it ended. What its inputs gave until then is among its results."""

    def __init__(self, batch: BatchSnapshot) -> None:
        super().__init__(batch)
        self.batch = batch

    def __str__(self) -> str:
        why = f": {self.batch.error}" if self.batch.error else ""
        return f"batch {self.batch.batch_id} of flow {self.batch.flow_id} {self.batch.status}{why}"


class ItemFailed(ClientError):
    """``index``: the input's place among all."""

    def __init__(self, index: int, error_type: str, message: str) -> None:
        super().__init__(index, error_type, message)
        self.index = index
        self.error_type = error_type
        self.message = message

    def __str__(self) -> str:
        return f"input {self.index}: {self.error_type}: {self.message}"


class StillRunning(ClientError, TimeoutError):
    """It goes on; wait for it again, or cancel it."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what = what
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.what} is still running after {self.seconds:g} s"


_BY_STATUS: Mapping[int, type[Refused]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Overloaded,
}
_BY_END: Mapping[str, type[NotCompleted]] = {"cancelled": Cancelled, "timed_out": TimedOut}


def refusal(status: int, body: bytes, headers: Mapping[str, str], not_found: str = "") -> Refused:
    """The error that an answer other than 2xx is. ``not_found`` replaces the words of a 404."""
    problem = _problem(body)
    message = _told(problem.get("message") or problem.get("detail")) or f"HTTP {status}"
    if status == 404 and not_found:
        message = not_found
    details = cast("list[dict[str, Any]]", problem.get("details") or [])
    kind = _BY_STATUS.get(status, Invalid if status < 500 else ServerFailed)
    wait = _seconds(headers.get("retry-after", ""))
    code, correlation_id = str(problem.get("code") or ""), headers.get("x-correlation-id", "")
    return kind(status, message, code, details, wait, correlation_id)


def end_of(execution: Snapshot) -> NotCompleted:
    """The error that an end other than completed is."""
    return _BY_END.get(execution.status, Failed)(execution)


def describe_rule(rule: Mapping[str, Any]) -> str:
    """``node a, field retry.attempts: must be ...`` of one broken rule."""
    places = [f"{name} {rule[name]}" for name in ("node", "field") if rule.get(name)]
    return f"{', '.join(places) or 'flow'}: {rule.get('rule', '')}"


def _problem(body: bytes) -> dict[str, Any]:
    """The envelope of the gateway's own APIs, or the contract's: ``{"error": {...}}``, ``{"detail": ""}``."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    fields = cast("dict[str, Any]", found)
    error = fields.get("error")
    return cast("dict[str, Any]", error) if isinstance(error, dict) else fields


def _told(detail: Any) -> str:
    """A text; a list of what is wrong where becomes one (workflows contract 2)."""
    if not isinstance(detail, list):
        return str(detail or "")
    faults = cast("list[dict[str, Any]]", detail)
    return "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in faults)


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
