"""Halting a task (contract 3.7): a cancel of its execution, asked for once and repeated harmlessly."""

from __future__ import annotations

from starlette.responses import Response

from gateway import cancelling
from gateway.call import Call
from gateway.dialects.workflows.wire import Detail, answer
from gateway.envelopes import Problem
from gateway.registry import Resource
from projections.execution_summary import ExecutionRow
from runtime.state import TERMINAL


async def latest_row(call: Call, kept: Resource) -> ExecutionRow | None:
    """The execution of the workflow's latest run; None before the first, and while one is about to start."""
    run = kept.document.get("latest_run")
    return await call.gateway.reads.execution(run) if isinstance(run, str) and run else None


async def halt_row(call: Call, row: ExecutionRow) -> bool:
    """Whether the run ends halted: by this request, or one before while it winds down."""
    reply, row = await cancelling.cancel(call, row)
    return reply is not None or row.status not in TERMINAL


async def halt_latest(call: Call, kept: Resource) -> bool:
    """Halt the workflow's unfinished task; whether there was one."""
    row = await latest_row(call, kept)
    return row is not None and await halt_row(call, row)


async def halted(call: Call, kept: Resource) -> Response:
    """The answer of 3.7. Raises: Problem bad_state."""
    if kept.document.get("status") == "inactive":
        raise Problem("bad_state", "Workflow is inactive, cannot halt")
    if not await halt_latest(call, kept):
        raise Problem("bad_state", "No running task to halt")
    return answer(Detail("Halt signal sent"))
