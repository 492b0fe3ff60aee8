"""What went wrong in an agent run, as the error of its step: the types that contracts map to theirs.

    RateLimited, ModelAuthenticationError, ModelConnectionError, TimeoutError, ModelHTTPError, ModelError,
    ModelNotConfigured, GuardrailViolation, and what tools or settings name themselves (``RunFailed.kind``)

The message of an error with an HTTP status ends with `` (HTTP <status>)``.
"""

from typing import Any, cast

import httpx2
from pydantic_ai import exceptions as library

from actors.agents.tools.interface import ToolsUnavailable
from runtime.events import StepError

MESSAGE_CHARS_MAX = 2_000


class RunFailed(Exception):
    """The run ends with an error of its own naming. ``kind``: the type of its ``StepError``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message


class ModelNotConfigured(RunFailed):
    def __init__(self, message: str) -> None:
        super().__init__("ModelNotConfigured", message)


MODEL_FAULTS = (library.AgentRunError, httpx2.HTTPError, httpx2.StreamError, OSError)
"""What a call to a model may raise, besides cancellation."""

RUN_FAULTS = (*MODEL_FAULTS, RunFailed, ToolsUnavailable, library.UserError, ValueError)
"""What ends a run, and is told as it is; anything else is a fault of ours."""


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well succeed in a while: 429, 5xx, a broken connection, a cut stream."""
    match error:
        case library.ModelQuotaExceededError() | library.ModelRequestRejectedError():
            return False
        case library.ModelHTTPError(status_code=status):
            return status == 429 or status >= 500
        case library.UsageLimitExceeded() | library.ContentFilterError():
            return False
        case library.ModelAPIError() | library.UnexpectedModelBehavior():
            return True  # no status: the connection broke, or the answer was no answer
        case _:
            return isinstance(error, httpx2.HTTPError | httpx2.StreamError | OSError)


def retry_after(error: BaseException) -> float | None:
    """Seconds the provider asks to wait."""
    return error.retry_after if isinstance(error, library.ModelAPIError) else None


def step_error(error: BaseException, secret: str = "") -> StepError:
    """``error`` as it is recorded. ``secret`` is cut out: providers repeat a key they refuse."""
    kind, message = _named(error)
    if secret:
        message = message.replace(secret, "***")
    return StepError(type=kind, message=message[:MESSAGE_CHARS_MAX])


def _named(error: BaseException) -> tuple[str, str]:
    match error:
        case RunFailed() | ToolsUnavailable():
            return error.kind, error.message
        case library.ModelHTTPError():
            return _http_kind(error), f"{_provider_message(error)} (HTTP {error.status_code})"
        case library.ModelRateLimitError():
            return "RateLimited", _provider_message(error)
        case library.ModelAuthenticationError():
            return "ModelAuthenticationError", _provider_message(error)
        case library.ModelTimeoutError() | library.ModelRequestTimeout() | TimeoutError():
            return "TimeoutError", str(error) or "the model did not answer in time"
        case library.ModelConnectionError():
            return "ModelConnectionError", f"{error.model_name}: {error}"
        case httpx2.TimeoutException():
            return "TimeoutError", str(error) or "the model did not answer in time"
        case httpx2.HTTPError() | httpx2.StreamError() | OSError():
            return "ModelConnectionError", str(error) or type(error).__name__
        case library.UnexpectedModelBehavior():
            return "ModelError", error.message
        case library.AgentRunError() | library.UserError():
            return "ModelError", str(error)
        case _:
            return type(error).__name__, str(error) or type(error).__name__


def _http_kind(error: library.ModelHTTPError) -> str:
    if isinstance(error, library.ModelRateLimitError | library.ModelQuotaExceededError):
        return "RateLimited" if error.status_code == 429 else "ModelHTTPError"
    if isinstance(error, library.ModelAuthenticationError):
        return "ModelAuthenticationError"
    return "ModelHTTPError"


def _provider_message(error: library.ModelAPIError) -> str:
    """What the provider says, without the envelope it says it in."""
    body: Any = error.body
    if isinstance(body, dict):
        told = cast("dict[str, Any]", body)
        inner = told.get("error")
        told = cast("dict[str, Any]", inner) if isinstance(inner, dict) else told
        if isinstance(message := told.get("message"), str) and message:
            return f"{error.model_name}: {message}"
    if isinstance(body, str) and body:
        return f"{error.model_name}: {body[:200]}"
    if isinstance(error, library.ModelHTTPError):
        return f"{error.model_name} refused the request"
    return f"{error.model_name}: {error}"
