"""Why executions wait: the queues with open executions, their limits, and what one execution waits for.

Everything is read from the table of executions; nothing is asked of a host.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from gateway.context import Gateway
from projections import flows, queues
from projections.execution_summary import ExecutionRow
from projections.queues import QueueRow
from runtime.ids import FlowId, Micros, TenantId
from runtime.queues import QueueId, QueueRule, Turn

WaitsFor = Literal["slot", "rate", "place"]


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``row`` as stored, with the limits of the flow's latest version.

    ``window_starts``: executions started within the rate's window, as many as the rate allows at most.
    ``next_start_at``: when the rate lets the next one start, if it doesn't now.
    """

    row: QueueRow
    rule: QueueRule
    waits_for: WaitsFor | None
    window_starts: int | None
    next_start_at: Micros | None


async def statuses(
    gateway: Gateway, tenant: str | None, flow_id: str | None, limit: int
) -> list[QueueStatus]:
    """Queues in which executions are open, and flows whose executions wait for a place, the oldest first."""
    rows = await asyncio.to_thread(queues.listing, gateway.store, tenant, flow_id, limit)
    return [await _status(gateway, row) for row in rows]


async def _status(gateway: Gateway, row: QueueRow) -> QueueStatus:
    rule = await _rule(gateway, row.tenant, row.flow_id, "") if row.queue_key else None
    rule = rule or QueueRule()
    window_starts, next_start_at = await _rate_of(
        gateway, QueueId(row.tenant, row.flow_id, row.queue_key), rule
    )
    waits_for: WaitsFor | None = None
    if row.waiting:
        waits_for = _reason(rule, row.running, next_start_at)
    return QueueStatus(
        row=row, rule=rule, waits_for=waits_for, window_starts=window_starts, next_start_at=next_start_at
    )


def _reason(rule: QueueRule, running: int, next_start_at: Micros | None) -> WaitsFor:
    if rule.concurrency is not None and running >= rule.concurrency:
        return "slot"
    return "place" if next_start_at is None else "rate"


async def _rule(gateway: Gateway, tenant: str, flow_id: str, version: str) -> QueueRule | None:
    """The queue of that version of a flow, or of its latest one."""
    if not version:
        row = await asyncio.to_thread(flows.get, gateway.store, tenant, flow_id)
        if row is None:
            return None
        version = row.version
    flow = await gateway.catalogue.version(tenant, flow_id, version)
    return None if flow is None else flow.plan.queue


async def _rate_of(gateway: Gateway, queue: QueueId, rule: QueueRule) -> tuple[int | None, Micros | None]:
    rate = rule.rate
    if rate is None:
        return None, None
    now = gateway.clock()
    since = Micros(now - rate.period)
    starts = await asyncio.to_thread(queues.latest_starts, gateway.store, queue, since, rate.amount)
    if len(starts) < rate.amount:
        return len(starts), None
    return len(starts), Micros(starts[0][1] + rate.period)


async def waits_for(gateway: Gateway, row: ExecutionRow) -> str | None:
    """What a queued execution waits for, in one sentence; None for one that has begun or ended."""
    if row.started_at is not None or row.ended_at is not None:
        return None
    if not row.queue_key:
        return "a place on its host"
    queue = QueueId(TenantId(row.tenant), FlowId(row.flow_id), row.queue_key)
    rule = await _rule(gateway, row.tenant, row.flow_id, row.flow_version) or QueueRule()
    turn = Turn(0 if row.parent_id else 1, -row.priority, row.created_at, row.execution_id)
    running, ahead = await asyncio.to_thread(queues.place_of, gateway.store, queue, turn)
    _, next_start_at = await _rate_of(gateway, queue, rule)
    behind = f"; {ahead} come before it" if ahead else ""
    match _reason(rule, running, next_start_at):
        case "slot":
            held = f"{running} are held"
            return f"one of the {rule.concurrency} slots of its queue '{row.queue_key}', {held}{behind}"
        case "rate":
            return f"the rate of its queue '{row.queue_key}', {rule.rate}{behind}"
        case "place":
            return (
                f"a place on its host, first in its queue '{row.queue_key}'"
                if not ahead
                else (f"its turn in its queue '{row.queue_key}'{behind}")
            )
