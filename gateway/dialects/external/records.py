"""What this contract keeps of tasks, agents and conversations, and how they are shown (section 2).

A task's status and result are those of its latest run: they stand in the execution, never here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from gateway import agent_documents
from gateway.agent_documents import AgentDocument
from gateway.dialects.external.wire import STATUSES, Agent, AgentDetails, Plan, Task, as_object, iso
from gateway.registry import Resource
from gateway.run_view import agent_output
from projections import execution_summary
from projections.execution_summary import ExecutionRow
from runtime.administration import Cause
from runtime.events import BlobRef, Json
from runtime.resources import ID_CHARS_MAX

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.context import Gateway

TASK, CONVERSATION = "task", "conversation"
"""Kinds of resources, beside `agent_documents.AGENT`."""

RUN_STATUSES: Mapping[str, tuple[str, ...]] = {
    shown: tuple(status for status, name in STATUSES.items() if name == shown)
    + (("",) if shown == "pending" else ())
    for shown in ("pending", "running", "completed", "failed", "cancelled")
}
"""A task's status to those of its latest run; ``""``: it has none yet."""


class TaskDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``parent``: the agent it is an execution of. ``claimed_at``: of ``latest_run``, in microseconds.

    ``previous_run``: what ``latest_run`` was before, to go back to when a start fails.
    """

    title: str
    content: str
    task_type: Literal["mcp", "agent"] = "mcp"
    plan: Plan | None = None
    flow_id: str = ""
    flow_version: str = ""
    parent: str = ""
    conversation_id: str = ""
    latest_run: str = ""
    previous_run: str = ""
    claimed_at: int = 0


class ConversationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``parent``: the agent. ``latest_run`` and what belongs to it as in ``TaskDocument``."""

    parent: str
    latest_run: str = ""
    previous_run: str = ""
    claimed_at: int = 0


def task_of(resource: Resource) -> TaskDocument:
    return msgspec.convert(resource.document, TaskDocument)


def agent_of(resource: Resource) -> AgentDocument:
    return agent_documents.agent_of(resource.document)


def agent_plan(resource: Resource) -> Plan | None:
    """Its copy of a task's plan; None for an agent that answers by itself."""
    plan = resource.document.get("plan")
    return None if plan is None else msgspec.convert(plan, Plan)


def cause_of(call: Call) -> Cause:
    return Cause(
        at=call.gateway.clock(),
        by=call.caller.key_id,
        cause=call.correlation_id,
        corr=call.given_correlation_id,
    )


async def known(call: Call, kind: str, resource_id: str) -> Resource | None:
    """The caller's resource of that id; ids are opaque, and one that can't be one names nothing."""
    if not 1 <= len(resource_id) <= ID_CHARS_MAX or not resource_id.isprintable():
        return None
    return await call.gateway.registry.get(call.caller.tenant, kind, resource_id)


# --- shown ----------------------------------------------------------------------------------------------


async def shown_task(gateway: Gateway, resource: Resource) -> Task:
    [task] = await shown_tasks(gateway, [resource])
    return task


async def shown_tasks(gateway: Gateway, resources: Iterable[Resource]) -> list[Task]:
    """The tasks with the status and result of their latest runs."""
    found = [(resource, task_of(resource)) for resource in resources]
    ids = [task.latest_run for _, task in found if task.latest_run]
    rows = await asyncio.to_thread(execution_summary.get_many, gateway.store, ids) if ids else {}
    return [await _task(gateway, resource, task, rows.get(task.latest_run)) for resource, task in found]


async def _task(gateway: Gateway, resource: Resource, task: TaskDocument, row: ExecutionRow | None) -> Task:
    result = None
    updated_at, completed_at = resource.updated_at, None
    if row is not None:
        updated_at = max(updated_at, row.updated_at)
        completed_at = row.cancel_requested_at or row.ended_at
        if row.status == "completed":
            result = as_object(await answer_of(gateway, row))
    return Task(
        id=resource.resource_id,
        title=task.title,
        content=task.content,
        status="pending" if row is None else STATUSES[row.status],
        task_type=task.task_type,
        mcp_workflow=task.plan,
        result=result,
        agent_id=task.parent or None,
        conversation_id=task.conversation_id or None,
        created_at=iso(resource.created_at),
        updated_at=iso(updated_at),
        completed_at=None if completed_at is None else iso(completed_at),
    )


async def answer_of(gateway: Gateway, row: ExecutionRow) -> Json:
    """What a completed run answered: the flow's output, or the words of the agent."""
    if row.output_ref is None:
        value: Json = msgspec.json.decode(row.output or "null")
    else:
        ref = msgspec.json.decode(row.output_ref, type=BlobRef)
        value = msgspec.json.decode(await asyncio.to_thread(gateway.blobs.get_bytes, ref))
    answered = agent_output(value)
    return value if answered is None else answered.output


def shown_agent(resource: Resource, usage_count: int) -> Agent:
    return Agent(**_agent_fields(resource, agent_of(resource), usage_count))


def shown_agent_details(resource: Resource, usage_count: int) -> AgentDetails:
    fields = _agent_fields(resource, agent_of(resource), usage_count)
    return AgentDetails(**fields, mcp_workflow=agent_plan(resource))


def _agent_fields(resource: Resource, agent: AgentDocument, usage_count: int) -> dict[str, Any]:
    return {
        "id": resource.resource_id,
        "name": agent.name,
        "description": agent.description,
        "status": agent.status,
        "categories": agent.categories,
        "task_id": agent.task_id or None,
        "usage_count": usage_count,
        "related_questions": agent.related_questions,
        "created_at": iso(resource.created_at),
        "updated_at": iso(resource.updated_at),
    }


def plan_fields(plan: Plan) -> dict[str, Json]:
    return cast("dict[str, Json]", msgspec.to_builtins(plan))
