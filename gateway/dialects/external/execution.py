"""Carrying out tasks and agents: run and wait, run and stream, cancel (sections 4.2 to 4.4, 5.4 to 5.7).

Both ways begin a run the same way, once for each Idempotency-Key. A caller who leaves ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from gateway.dialects.external.agents import visible_agent
from gateway.dialects.external.answering import answering_spec, with_parameters
from gateway.dialects.external.following import steps_of_run, stream_run
from gateway.dialects.external.history import executed_steps
from gateway.dialects.external.plan_flow import step_of
from gateway.dialects.external.plans import publish_plan, require_authentication
from gateway.dialects.external.records import (
    TASK,
    TaskDocument,
    agent_of,
    agent_plan,
    cause_of,
    task_of,
)
from gateway.dialects.external.runs import (
    cancel,
    claim,
    end_of,
    execution_id_of,
    refused,
    shown_id,
    unclaim,
)
from gateway.dialects.external.stream import (
    Ending,
    Named,
    Work,
    agent_ending,
    agent_opening,
    task_ending,
    task_opening,
)
from gateway.dialects.external.tasks import visible_task
from gateway.dialects.external.wire import SOURCE, TEXT_MAX, as_object, fields_of, success
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from projections import execution_summary
from runtime.errors import AlreadyExists, Overloaded, Refused

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from gateway.run_view import RunView
    from projections.execution_summary import ExecutionRow
    from runtime.events import Json
    from runtime.plan import Step as FlowStep

TASK_SECONDS, TASK_SECONDS_MAX = 600, 3_600
AGENT_SECONDS, AGENT_SECONDS_MAX = 120, 300
TITLE_CUT = 60
RUNS_SHOWN_MAX = 100
"""Runs of a task whose steps are listed; older ones are left out."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run that was started, and how long its caller waits. ``steps``: of its flow's plan."""

    execution_id: str
    task: Resource
    steps: Mapping[Any, FlowStep]
    timeout_seconds: float


# --- tasks ----------------------------------------------------------------------------------------------


async def execute_task(call: Call) -> Response:
    resource = await visible_task(call)
    body = await call.body()

    async def serve(execution_id: str) -> Response:
        begun = await _begin_task(call, resource, body, execution_id)
        view = await _completed(call, begun)
        task = task_of(resource)
        answer = {
            "taskId": resource.resource_id,
            "title": task.title,
            "content": task.content,
            "result": as_object(view.answer),
            "executionTime": round(_seconds(view), 3),
            "status": "completed",
        }
        return success(answer)

    return await call.gateway.idempotency.once(call, request_digest(body), serve)


async def stream_task(call: Call) -> Response:
    resource = await visible_task(call)
    body = await call.body()

    async def begin(execution_id: str) -> Begun:
        return await _begin_task(call, resource, body, execution_id)

    def worded(work: Work, row: ExecutionRow) -> tuple[Sequence[Named], Ending]:
        return task_opening(work), task_ending(work)

    return await stream_run(call, body, begin, worded, progress=True)


async def _begin_task(call: Call, resource: Resource, body: bytes, execution_id: str) -> Begun:
    fields = fields_of(call, body)
    timeout = fields.seconds("timeoutSeconds", TASK_SECONDS, TASK_SECONDS_MAX)
    fields.done()
    task, task_id = task_of(resource), resource.resource_id
    if task.plan is None:
        raise Problem("task_not_analyzed")
    await require_authentication(call, task.plan)
    _ = call.gateway.executions  # without hosts nothing is claimed
    claimed = await claim(call, resource, execution_id, "task_already_running")
    try:
        # As the MCP servers are registered now: an address or a credential may have changed.
        flow = await publish_plan(call, f"task-{task_id}", task.title, task.plan)
        given: dict[str, Json] = {"input": task.content, "parameters": {}}
        await call.gateway.agent_runs.start_flow(
            call,
            flow.definition.id,
            given,
            flow_version=flow.version,
            execution_id=execution_id,
            source=SOURCE,
            subject=f"task:{task_id}",
            timeout_seconds=timeout,
        )
    except (Overloaded, Refused, Problem):
        await unclaim(call, resource, execution_id)
        raise
    return Begun(execution_id=execution_id, task=claimed, steps=flow.plan.steps, timeout_seconds=timeout)


async def cancel_task(call: Call) -> Response:
    task = await visible_task(call)
    row = await _run_row(call)
    if row is None or row.subject != f"task:{task.resource_id}":
        raise Problem("execution_not_found")
    return await _cancelled(call, row, {"taskId": task.resource_id})


async def list_executions(call: Call) -> Response:
    resource = await visible_task(call)
    task, task_id = task_of(resource), resource.resource_id
    rows = await asyncio.to_thread(
        execution_summary.runs_of, call.gateway.store, resource.tenant, f"task:{task_id}", RUNS_SHOWN_MAX
    )
    shown: list[Mapping[str, Any]] = []
    for row in reversed(rows):
        view = await call.gateway.agent_runs.view(row)
        steps = await steps_of_run(call, row, task)
        shown += executed_steps(shown_id(task.task_type, row.execution_id), view, steps)
    return success({"taskId": task_id, "executions": shown})


# --- agents ---------------------------------------------------------------------------------------------


async def execute_agent(call: Call) -> Response:
    agent = await visible_agent(call)
    body = await call.body()

    async def serve(execution_id: str) -> Response:
        begun = await _begin_agent(call, agent, body, execution_id)
        view = await _completed(call, begun)
        answer = {
            "taskId": begun.task.resource_id,
            "agentId": agent.resource_id,
            "result": as_object(view.answer),
            "status": "completed",
            "executionId": shown_id("agent", execution_id),
        }
        return success(answer)

    return await call.gateway.idempotency.once(call, request_digest(body), serve)


async def stream_agent(call: Call) -> Response:
    agent = await visible_agent(call)
    body = await call.body()
    agent_id, name = agent.resource_id, agent_of(agent).name

    async def begin(execution_id: str) -> Begun:
        return await _begin_agent(call, agent, body, execution_id)

    def worded(work: Work, row: ExecutionRow) -> tuple[Sequence[Named], Ending]:
        opening = agent_opening(work, agent_id, name, title_of(work.input))
        return opening, agent_ending(work, agent_id, row.created_at)

    return await stream_run(call, body, begin, worded, progress=False)


def title_of(given: str) -> str:
    return f"Agent execution: {given[:TITLE_CUT]}"


async def _begin_agent(call: Call, agent: Resource, body: bytes, execution_id: str) -> Begun:
    fields = fields_of(call, body)
    text = fields.text("input", TEXT_MAX)
    parameters = fields.mapping("parameters")
    timeout = fields.seconds("timeout", AGENT_SECONDS, AGENT_SECONDS_MAX)
    fields.done()
    _ = call.gateway.executions  # without hosts no task is made
    agent_id, plan = agent.resource_id, agent_plan(agent)
    # Whatever can be refused is refused before there is a task.
    if plan is not None:
        await require_authentication(call, plan)
        flow = await publish_plan(call, f"agent-{agent_id}", agent_of(agent).name, plan)
        spec = None
    else:
        spec = await answering_spec(call, agent, with_parameters(text, parameters), "input")
        flow = None
    task = TaskDocument(
        title=title_of(text),
        content=text,
        task_type="agent",
        plan=plan,
        parent=agent_id,
        latest_run=execution_id,
        claimed_at=call.gateway.clock(),
    )
    resource = await _task_once(call, execution_id, task)
    run: dict[str, Any] = {
        "execution_id": execution_id,
        "source": SOURCE,
        "subject": f"task:{resource.resource_id}",
        "timeout_seconds": timeout,
    }
    try:
        if flow is not None:
            given: dict[str, Json] = {**parameters, "input": text, "parameters": parameters}
            flow_id, version = flow.definition.id, flow.version
            await call.gateway.agent_runs.start_flow(call, flow_id, given, flow_version=version, **run)
        elif spec is not None:
            await call.gateway.agent_runs.start(call, spec, agent_id=agent_id, **run)
    except (Overloaded, Refused, Problem):
        await call.gateway.registry.delete(resource.tenant, TASK, resource.resource_id, cause_of(call))
        raise
    steps: Mapping[Any, FlowStep] = {} if flow is None else flow.plan.steps
    return Begun(execution_id=execution_id, task=resource, steps=steps, timeout_seconds=timeout)


async def _task_once(call: Call, task_id: str, task: TaskDocument) -> Resource:
    """Under its run's id, so that a repeat after a crash finds the task of the first try.

    A first try that was refused has deleted its task, and an id is used once: then a new one.
    """
    registry, tenant = call.gateway.registry, call.caller.tenant
    document = msgspec.to_builtins(task)
    try:
        return await registry.create(tenant, TASK, document, cause_of(call), task_id)
    except AlreadyExists:
        known = await registry.get(tenant, TASK, task_id)
        return known or await registry.create(tenant, TASK, document, cause_of(call))


async def cancel_agent(call: Call) -> Response:
    agent = await visible_agent(call)
    row = await _run_row(call)
    kind, _, task_id = ("", "", "") if row is None else row.subject.partition(":")
    task = await call.gateway.registry.get(call.caller.tenant, TASK, task_id) if kind == "task" else None
    if row is None or task is None or task_of(task).parent != agent.resource_id:
        raise Problem("execution_not_found")
    return await _cancelled(call, row, {})


# --- what both share ------------------------------------------------------------------------------------


async def _completed(call: Call, begun: Begun) -> RunView:
    """The run's end. Raises: Problem for every end but completed."""
    view = await end_of(call.gateway, begun.execution_id, begun.steps, begun.timeout_seconds)
    shown = shown_id(task_of(begun.task).task_type, begun.execution_id)
    problem = refused(view, begun.task.resource_id, shown, step_of(view.failed_node))
    if problem is not None:
        raise problem
    return view


def _seconds(view: RunView) -> float:
    return ((view.ended_at or view.created_at) - view.created_at) / 1_000_000


async def _run_row(call: Call) -> ExecutionRow | None:
    """The run named by the path, if it is this tenant's and was started here."""
    execution_id = execution_id_of(call.path["execution_id"])
    row = await call.gateway.reads.execution(execution_id) if execution_id else None
    if row is None or row.tenant != call.caller.tenant or row.source != SOURCE:
        return None
    call.execution_id = execution_id
    return row


async def _cancelled(call: Call, row: ExecutionRow, head: Mapping[str, Any]) -> Response:
    outcome = await cancel(call, row)
    status = {} if outcome.cancelled else {"status": outcome.status}
    shown = call.path["execution_id"]
    return success({**head, "executionId": shown, "cancelled": outcome.cancelled, **status})
