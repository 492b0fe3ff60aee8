"""Waiting for a store that is away, instead of forgetting what has to be done."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_exponential_jitter,
)

from runtime.errors import Unavailable

log = structlog.get_logger(__name__)

WAIT_SECONDS_MAX = 5.0
"""Longest pause between two tries."""

Result = TypeVar("Result")


async def until_available(
    work: Callable[[], Awaitable[Result]], what: str, seconds_max: float | None = None
) -> Result:
    """The result of ``work``, repeated while it raises Unavailable; ``what`` names it in the log.

    Without ``seconds_max`` it ends only with success, another error, or cancellation of the caller.
    Raises: Unavailable after ``seconds_max``.
    """
    try:
        return await work()
    except Unavailable as error:
        log.warning("trying again", what=what, error=str(error))

    def note(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "trying again", what=what, error=str(error), seconds=round(state.seconds_since_start or 0)
        )

    async def again() -> Result:  # tenacity awaits only what is a coroutine function itself
        return await work()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_exponential_jitter(multiplier=0.05, max=WAIT_SECONDS_MAX, jitter=0.05),
        stop=stop_never if seconds_max is None else stop_after_delay(seconds_max),
        before_sleep=note,
        reraise=True,
    )
    return await retrying(again)
