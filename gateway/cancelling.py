"""Cancelling an execution for whatever contract asks (gateway rule G7): once, and repeated harmlessly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from runtime.commands import RequestCancel
from runtime.errors import InvalidTransition, NotFound, Unavailable
from runtime.state import TERMINAL

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.context import Reply
    from projections.execution_summary import ExecutionRow

SETTLE_SECONDS = 2.0
"""How long a refused cancel waits to see, in the summary, the end that refused it."""

LOOK_SECONDS = 0.005


async def cancel(call: Call, row: ExecutionRow) -> tuple[Reply | None, ExecutionRow]:
    """The reply, when this request cancelled it; else None, and the row that shows why it did not.

    Raises: Overloaded, Unavailable.
    """
    if not _is_open(row):
        return None, row
    command = RequestCancel(at=call.gateway.clock(), by=call.caller.key_id, cause=call.correlation_id)
    try:
        return await call.gateway.executions.send(row.execution_id, command), row
    except (InvalidTransition, NotFound):
        return None, await _settled(call, row)


def _is_open(row: ExecutionRow) -> bool:
    return row.status not in TERMINAL and row.cancel_requested_at is None


async def _settled(call: Call, row: ExecutionRow) -> ExecutionRow:
    """The row once it shows its end: a host may refuse on an end it is still committing."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    while _is_open(row):
        if loop.time() > deadline:
            raise Unavailable("a cancel was refused, but the execution shows no end")
        await asyncio.sleep(LOOK_SECONDS)
        row = await call.gateway.reads.execution(row.execution_id) or row
    return row
