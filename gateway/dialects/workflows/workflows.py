"""Workflows as resources: create, list, get, change, delete, skills (contract 3.1 to 3.5, 3.9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from actors.egress import EgressRefused, Unresolved
from gateway.call import Call
from gateway.dialects.workflows.bodies import (
    MAX_TURNS_DEFAULT,
    CreateWorkflow,
    UpdateWorkflow,
    broken,
    parsed,
)
from gateway.dialects.workflows.documents import subject_of
from gateway.dialects.workflows.halts import halt_latest
from gateway.dialects.workflows.requests import cause_of, created_once, once, page_of
from gateway.dialects.workflows.views import Views, workflow_object
from gateway.dialects.workflows.wire import AGENT, SKILL, WORKFLOW, answer, no_content
from gateway.envelopes import Problem
from gateway.registry import Resource
from runtime.errors import NotFound

OUTPUT_FORMATS = ("json", "markdown")
STATUSES = ("active", "inactive")
SKILLS_MAX = 500
WEBHOOKS = ("webhook_url", "error_webhook_url")


async def found(call: Call) -> Resource:
    """The workflow the path names. Raises: Problem workflow_not_found."""
    kept = await call.gateway.registry.get(call.caller.tenant, WORKFLOW, call.path["workflow_id"])
    if kept is None:
        raise Problem("workflow_not_found")
    return kept


async def changed(call: Call, workflow_id: str, decide: Callable[[Resource], Mapping[str, Any]]) -> Resource:
    """Raises: Problem workflow_not_found, and whatever ``decide`` raises."""
    try:
        return await call.gateway.registry.change(
            call.caller.tenant, WORKFLOW, workflow_id, decide, cause_of(call)
        )
    except NotFound:
        raise Problem("workflow_not_found") from None


# --- 3.1 create -----------------------------------------------------------------------------------------


async def create(call: Call) -> Response:
    body = await call.body()

    async def document() -> Mapping[str, Any]:
        fields = parsed(call, body, CreateWorkflow).model_dump(mode="json")
        agent = await _agent(call, fields["agent_id"])
        return {**await checked_document(call, fields, agent), "github_user": call.caller.name}

    return await created_once(
        call, body, WORKFLOW, document, lambda kept: workflow_object(kept, None, None, 0)
    )


async def checked_document(call: Call, fields: Mapping[str, Any], agent: Resource) -> dict[str, Any]:
    """What is kept of a new workflow. Raises: Problem bad_value, invalid_input."""
    check_values(fields)
    await check_webhooks(call, fields)
    return {
        **fields,
        "model": fields["model"] or default_model(call, agent),
        "max_turns": fields["max_turns"] or MAX_TURNS_DEFAULT,
        "github_user": call.caller.name,
        "status": "active",
    }


def default_model(call: Call, agent: Resource) -> str:
    """The agent's, else the server's; empty when neither names one."""
    model = agent.document.get("model")
    return model if isinstance(model, str) and model else call.gateway.settings.model


def check_values(fields: Mapping[str, Any]) -> None:
    """Raises: Problem bad_value."""
    if fields.get("output_format", "json") not in OUTPUT_FORMATS:
        raise Problem("bad_value", "output_format must be 'json' or 'markdown'")
    if fields.get("status", "active") not in STATUSES:
        raise Problem("bad_value", "status must be 'active' or 'inactive'")


async def check_webhooks(call: Call, fields: Mapping[str, Any]) -> None:
    """Raises: Problem invalid_input for a URL out of bounds (gateway rule G9)."""
    for name in WEBHOOKS:
        url = fields.get(name)
        if not url:
            continue
        try:
            await call.gateway.egress.check_url(url)
        except Unresolved:
            pass  # a resolver's bad moment; the delivery looks the name up and checks it again
        except EgressRefused as refused:
            raise broken(name, refused.reason, url) from None


async def _agent(call: Call, agent_id: str) -> Resource:
    agent = await call.gateway.registry.get(call.caller.tenant, AGENT, agent_id)
    if agent is None:
        raise Problem("agent_not_found")
    return agent


# --- 3.2 list, 3.3 get ----------------------------------------------------------------------------------


async def list_all(call: Call) -> Response:
    limit, offset = page_of(call)
    tenant = call.caller.tenant
    kept, total = await call.gateway.registry.listing(tenant, WORKFLOW, limit=limit, offset=offset)
    shown = await Views(call.gateway).workflows(tenant, kept)
    return answer(shown, headers={"x-total-count": str(total)})


async def get(call: Call) -> Response:
    return await _shown(call, await found(call))


async def _shown(call: Call, kept: Resource) -> Response:
    return answer(await Views(call.gateway).workflow(kept))


# --- 3.4 change -----------------------------------------------------------------------------------------


async def update(call: Call) -> Response:
    kept = await found(call)
    given = parsed(call, await call.body(), UpdateWorkflow)
    changes = given.model_dump(mode="json", include=given.model_fields_set)
    check_values(changes)
    if "agent_id" in changes or changes.get("model", "") is None:
        agent = await _agent(call, str(changes.get("agent_id") or kept.document["agent_id"]))
        if changes.get("model", "") is None:
            changes["model"] = default_model(call, agent)
    if changes.get("max_turns", 1) is None:
        changes["max_turns"] = MAX_TURNS_DEFAULT
    await check_webhooks(call, changes)
    return await _shown(call, await changed(call, kept.resource_id, lambda _: changes))


# --- 3.5 delete -----------------------------------------------------------------------------------------


async def delete(call: Call) -> Response:
    kept = await found(call)
    await halt_latest(call, kept)
    try:
        gone = await call.gateway.registry.delete(
            call.caller.tenant, WORKFLOW, kept.resource_id, cause_of(call)
        )
    except NotFound:
        raise Problem("workflow_not_found") from None
    if gone.document.get("latest_run") != kept.document.get("latest_run"):
        await halt_latest(call, gone)  # a prompt came in between
    call.gateway.agent_runs.news.tell(call.caller.tenant, subject_of(kept.resource_id))
    return no_content()


# --- 3.9 skills -----------------------------------------------------------------------------------------


async def install_skill(call: Call) -> Response:
    kept = await found(call)
    skill_id = call.path["skill_id"]
    if await call.gateway.registry.get(call.caller.tenant, SKILL, skill_id) is None:
        raise Problem("skill_not_found")

    def decide(workflow: Resource) -> Mapping[str, Any]:
        installed: list[str] = workflow.document["skill_ids"]
        if skill_id in installed:
            raise Problem("already_installed")
        if len(installed) >= SKILLS_MAX:
            raise Problem("bad_value", f"a workflow has at most {SKILLS_MAX} skills")
        return {"skill_ids": [*installed, skill_id]}

    async def serve(_: str) -> Response:
        return await _shown(call, await changed(call, kept.resource_id, decide))

    return await once(call, b"", serve)


async def remove_skill(call: Call) -> Response:
    kept = await found(call)
    skill_id = call.path["skill_id"]

    def decide(workflow: Resource) -> Mapping[str, Any]:
        installed: list[str] = workflow.document["skill_ids"]
        if skill_id not in installed:
            raise Problem("not_installed")
        return {"skill_ids": [each for each in installed if each != skill_id]}

    return await _shown(call, await changed(call, kept.resource_id, decide))
