"""/api/admin/queues: what waits, and why."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from gateway import queues
from gateway.call import Call
from gateway.house_api import (
    LIMIT,
    answer,
    iso_or_none,
    json_answer,
    page_size,
    parameter,
    tenant_of,
)
from gateway.keys import ADMIN
from gateway.queues import QueueStatus, WaitsFor
from gateway.routes import Doc, Operation, Resource

PREFIX = "/api/admin/queues"


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """``key`` null: executions of a flow without a key, which wait for a place on a host.

    ``running``: begun and not ended, wherever they live. ``waits_for``: null when nothing waits.
    """

    tenant: str
    flow_id: str
    key: str | None
    running: int
    waiting: int
    concurrency: int | None
    rate: str | None
    window_starts: int | None
    waits_for: WaitsFor | None
    next_start_at: str | None
    oldest_waiting_since: str | None


class Queues(msgspec.Struct, frozen=True):
    queues: list[Queue]


async def list_queues(call: Call) -> Response:
    # An admin sees every tenant unless one is named.
    tenant = None if call.query("tenant") is None else tenant_of(call)
    found = await queues.statuses(call.gateway, tenant, call.query("flow") or None, page_size(call))
    return answer(Queues([_shown(each) for each in found]))


def _shown(status: QueueStatus) -> Queue:
    row, rule = status.row, status.rule
    return Queue(
        tenant=row.tenant,
        flow_id=row.flow_id,
        key=row.queue_key or None,
        running=row.running,
        waiting=row.waiting,
        concurrency=rule.concurrency,
        rate=None if rule.rate is None else str(rule.rate),
        window_starts=status.window_starts,
        waits_for=status.waits_for,
        next_start_at=iso_or_none(status.next_start_at),
        oldest_waiting_since=iso_or_none(row.oldest_at),
    )


_EXAMPLE = {
    "queues": [
        {
            "tenant": "default",
            "flow_id": "report",
            "key": "acme",
            "running": 2,
            "waiting": 14,
            "concurrency": 2,
            "rate": "100/minute",
            "window_starts": 31,
            "waits_for": "slot",
            "next_start_at": None,
            "oldest_waiting_since": "2026-01-31T12:00:00.000000Z",
        }
    ]
}

RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": Operation(
                handler=list_queues,
                scope=ADMIN,
                doc=Doc(
                    summary="List queues with open executions, and what those that wait wait for",
                    description="The queue whose first execution waits longest comes first.",
                    parameters=(
                        parameter("tenant", "Only this tenant's; all without it."),
                        parameter("flow", "Only those of this flow."),
                        LIMIT,
                    ),
                    answers={200: json_answer("The queues", Queues, _EXAMPLE)},
                ),
            )
        },
    ),
)
