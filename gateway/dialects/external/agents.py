"""Agents: listed, shown, made from a task (sections 4.1 and 4.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.responses import Response

from gateway.agent_documents import AGENT
from gateway.dialects.external.plans import publish_plan
from gateway.dialects.external.records import (
    TASK,
    cause_of,
    known,
    plan_fields,
    shown_agent,
    shown_agent_details,
    shown_task,
    task_of,
)
from gateway.dialects.external.wire import fields_of, page_of, success
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from projections import resources
from runtime.errors import AlreadyExists

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from runtime.events import Json

NAME_MAX, DESCRIPTION_MAX, TASK_ID_MAX = 50, 280, 200

_OWN = frozenset({"name", "description", "status", "categories", "tags", "task_id", "related_questions"})
"""Fields that make an agent this one; the others are its way to answer."""


async def list_agents(call: Call) -> Response:
    page = page_of(call)
    category = call.query("category")
    found, total = await call.gateway.registry.listing(
        call.caller.tenant,
        AGENT,
        newest_first=True,
        limit=page.limit,
        offset=page.offset,
        labels=() if category is None else (category,),
        shared=True,
    )
    used = await _usage(call, found)
    shown = [shown_agent(each, used.get(each.resource_id, 0)) for each in found]
    return success({"agents": shown, "pagination": page.of(total)})


async def show_agent(call: Call) -> Response:
    agent = await visible_agent(call)
    used = await _usage(call, [agent])
    return success({"agent": shown_agent_details(agent, used.get(agent.resource_id, 0))})


async def visible_agent(call: Call) -> Resource:
    """The agent named by the path: the tenant's own, or a public one. Raises: Problem agent_not_found."""
    found = await _own_or_public(call, call.path["agent_id"])
    if found is None:
        raise Problem("agent_not_found")
    return found


async def _own_or_public(call: Call, agent_id: str) -> Resource | None:
    if not agent_id.isprintable():
        return None
    return await known(call, AGENT, agent_id) or await call.gateway.registry.get_shared(AGENT, agent_id)


async def _usage(call: Call, agents: Sequence[Resource]) -> dict[str, int]:
    """How often each was executed, by its owner and by the caller."""
    tenants = {call.caller.tenant, *(agent.tenant for agent in agents)}
    ids = [agent.resource_id for agent in agents]
    return await asyncio.to_thread(resources.count_children, call.gateway.store, sorted(tenants), TASK, ids)


async def create_agent(call: Call) -> Response:
    body = await call.body()

    async def serve(agent_id: str) -> Response:
        fields = fields_of(call, body)
        task_id = fields.text("taskId", TASK_ID_MAX)
        name = fields.name("name", NAME_MAX)
        description = fields.text("description", DESCRIPTION_MAX)
        fields.done()
        agent = await _agent_of_task(call, agent_id, task_id, name, description)
        return success({"agent": shown_agent_details(agent, 0)}, 201)

    return await call.gateway.idempotency.once(call, request_digest(body), serve)


async def _agent_of_task(call: Call, agent_id: str, task_id: str, name: str, description: str) -> Resource:
    """Copies the task's plan. Raises: Problem task_not_found, task_not_completed, agent_name_exists."""
    registry, tenant = call.gateway.registry, call.caller.tenant
    resource = await known(call, TASK, task_id)
    if resource is None:
        raise Problem("task_not_found")
    shown = await shown_task(call.gateway, resource)
    if shown.status not in ("completed", "failed"):
        raise Problem("task_not_completed")
    if not await _is_free(call, agent_id, name):
        raise Problem("agent_name_exists")
    document: dict[str, Json] = {
        "name": name,
        "description": description,
        "status": "private",
        "task_id": task_id,
        "system_prompt": f"You are {name}. {description}",
    }
    task = task_of(resource)
    if task.plan is not None:
        flow = await publish_plan(call, f"agent-{agent_id}", name, task.plan)
        document |= {
            "plan": plan_fields(task.plan),
            "flow_id": flow.definition.id,
            "flow_version": flow.version,
        }
    elif task.parent:
        # The execution of an agent that has no plan: what answers is that agent's own way to answer.
        document |= await _way_of(call, task.parent)
    try:
        return await registry.create(tenant, AGENT, document, cause_of(call), agent_id)
    except AlreadyExists:
        made = await registry.get(tenant, AGENT, agent_id)
        if made is None:
            raise
        return made
    except BaseException:
        await registry.release_name(tenant, AGENT, name, agent_id)
        raise


async def _is_free(call: Call, agent_id: str, name: str) -> bool:
    """Agents that came by another contract claimed no name, so the list is asked too."""
    registry, tenant = call.gateway.registry, call.caller.tenant
    if not await registry.claim_name(tenant, AGENT, name, agent_id):
        return False
    named, _ = await registry.listing(tenant, AGENT, name=name, limit=2)
    if any(each.resource_id != agent_id for each in named):
        await registry.release_name(tenant, AGENT, name, agent_id)
        return False
    return True


async def _way_of(call: Call, agent_id: str) -> dict[str, Json]:
    """Model, instructions, tools: what an agent without a plan answers by."""
    found = await _own_or_public(call, agent_id)
    if found is None:
        return {}
    return {name: value for name, value in found.document.items() if name not in _OWN}
