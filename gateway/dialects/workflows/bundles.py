"""Export and import of workflows (contract 3.10, 3.11): a bundle says what a workflow is, not what it did."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows.bodies import ImportedWorkflow, ImportWorkflows, parsed
from gateway.dialects.workflows.documents import exported
from gateway.dialects.workflows.requests import cause_of, once
from gateway.dialects.workflows.wire import AGENT, WORKFLOW, ImportOutcome, answer, iso
from gateway.dialects.workflows.workflows import OUTPUT_FORMATS, checked_document, found
from gateway.registry import Resource
from runtime.errors import AlreadyExists


async def export_all(call: Call) -> Response:
    kept, _ = await call.gateway.registry.listing(call.caller.tenant, WORKFLOW)
    return _bundle(call, kept)


async def export_one(call: Call) -> Response:
    return _bundle(call, [await found(call)])


def _bundle(call: Call, kept: list[Resource]) -> Response:
    body: dict[str, Any] = {
        "version": "1.0",
        "exported_at": iso(call.gateway.clock()),
        "resource_type": "workflow",
        "items": [exported(each) for each in kept],
    }
    return answer(body)


async def import_all(call: Call) -> Response:
    body = await call.body()

    async def serve(import_id: str) -> Response:
        items = parsed(call, body, ImportWorkflows).items
        return answer(await _imported(call, import_id, items), 201)

    return await once(call, body, serve)


async def _imported(call: Call, import_id: str, items: list[ImportedWorkflow]) -> ImportOutcome:
    """Every item by itself; ``import_id`` gives each new workflow an id that a repeat would give it too."""
    registry, tenant = call.gateway.registry, call.caller.tenant
    wanted = list(dict.fromkeys(item.agent_id for item in items))
    agents = {each.resource_id: each for each in await registry.get_many(tenant, AGENT, wanted)}
    errors: list[str] = []
    ids: list[str] = []
    for number, item in enumerate(items):
        name = item.title or "untitled"
        agent = agents.get(item.agent_id)
        if agent is None:
            errors.append(f"{name}: agent_id '{item.agent_id}' not found")
            continue
        if item.output_format not in OUTPUT_FORMATS:
            errors.append(f"{name}: output_format must be 'json' or 'markdown'")
            continue
        workflow_id = str(uuid5(UUID(import_id), str(number)))
        document = await checked_document(call, item.model_dump(mode="json"), agent)
        with suppress(AlreadyExists):  # a gateway that had this request before came so far
            await registry.create(tenant, WORKFLOW, document, cause_of(call), workflow_id)
        ids.append(workflow_id)
    return ImportOutcome(created=len(ids), errors=errors, ids=ids)
