"""Callback deliveries: a stream beside each execution that asked for one. Pure.

    (none) --schedule--> pending --delivered--> delivered
                         pending --failed-----> pending (due again) | abandoned

Gateway rule G9 (executions contract, ability contract): attempts at 0, 5 s, 30 s, 2 min, 10 min, 1 h, 3 h
and 6 h, give or take 20 %; ``Retry-After`` is honoured to one hour; 410 ends it. At least once: an attempt
whose outcome was not recorded is made again.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import msgspec
from msgspec.structs import replace

from runtime import events
from runtime.errors import Diverged, InvalidTransition
from runtime.events import Event
from runtime.ids import SECOND, ExecutionId, Micros, TenantId, callback_stream

ATTEMPTS_AT_SECONDS = (0, 5, 30, 120, 600, 3_600, 10_800, 21_600)
"""When each attempt is made, counted from the end of the execution."""

JITTER = 0.2

RETRY_AFTER_SECONDS_MAX = 3_600

GONE = 410

# Counted from the attempt before, so that a gateway that was down doesn't hurry through the late ones.
_PAUSES_SECONDS = tuple(later - earlier for earlier, later in pairwise(ATTEMPTS_AT_SECONDS))


class CallbackState(msgspec.Struct, frozen=True, kw_only=True):
    """``attempts`` made so far; ``due_at``: when the next one is, None when there is none."""

    originator_id: str
    version: int
    execution_id: ExecutionId
    tenant: TenantId
    url: str
    source: str
    status: Literal["pending", "delivered", "abandoned"]
    scheduled_at: int
    updated_at: int
    due_at: Micros | None
    attempts: int = 0
    last_error: str = ""
    last_status_code: int = 0


def evolve_callback(state: CallbackState | None, event: Event) -> CallbackState:
    """Raises: Diverged when the event can't follow this state."""
    version = 0 if state is None else state.version
    if event.originator_version != version + 1:
        raise Diverged(f"{event.originator_id}: version {event.originator_version} can't follow {version}")
    match event:
        case events.CallbackScheduled() if state is None:
            return CallbackState(
                originator_id=event.originator_id,
                version=1,
                execution_id=ExecutionId(event.execution_id),
                tenant=TenantId(event.tenant),
                url=event.url,
                source=event.source,
                status="pending",
                scheduled_at=event.at,
                updated_at=event.at,
                due_at=Micros(event.due_at),
            )
        case events.CallbackFailed() if state is not None and state.status == "pending":
            return replace(
                state,
                version=event.originator_version,
                updated_at=event.at,
                attempts=event.attempt,
                last_error=event.error,
                last_status_code=event.status_code,
                due_at=event.retry_at,
                status="pending" if event.retry_at is not None else "abandoned",
            )
        case events.CallbackDelivered() if state is not None and state.status == "pending":
            return replace(
                state,
                version=event.originator_version,
                updated_at=event.at,
                attempts=event.attempt,
                last_error="",
                last_status_code=event.status_code,
                due_at=None,
                status="delivered",
            )
        case _:
            raise Diverged(f"{event.originator_id}: {event.TOPIC} can't stand at version {version + 1}")


def fold_callback(history: Iterable[Event]) -> CallbackState | None:
    """None for an empty history."""
    state: CallbackState | None = None
    for event in history:
        state = evolve_callback(state, event)
    return state


def schedule(
    state: CallbackState | None,
    execution_id: ExecutionId,
    tenant: TenantId,
    url: str,
    source: str,
    *,
    at: Micros,
    corr: str = "",
) -> tuple[Event, ...]:
    """The first attempt is due at once. Scheduling twice records nothing more."""
    if state is not None:
        return ()
    return (
        events.CallbackScheduled(
            originator_id=callback_stream(execution_id),
            originator_version=1,
            at=at,
            corr=corr or execution_id,
            execution_id=execution_id,
            tenant=tenant,
            url=url,
            source=source,
            due_at=at,
        ),
    )


def deliver(state: CallbackState, status_code: int, *, at: Micros) -> tuple[Event, ...]:
    """An attempt was answered with 2xx. Raises: InvalidTransition when no attempt was due any more."""
    _check_pending(state)
    return (
        events.CallbackDelivered(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=max(at, state.updated_at),
            cause=f"v{state.version}",
            corr=state.execution_id,
            attempt=state.attempts + 1,
            status_code=status_code,
        ),
    )


def fail(
    state: CallbackState,
    error: str,
    *,
    at: Micros,
    draw: float,
    status_code: int = 0,
    retry_after_seconds: float | None = None,
    is_final: bool = False,
) -> tuple[Event, ...]:
    """An attempt failed; ``retry_at`` of the event says when the next is due, if there is one.

    ``draw``: random number in [0, 1) for the jitter. ``status_code`` 0: no answer came. ``is_final``: trying
    again can't help (e.g. the address is refused).

    Raises: InvalidTransition when no attempt was due any more.
    """
    _check_pending(state)
    attempt = state.attempts + 1
    now = Micros(max(at, state.updated_at))
    retry_at = None
    if status_code != GONE and not is_final:
        pause = pause_seconds(attempt, draw, retry_after_seconds)
        retry_at = None if pause is None else now + int(pause * SECOND)
    return (
        events.CallbackFailed(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=now,
            cause=f"v{state.version}",
            corr=state.execution_id,
            attempt=attempt,
            error=error,
            status_code=status_code,
            retry_at=retry_at,
        ),
    )


def pause_seconds(attempts_made: int, draw: float, retry_after_seconds: float | None = None) -> float | None:
    """How long to wait after the ``attempts_made``-th attempt failed; None when that was the last."""
    if attempts_made > len(_PAUSES_SECONDS):
        return None
    pause = _PAUSES_SECONDS[attempts_made - 1] * (1 - JITTER + 2 * JITTER * draw)
    if retry_after_seconds is not None:
        pause = max(pause, min(retry_after_seconds, RETRY_AFTER_SECONDS_MAX))
    return pause


def _check_pending(state: CallbackState) -> None:
    if state.status != "pending":
        raise InvalidTransition(f"{state.originator_id} is {state.status}")
