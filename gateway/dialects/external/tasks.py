"""Tasks: listed, shown, created, and what their runs did (sections 5.1, 5.2 and 5.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from gateway.dialects.external.records import (
    RUN_STATUSES,
    TASK,
    TaskDocument,
    cause_of,
    known,
    shown_task,
    shown_tasks,
)
from gateway.dialects.external.wire import (
    TASK_STATUSES,
    TEXT_MAX,
    fields_of,
    invalid,
    page_of,
    success,
)
from gateway.envelopes import Problem
from gateway.idempotency import request_digest

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource

TITLE_MAX, TITLE_CUT = 200, 30


async def list_tasks(call: Call) -> Response:
    page = page_of(call)
    status = call.query("status")
    if status is not None and status not in TASK_STATUSES:
        raise invalid(("status", f"must be one of {', '.join(TASK_STATUSES)}"))
    found, total = await call.gateway.registry.listing(
        call.caller.tenant,
        TASK,
        newest_first=True,
        limit=page.limit,
        offset=page.offset,
        run_statuses=() if status is None else RUN_STATUSES[status],
    )
    return success({"tasks": await shown_tasks(call.gateway, found), "pagination": page.of(total)})


async def show_task(call: Call) -> Response:
    return success({"task": await shown_task(call.gateway, await visible_task(call))})


async def create_task(call: Call) -> Response:
    body = await call.body()

    async def serve(task_id: str) -> Response:
        fields = fields_of(call, body)
        content = fields.text("content", TEXT_MAX)
        title = fields.text("title", TITLE_MAX, required=False)
        fields.done()
        task = TaskDocument(title=title or content[:TITLE_CUT], content=content)
        resource = await call.gateway.registry.create(
            call.caller.tenant, TASK, msgspec.to_builtins(task), cause_of(call), task_id
        )
        return success({"task": await shown_task(call.gateway, resource)}, 201)

    return await call.gateway.idempotency.once(call, request_digest(body), serve)


async def visible_task(call: Call) -> Resource:
    """The task named by the path. Raises: Problem task_not_found, also for another tenant's."""
    resource = await known(call, TASK, call.path["task_id"])
    if resource is None:
        raise Problem("task_not_found")
    return resource
