"""The companion paths `/api/agents`, `/api/skills`, `/api/guardrails` (contract 3.13), and their bundles.

A bundle of a kind is made and read like one of workflows: items without ids, import makes new ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid5

from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.workflows import companions, docs
from gateway.dialects.workflows.bodies import ItemsBody, parsed
from gateway.dialects.workflows.companion_bodies import CreateAgent, CreateGuardrail, CreateSkill
from gateway.dialects.workflows.companions import (
    AGENTS,
    GUARDRAILS,
    SKILLS,
    Companion,
    create_fields,
    document_of,
)
from gateway.dialects.workflows.requests import cause_of, once
from gateway.dialects.workflows.wire import ImportOutcome, answer, envelope, iso
from gateway.keys import READ, RUN
from gateway.registry import Resource as Kept
from gateway.routes import Dialect, Operation, Resource
from gateway.settings import Settings
from runtime.errors import AlreadyExists

_Served = Callable[[Call, Companion], Awaitable[Response]]


# --- bundles --------------------------------------------------------------------------------------------


async def export_all(call: Call, companion: Companion) -> Response:
    kept, _ = await call.gateway.registry.listing(call.caller.tenant, companion.kind)
    return _bundle(call, companion, kept)


async def export_one(call: Call, companion: Companion) -> Response:
    return _bundle(call, companion, [await companions.found(call, companion)])


def _bundle(call: Call, companion: Companion, kept: list[Kept]) -> Response:
    return answer(
        {
            "version": "1.0",
            "exported_at": iso(call.gateway.clock()),
            "resource_type": companion.kind,
            "items": [create_fields(each, companion) for each in kept],
        }
    )


async def import_all(call: Call, companion: Companion) -> Response:
    body = await call.body()

    async def serve(import_id: str) -> Response:
        items = parsed(call, body, _IMPORTS[companion.kind]).items
        ids: list[str] = []
        for number, item in enumerate(items):
            resource_id = str(uuid5(UUID(import_id), str(number)))
            document = await document_of(call, item)
            with suppress(AlreadyExists):  # a gateway that had this request before came so far
                await call.gateway.registry.create(
                    call.caller.tenant, companion.kind, document, cause_of(call), resource_id
                )
            ids.append(resource_id)
        return answer(ImportOutcome(created=len(ids), errors=[], ids=ids), 201)

    return await once(call, body, serve)


_IMPORTS: Mapping[str, type[ItemsBody[Any]]] = {
    AGENTS.kind: ItemsBody[CreateAgent],
    SKILLS.kind: ItemsBody[CreateSkill],
    GUARDRAILS.kind: ItemsBody[CreateGuardrail],
}


# --- routes ---------------------------------------------------------------------------------------------


def _dialect(companion: Companion) -> Dialect:
    told = docs.companion(companion.kind, companion.create, companion.update, companion.shown)

    def operation(name: str, serve: _Served, scope: str) -> Operation:
        async def handler(call: Call) -> Response:
            return await serve(call, companion)

        handler.__name__ = name  # the operation's id in the OpenAPI document
        return Operation(handler=handler, scope=scope, doc=told[name])

    one = f"{companion.prefix}/{{resource_id}}"
    return Dialect(
        f"{companion.kind}s",
        envelope(companion.prefix),
        (
            Resource(
                companion.prefix,
                {
                    "POST": operation("create", companions.create, RUN),
                    "GET": operation("list", companions.list_all, READ),
                },
            ),
            Resource(f"{companion.prefix}/export", {"GET": operation("export_all", export_all, READ)}),
            Resource(f"{companion.prefix}/import", {"POST": operation("import", import_all, RUN)}),
            Resource(
                one,
                {
                    "GET": operation("get", companions.get, READ),
                    "PUT": operation("update", companions.update, RUN),
                    "DELETE": operation("delete", companions.delete, RUN),
                },
            ),
            Resource(f"{one}/export", {"GET": operation("export", export_one, READ)}),
        ),
    )


def agents(settings: Settings) -> Dialect:
    return _dialect(AGENTS)


def skills(settings: Settings) -> Dialect:
    return _dialect(SKILLS)


def guardrails(settings: Settings) -> Dialect:
    return _dialect(GUARDRAILS)
