"""Tasks, `/api/tasks` (contract 3.13): the runs of workflows, newest first."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows import docs
from gateway.dialects.workflows.documents import subject_of, workflow_id_of
from gateway.dialects.workflows.halts import halt_row
from gateway.dialects.workflows.requests import once, page_of
from gateway.dialects.workflows.views import Views, progress_object
from gateway.dialects.workflows.wire import SOURCE, WORKFLOW, ProgressObject, answer, envelope
from gateway.dialects.workflows.workflows import found
from gateway.envelopes import Problem
from gateway.keys import READ, RUN
from gateway.routes import Dialect, Operation, Resource
from gateway.settings import Settings
from projections import execution_summary
from projections.execution_summary import ExecutionRow

PREFIX = "/api/tasks"
TASKS_MAX = 500
"""Of one list."""


async def _visible(call: Call) -> ExecutionRow:
    """The task the path names. Raises: Problem execution_not_found."""
    row = await call.gateway.reads.execution(call.path["task_id"])
    if row is None or row.tenant != call.caller.tenant or row.source != SOURCE:
        raise Problem("execution_not_found")
    # A deleted workflow takes its tasks with it (3.5).
    if await call.gateway.registry.get(row.tenant, WORKFLOW, workflow_id_of(row.subject)) is None:
        raise Problem("execution_not_found")
    call.execution_id = row.execution_id
    return row


async def list_all(call: Call) -> Response:
    filters = {"tenant": call.caller.tenant, "source": SOURCE}
    limit, offset = page_of(call)
    wanted = min(limit, TASKS_MAX)

    def read() -> list[ExecutionRow]:
        rows, _ = execution_summary.search(call.gateway.store, filters, None, min(TASKS_MAX, offset + wanted))
        return rows[offset:]

    rows = await asyncio.to_thread(read)
    ids = list(dict.fromkeys(workflow_id_of(row.subject) for row in rows))
    kept = await call.gateway.registry.get_many(call.caller.tenant, WORKFLOW, ids)
    alive = {each.resource_id for each in kept}
    return await _listed(call, [row for row in rows if workflow_id_of(row.subject) in alive])


async def of_workflow(call: Call) -> Response:
    kept = await found(call)
    limit, offset = page_of(call)
    rows = await asyncio.to_thread(
        execution_summary.runs_of,
        call.gateway.store,
        call.caller.tenant,
        subject_of(kept.resource_id),
        min(TASKS_MAX, offset + limit),
    )
    return await _listed(call, rows[offset:])


async def _listed(call: Call, rows: list[ExecutionRow]) -> Response:
    return answer(await Views(call.gateway).tasks(rows))


async def get(call: Call) -> Response:
    return answer(await Views(call.gateway).task(await _visible(call)))


async def progress(call: Call) -> Response:
    view = await Views(call.gateway).run(await _visible(call))
    return answer(progress_object(view.progress) or ProgressObject())


async def stop(call: Call) -> Response:
    row = await _visible(call)

    async def serve(_: str) -> Response:
        if not await halt_row(call, row):
            raise Problem("bad_state", "No running task to halt")
        body: dict[str, Any] = {"status": "halt_requested", "workflow_id": workflow_id_of(row.subject)}
        return answer(body, 202)

    return await once(call, b"", serve)


def dialect(settings: Settings) -> Dialect:
    return Dialect(
        "tasks",
        envelope(PREFIX),
        (
            Resource(PREFIX, {"GET": Operation(handler=list_all, scope=READ, doc=docs.TASKS)}),
            Resource(
                f"{PREFIX}/workflow/{{workflow_id}}",
                {"GET": Operation(handler=of_workflow, scope=READ, doc=docs.WORKFLOW_TASKS)},
            ),
            Resource(f"{PREFIX}/{{task_id}}", {"GET": Operation(handler=get, scope=READ, doc=docs.TASK)}),
            Resource(
                f"{PREFIX}/{{task_id}}/progress",
                {"GET": Operation(handler=progress, scope=READ, doc=docs.PROGRESS)},
            ),
            Resource(
                f"{PREFIX}/{{task_id}}/stop", {"POST": Operation(handler=stop, scope=RUN, doc=docs.STOP)}
            ),
        ),
    )
