"""A run as a stream of its own: begun, or found by its Idempotency-Key, then followed to its end.

What is kept for a repeat is the run's id, so the repeat attaches to the run and resumes after Last-Event-ID.
A reader who leaves ends nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import msgspec
from starlette.responses import Response

from gateway.builtin_flows import AGENT_RUN, ANSWER
from gateway.dialects.external.plan_flow import final_node, planned_steps
from gateway.dialects.external.records import TASK, TaskDocument, task_of
from gateway.dialects.external.runs import shown_id
from gateway.dialects.external.stream import DONE, FRAMES_EACH, Ending, ExternalEncoder, Named, Work
from gateway.dialects.external.wire import Step, success
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from gateway.run_stream import Numbered, follow_run
from gateway.sse import EventStream, last_event_id

if TYPE_CHECKING:
    from gateway.call import Call
    from projections.execution_summary import ExecutionRow

Worded = Callable[[Work, "ExecutionRow"], tuple[Sequence[Named], Ending]]
"""How a contract's stream opens and ends."""


async def stream_run(
    call: Call,
    body: bytes,
    begin: Callable[[str], Awaitable[object]],
    worded: Worded,
    *,
    progress: bool,
) -> Response:
    """The response of a streaming POST. ``begin`` starts the run under the id it is given, or refuses."""
    execution_id = ""
    # Without a key each request is a new run, and what the client saw last was another's.
    after = last_event_id(call) if b"idempotency-key" in call.headers else 0

    async def serve(reserved: str) -> Response:
        await begin(reserved)
        return success({"executionId": reserved})

    async def frames() -> AsyncIterator[bytes]:
        row = await call.gateway.reads.execution(execution_id)
        if row is None:
            raise Problem("execution_not_found")
        work = await _work(call, row, row.subject.partition(":")[2], after)
        opening, ending = worded(work, row)
        encoder = ExternalEncoder(work, opening, ending, progress=progress, after=after)
        for each in encoder.opening():
            yield each
        text_nodes = (work.final,) if work.final else ()
        run = follow_run(call.gateway, row, after=after, frames_each=FRAMES_EACH, text_nodes=text_nodes)
        async with aclosing(cast("Any", run)) as source:
            async for numbered in source:
                for each in encoder.encode(cast("Numbered", numbered)):
                    yield each
        if (call.query("done") or "").lower() in ("true", "1"):
            yield DONE

    # The stream's place is taken first: once the run has begun, nothing may refuse the request.
    response = EventStream(call, frames())
    try:
        started = await call.gateway.idempotency.once(call, request_digest(body), serve)
    except BaseException:
        call.gateway.limits.close_stream(call.caller)
        raise
    if started.status_code != 200:
        call.gateway.limits.close_stream(call.caller)
        return started
    execution_id = msgspec.json.decode(bytes(started.body))["data"]["executionId"]
    call.execution_id = execution_id
    if "idempotency-replayed" in started.headers:
        response.headers["idempotency-replayed"] = "true"
    return response


async def _work(call: Call, row: ExecutionRow, task_id: str, after: int) -> Work:
    resource = await call.gateway.registry.get(row.tenant, TASK, task_id)
    task = TaskDocument(title="", content="") if resource is None else task_of(resource)
    shown = shown_id(task.task_type, row.execution_id)
    steps = await steps_of_run(call, row, task)
    if steps:
        final = final_node(steps)
        total = row.total_nodes
        return Work(
            task_id=task_id, shown_id=shown, steps=steps, total=total, final=final, input=task.content
        )
    view = await call.gateway.agent_runs.view(row)
    given = cast("dict[str, Any]", view.input) if isinstance(view.input, dict) else {}
    tools = [str(log.detail.get("step")) for log in view.logs if log.event == "tool_call"] if after else []
    # With tools, an agent's text is its answer only if no call follows it.
    final = "" if given.get("tools") or given.get("todos") or given.get("repository") else ANSWER
    return Work(
        task_id=task_id,
        shown_id=shown,
        steps=(),
        total=1,
        final=final,
        input=task.content,
        tools=list(dict.fromkeys(tools)),
    )


async def steps_of_run(call: Call, row: ExecutionRow, task: TaskDocument) -> Sequence[Step]:
    """The plan's steps as that run carried them out; empty for an agent that answered by itself."""
    if row.flow_id == AGENT_RUN:
        return ()
    flow = await call.gateway.catalogue.version(row.tenant, row.flow_id, row.flow_version)
    steps = [] if flow is None else planned_steps(flow.definition.document)
    planned = () if task.plan is None else task.plan.workflow
    if [(step.mcp, step.action) for step in steps] == [(step.mcp, step.action) for step in planned]:
        return planned  # with the inputs as they were planned
    return steps
