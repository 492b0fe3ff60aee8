"""What the companion paths do (contract 3.13): one create, list, get, update, delete for three kinds.

Agents are those of every other contract that knows agents; fields of theirs stay untouched by a change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel
from starlette.responses import Response

from gateway.agent_documents import MCP_SERVER
from gateway.call import Call
from gateway.dialects.workflows.bodies import checked, parsed
from gateway.dialects.workflows.companion_bodies import (
    CreateAgent,
    CreateGuardrail,
    CreateSkill,
    UpdateAgent,
    UpdateGuardrail,
    UpdateSkill,
    guardrail_rules,
)
from gateway.dialects.workflows.requests import cause_of, created_once, page_of
from gateway.dialects.workflows.wire import (
    AGENT,
    GUARDRAIL,
    SKILL,
    AgentObject,
    GuardrailObject,
    SkillObject,
    answer,
    iso,
    no_content,
)
from gateway.envelopes import Problem
from gateway.registry import Resource as Kept
from runtime.errors import NotFound


class Companion(msgspec.Struct, frozen=True):
    """One kind of resource: its paths, its bodies, and the object that shows it."""

    kind: str
    create: type[BaseModel]
    update: type[BaseModel]
    shown: type[AgentObject | SkillObject | GuardrailObject]

    @property
    def prefix(self) -> str:
        return f"/api/{self.kind}s"


AGENTS = Companion(AGENT, CreateAgent, UpdateAgent, AgentObject)
SKILLS = Companion(SKILL, CreateSkill, UpdateSkill, SkillObject)
GUARDRAILS = Companion(GUARDRAIL, CreateGuardrail, UpdateGuardrail, GuardrailObject)


def shown(companion: Companion, kept: Kept) -> Any:
    """The object a client gets. Fields that another contract left out have their defaults."""
    given = {name: value for name, value in kept.document.items() if value is not None}
    fields: dict[str, Any] = {
        **given,
        "id": kept.resource_id,
        "created_at": iso(kept.created_at),
        "updated_at": iso(kept.updated_at),
    }
    return msgspec.convert(fields, companion.shown)


_DERIVED = frozenset({"tools", "rules"})
"""Fields that aren't shown here: what runs are put together from (``gateway.agent_documents``)."""

_SOURCES: Mapping[str, frozenset[str]] = {
    AGENT: frozenset({"tool_definitions", "mcp_server_ids", "mcp_server_tags"}),
    SKILL: frozenset(),
    GUARDRAIL: frozenset({"name", "guardrail_type", "prompt_config", "request_config", "output_config"}),
}
"""Fields they follow from; a change of others leaves alone what another contract put there."""


async def document_of(call: Call, body: BaseModel) -> dict[str, Any]:
    """The document of a whole body."""
    fields = body.model_dump(mode="json")
    match body:
        case CreateGuardrail():
            return {**fields, "rules": msgspec.to_builtins(guardrail_rules(body))}
        case CreateAgent():
            servers = await _servers(call, body.mcp_server_ids, body.mcp_server_tags)
            shortened = [{"kind": "mcp", "server": name} for name in servers]
            return {**fields, "tools": [*body.tool_definitions, *shortened]}
        case _:
            return fields


async def _servers(call: Call, ids: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Names of the registered MCP servers that are meant; an id may be a name. Unknown ones are left out."""
    if not ids and not tags:
        return []
    listed, _ = await call.gateway.registry.listing(call.caller.tenant, MCP_SERVER)
    wanted, labels = set(ids), {tag.lower() for tag in tags}
    names: list[str] = []
    for server in listed:
        name = str(server.document.get("name", ""))
        own: Any = server.document.get("tags") or ()
        if wanted & {server.resource_id, name} or labels & {str(tag).lower() for tag in own}:
            names.append(name)
    return names


def create_fields(kept: Kept, companion: Companion) -> dict[str, Any]:
    """The document's fields that the body of a create has too."""
    names = companion.create.model_fields
    return {name: value for name, value in kept.document.items() if name in names}


async def found(call: Call, companion: Companion) -> Kept:
    """The resource the path names. Raises: Problem ..._not_found."""
    kept = await call.gateway.registry.get(call.caller.tenant, companion.kind, call.path["resource_id"])
    if kept is None:
        raise Problem(f"{companion.kind}_not_found")
    return kept


async def create(call: Call, companion: Companion) -> Response:
    body = await call.body()

    async def document() -> Mapping[str, Any]:
        return await document_of(call, parsed(call, body, companion.create))

    return await created_once(call, body, companion.kind, document, lambda kept: shown(companion, kept))


async def list_all(call: Call, companion: Companion) -> Response:
    limit, offset = page_of(call)
    tag = call.query("tag")
    kept, total = await call.gateway.registry.listing(
        call.caller.tenant, companion.kind, limit=limit, offset=offset, labels=[tag] if tag else ()
    )
    return answer([shown(companion, each) for each in kept], headers={"x-total-count": str(total)})


async def get(call: Call, companion: Companion) -> Response:
    return answer(shown(companion, await found(call, companion)))


async def update(call: Call, companion: Companion) -> Response:
    kept = await found(call, companion)
    given = parsed(call, await call.body(), companion.update)
    changes = given.model_dump(mode="json", include=given.model_fields_set)
    if changes.keys() & _SOURCES[companion.kind]:
        # What follows from several fields is made anew from what was there and what is new.
        whole = checked({**create_fields(kept, companion), **changes}, companion.create)
        kept_whole = await document_of(call, whole)
        changes |= {name: value for name, value in kept_whole.items() if name in _DERIVED}

    def decide(_: Kept) -> Mapping[str, Any]:
        return changes

    try:
        changed = await call.gateway.registry.change(
            call.caller.tenant, companion.kind, kept.resource_id, decide, cause_of(call)
        )
    except NotFound:
        raise Problem(f"{companion.kind}_not_found") from None
    return answer(shown(companion, changed))


async def delete(call: Call, companion: Companion) -> Response:
    kept = await found(call, companion)
    try:
        await call.gateway.registry.delete(
            call.caller.tenant, companion.kind, kept.resource_id, cause_of(call)
        )
    except NotFound:
        raise Problem(f"{companion.kind}_not_found") from None
    return no_content()
