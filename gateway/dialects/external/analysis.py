"""The analysis of a task: a model plans its steps, and the plan becomes a flow (section 5.3).

The model answers by a schema, in an execution of the built-in flow `task-analysis`. A plan that can't be a
flow goes back to the model once, with what is wrong with it. Until a plan is stored the old one is in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from gateway.builtin_flows import TASK_ANALYSIS, ensure
from gateway.dialects.external.mcps import Mcps, described, known_mcps
from gateway.dialects.external.plan_flow import ASSISTANT, FLOWS, STEPS_MAX, PlanFault
from gateway.dialects.external.plans import check_plan, names_of, plan_of, steps_of
from gateway.dialects.external.records import TASK, cause_of, plan_fields, shown_task, task_of
from gateway.dialects.external.runs import CLAIM_SECONDS, end_of, is_unfinished, refused
from gateway.dialects.external.tasks import visible_task
from gateway.dialects.external.wire import SOURCE, TASK_RUN, Plan, success
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from projections import execution_summary
from runtime.ids import SECOND

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from runtime.events import Json

ANALYSIS_SECONDS = 60.0
TRIES_MAX = 2

MESSAGE = "Task analyzed successfully. Please authenticate required MCPs before execution."

SYSTEM = (
    "You plan how a task is carried out. You are given the task and the MCPs there are, with their actions. "
    "Answer with the steps in order, as few as do the work; each is one action of one MCP with its input. "
    f"The MCP '{ASSISTANT}' is a language model that follows an instruction: use it for reading, writing and "
    "judging, and alone when no other MCP is needed. "
    f"The MCP '{FLOWS}' runs a published flow; its action is the flow's id. "
    "An input may hold ${inputs.input}, which is the task's text, and ${nodes.step_1}, which is the result "
    "of step 1, as a whole value or within a text. A step sees only steps before it. "
    "The final result is worded by itself from the results of the steps; plan no step for that."
)


async def analyze_task(call: Call) -> Response:
    """The body is ignored."""
    resource = await visible_task(call)

    async def serve(execution_id: str) -> Response:
        await asyncio.to_thread(_refuse_running, call, resource)
        mcps = await known_mcps(call)
        try:
            async with asyncio.timeout(ANALYSIS_SECONDS):
                plan, document = await _planned(call, resource, mcps, execution_id)
        except TimeoutError:
            raise Problem("request_timeout") from None
        publication = await call.gateway.catalogue.publish(resource.tenant, document, cause_of(call))
        changed = await _stored(call, resource, plan, publication.flow.version)
        answer = {
            "task": await shown_task(call.gateway, changed),
            "recommendedMCPs": mcps.shown(names_of(plan)),
            "message": MESSAGE,
        }
        return success(answer)

    return await call.gateway.idempotency.once(call, request_digest(b""), serve)


def _refuse_running(call: Call, resource: Resource) -> None:
    """Raises: Problem task_already_running. Blocks."""
    task = task_of(resource)
    if not task.latest_run:
        return
    row = execution_summary.get(call.gateway.store, task.latest_run)
    if row is None:
        running = task.claimed_at > call.gateway.clock() - CLAIM_SECONDS * SECOND
    else:
        running = is_unfinished(row)
    if running:
        raise Problem("task_already_running")


async def _planned(
    call: Call, resource: Resource, mcps: Mcps, execution_id: str
) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the flow it is. Raises: Problem execution_failed when the model gives none."""
    task, task_id = task_of(resource), resource.resource_id
    deadline = asyncio.get_running_loop().time() + ANALYSIS_SECONDS
    wrong: Sequence[tuple[str, str]] = ()
    answer: Any = None
    for attempt in range(TRIES_MAX):
        run_id = execution_id if attempt == 0 else call.gateway.new_id()
        seconds = max(1.0, deadline - asyncio.get_running_loop().time())
        answer = await _asked(
            call, task_id, run_id, _prompt(task.content, mcps, answer, wrong), mcps, seconds
        )
        try:
            steps = steps_of(answer)
            document = await check_plan(f"task-{task_id}", task.title, steps, mcps, call)
        except PlanFault as fault:
            wrong = fault.problems
            continue
        return plan_of(steps, mcps), document
    message = "The model gave no plan that can be carried out: " + "; ".join(
        f"{where}: {rule}" for where, rule in wrong
    )
    detail = {"taskId": task_id, "executionId": f"{TASK_RUN}{execution_id}", "step": None, "message": message}
    raise Problem("execution_failed", "The analysis gave no plan that can be carried out", [detail])


async def _asked(
    call: Call, task_id: str, execution_id: str, prompt: str, mcps: Mcps, seconds: float
) -> Json:
    """What the model answered. Raises: Problem when the run does not complete."""
    flow = await ensure(call.gateway, call.caller.tenant, TASK_ANALYSIS)
    given: dict[str, Json] = {
        "prompt": prompt,
        "system": SYSTEM,
        "model": "",
        "output_schema": _schema(mcps),
        "reasoning_effort": None,
    }
    await call.gateway.agent_runs.start_flow(
        call,
        TASK_ANALYSIS,
        given,
        flow_version=flow.version,
        execution_id=execution_id,
        source=SOURCE,
        subject=f"analysis:{task_id}",
        timeout_seconds=seconds,
    )
    view = await end_of(call.gateway, execution_id, flow.plan.steps, seconds)
    problem = refused(view, task_id, f"{TASK_RUN}{execution_id}", None)
    if problem is not None:
        raise problem
    return view.answer


def _prompt(content: str, mcps: Mcps, answer: Any, wrong: Sequence[tuple[str, str]]) -> str:
    known = msgspec.json.encode(described(mcps)).decode()
    prompt = f"The task:\n{content}\n\nThe MCPs:\n{known}"
    if not wrong:
        return prompt
    listed = "\n".join(f"- {where}: {rule}" for where, rule in wrong)
    before = msgspec.json.encode(answer).decode()
    return f"{prompt}\n\nThis plan can't be carried out:\n{before}\n\nWhat is wrong with it:\n{listed}"


def _schema(mcps: Mcps) -> dict[str, Json]:
    names: list[Json] = [ASSISTANT, *([FLOWS] if mcps.flows else []), *mcps.servers]
    step: dict[str, Json] = {
        "type": "object",
        "required": ["mcp", "action", "input"],
        "properties": {
            "mcp": {"type": "string", "enum": names},
            "action": {"type": "string"},
            "input": {"type": "object"},
        },
    }
    steps: dict[str, Json] = {"type": "array", "minItems": 1, "maxItems": STEPS_MAX, "items": step}
    return {"type": "object", "required": ["steps"], "properties": {"steps": steps}}


async def _stored(call: Call, resource: Resource, plan: Plan, flow_version: str) -> Resource:
    def decide(known: Resource) -> Mapping[str, Json]:
        _refuse_running(call, known)
        flow_id = f"task-{known.resource_id}"
        return {"plan": plan_fields(plan), "flow_id": flow_id, "flow_version": flow_version}

    task_id = resource.resource_id
    return await call.gateway.registry.change(resource.tenant, TASK, task_id, decide, cause_of(call))
