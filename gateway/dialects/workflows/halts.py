"""Halting a task (contract 3.7): a cancel of its execution, asked for once and repeated harmlessly."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows.wire import Detail, answer
from gateway.envelopes import Problem
from gateway.registry import Resource
from projections.execution_summary import ExecutionRow
from runtime.commands import RequestCancel
from runtime.errors import InvalidTransition, NotFound, Unavailable
from runtime.state import TERMINAL

SETTLE_SECONDS = 2.0
"""How long a halt waits to see, in the summary, the end that refused it."""


async def latest_row(call: Call, kept: Resource) -> ExecutionRow | None:
    """The execution of the workflow's latest run; None before the first, and while one is about to start."""
    run = kept.document.get("latest_run")
    return await call.gateway.reads.execution(run) if isinstance(run, str) and run else None


async def halt_row(call: Call, row: ExecutionRow) -> bool:
    """Whether the run ends halted: by this request, or one before while it winds down."""
    if row.status in TERMINAL:
        return False
    if row.cancel_requested_at is not None:
        return True
    command = RequestCancel(at=call.gateway.clock(), by=call.caller.key_id, cause=call.correlation_id)
    try:
        await call.gateway.executions.send(row.execution_id, command)
    except (InvalidTransition, NotFound):
        row = await _settled(call, row)
        return row.status not in TERMINAL
    return True


async def halt_latest(call: Call, kept: Resource) -> bool:
    """Halt the workflow's unfinished task; whether there was one."""
    row = await latest_row(call, kept)
    return row is not None and await halt_row(call, row)


async def _settled(call: Call, row: ExecutionRow) -> ExecutionRow:
    """The row once it shows why a cancel was refused: a host may refuse on an end it is still committing."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    while row.status not in TERMINAL and row.cancel_requested_at is None:
        if loop.time() > deadline:
            raise Unavailable("a halt was refused, but the task shows no end")
        await asyncio.sleep(0.005)
        row = await call.gateway.reads.execution(row.execution_id) or row
    return row


async def halted(call: Call, kept: Resource) -> Response:
    """The answer of 3.7. Raises: Problem bad_state."""
    if kept.document.get("status") == "inactive":
        raise Problem("bad_state", "Workflow is inactive, cannot halt")
    if not await halt_latest(call, kept):
        raise Problem("bad_state", "No running task to halt")
    return answer(Detail("Halt signal sent"))
