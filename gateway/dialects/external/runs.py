"""Runs of tasks and conversations: at most one unfinished at a time, started once, waited for.

Who may move a resource's ``latest_run``, and what holds after a crash:

    (none or ended) --claim--> claimed, no execution yet --start--> running --> ended
    claimed --unclaim--> what it was before          the start was refused: nothing was created

A claim whose execution never came counts for ``CLAIM_SECONDS``; then it is as if it had not been made. The
claim is one change of the resource, so of two gateways one loses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway import cancelling
from gateway.context import Gateway
from gateway.dialects.external.records import cause_of
from gateway.dialects.external.wire import AGENT_RUN, STATUSES, TASK_RUN
from gateway.envelopes import Problem
from gateway.run_stream import whole_event
from gateway.run_view import RunFold, RunView
from projections import execution_summary
from runtime.errors import Unavailable
from runtime.event_log import Recorded
from runtime.events import Json
from runtime.ids import SECOND

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from projections.execution_summary import ExecutionRow
    from runtime.plan import Step as FlowStep

CLAIM_SECONDS = 15

GRACE_SECONDS = 15.0
"""How much longer than a run's own time-out a caller waits for its end, e.g. while its host is away."""

RETRY_SECONDS = 0.25


def shown_id(task_type: str, execution_id: str) -> str:
    return (AGENT_RUN if task_type == "agent" else TASK_RUN) + execution_id


def execution_id_of(shown: str) -> str:
    """``""`` for what can't be an id of this contract."""
    for prefix in (AGENT_RUN, TASK_RUN):
        if shown.startswith(prefix) and shown.isprintable():
            return shown.removeprefix(prefix)
    return ""


def is_unfinished(row: ExecutionRow) -> bool:
    """A run whose cancel was accepted is over in every view, though its nodes may wind down (G7)."""
    return row.ended_at is None and row.cancel_requested_at is None


# --- claim ------------------------------------------------------------------------------------------------


async def claim(call: Call, resource: Resource, execution_id: str, busy: str) -> Resource:
    """Make ``execution_id`` the resource's one unfinished run. Claiming it again is harmless.

    Raises: Problem ``busy`` while another run is unfinished.
    """
    store, at = call.gateway.store, call.gateway.clock()

    def decide(known: Resource) -> Mapping[str, Json]:
        latest = str(known.document.get("latest_run") or "")
        if latest == execution_id:
            return {}
        previous = str(known.document.get("previous_run") or "")
        if latest:
            row = execution_summary.get(store, latest)
            claimed_at = cast("int", known.document.get("claimed_at") or 0)
            if is_unfinished(row) if row is not None else claimed_at > at - CLAIM_SECONDS * SECOND:
                raise Problem(busy)
            previous = latest if row is not None else previous
        return {"latest_run": execution_id, "previous_run": previous, "claimed_at": at}

    return await call.gateway.registry.change(
        resource.tenant, resource.kind, resource.resource_id, decide, cause_of(call)
    )


async def unclaim(call: Call, resource: Resource, execution_id: str) -> None:
    """Nothing was started: the resource has its former run again."""

    def decide(known: Resource) -> Mapping[str, Json]:
        if known.document.get("latest_run") != execution_id:
            return {}
        return {"latest_run": known.document.get("previous_run") or "", "claimed_at": 0}

    await call.gateway.registry.change(
        resource.tenant, resource.kind, resource.resource_id, decide, cause_of(call)
    )


# --- the end --------------------------------------------------------------------------------------------


async def end_of(
    gateway: Gateway, execution_id: str, steps: Mapping[Any, FlowStep], timeout_seconds: float
) -> RunView:
    """The run once it has ended. Raises: Problem request_timeout when even its end takes too long."""
    try:
        async with asyncio.timeout(timeout_seconds + GRACE_SECONDS):
            while True:
                try:
                    return await _followed(gateway, execution_id, steps)
                except Unavailable:
                    await asyncio.sleep(RETRY_SECONDS)  # behind, or the store is away: from the beginning
    except TimeoutError:
        raise Problem("request_timeout") from None


async def _followed(gateway: Gateway, execution_id: str, steps: Mapping[Any, FlowStep]) -> RunView:
    fold = RunFold(steps)
    source: AsyncIterator[Any] = gateway.executions.follow(execution_id)
    async with aclosing(cast("Any", source)) as items:
        async for item in items:
            recorded = cast("Recorded", item)
            event = await whole_event(gateway, recorded)
            fold.apply(recorded.position, event)
            if fold.is_ended:
                return fold.view()
    raise Unavailable("a run's events ended before the run")


def refused(view: RunView, task_id: str | None, shown: str, step: int | None) -> Problem | None:
    """What a caller who waited is told of a run that did not complete."""
    if view.status == "completed":
        return None
    detail: dict[str, Any] = {"taskId": task_id, "executionId": shown}
    match view.status:
        case "cancelled":
            return Problem("execution_cancelled", details=[detail])
        case "timed_out":
            return Problem("request_timeout", details=[detail])
        case _:
            message = failure_message(view)
            return Problem("execution_failed", details=[{**detail, "step": step, "message": message}])


def failure_message(view: RunView) -> str:
    return view.error.message if view.error is not None else "The execution failed"


# --- cancel ---------------------------------------------------------------------------------------------


class Cancellation(msgspec.Struct, frozen=True):
    """``status``: why it was too late; empty when the run is cancelled."""

    cancelled: bool
    status: str = ""


async def cancel(call: Call, row: ExecutionRow) -> Cancellation:
    """Cancelled also when it was before, so a retry is safe."""
    reply, row = await cancelling.cancel(call, row)
    if reply is not None:
        return Cancellation(True)
    status = STATUSES[row.status]
    return Cancellation(True) if status == "cancelled" else Cancellation(False, status)
