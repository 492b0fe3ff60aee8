"""/api/admin/mcp-servers: the MCP servers that a tenant's agents and tasks may use.

Scope admin throughout: a stdio server is a command that runs on the hosts, and an HTTP one is sent secrets.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    TENANT,
    answer,
    body_of,
    broken,
    iso,
    json_answer,
    json_request,
    refusal,
    tenant_of,
)
from gateway.idempotency import request_digest
from gateway.keys import ADMIN
from gateway.mcp_servers import McpServerEntry
from gateway.routes import Doc, Operation, Resource
from runtime.agent_spec import TOOL_SECONDS_MAX
from runtime.errors import NotFound
from runtime.vault import NAME_PATTERN

PREFIX = "/api/admin/mcp-servers"

ShortText = Annotated[str, msgspec.Meta(max_length=500)]
LongText = Annotated[str, msgspec.Meta(max_length=8_192)]
TextMap = Annotated[dict[ShortText, LongText], msgspec.Meta(max_length=100)]
SecretName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class McpToolFields(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A tool the server has, as plans are told of it; nothing is asked of the server itself."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    description: Annotated[str, msgspec.Meta(max_length=4_096)] = ""
    input_schema: dict[str, Any] = {}


class McpServerFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``env`` and ``headers`` may hold ``{secret:NAME}``; ``auth_params`` names secrets it needs besides.

    ``allow``: the tools that may be used; empty = all. ``tools``: what a plan is told that it can do; empty:
    what ``allow`` names. ``tags``: agents may ask for servers by them. ``timeout_seconds``: for one call.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]{0,98}[^\x00-\x20\x7f])?$")]
    description: Annotated[str, msgspec.Meta(max_length=4_096)] = ""
    category: Annotated[str, msgspec.Meta(max_length=100)] = ""
    transport: Literal["stdio", "http"]
    command: Annotated[tuple[LongText, ...], msgspec.Meta(max_length=100)] = ()
    url: Annotated[str, msgspec.Meta(max_length=2_048)] = ""
    env: TextMap = {}
    headers: TextMap = {}
    auth_params: Annotated[tuple[SecretName, ...], msgspec.Meta(max_length=50)] = ()
    allow: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=500)] = ()
    tools: Annotated[tuple[McpToolFields, ...], msgspec.Meta(max_length=200)] = ()
    tags: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=50)] = ()
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=TOOL_SECONDS_MAX)] = 60.0


class McpServerShown(msgspec.Struct, frozen=True, kw_only=True):
    """``auth_params``: every secret it names. ``auth_verified``: it names some, and all are set."""

    server_id: str
    name: str
    description: str
    category: str | None
    transport: str
    command: tuple[str, ...]
    url: str
    env: dict[str, str]
    headers: dict[str, str]
    auth_params: tuple[str, ...]
    auth_required: bool
    auth_verified: bool
    missing_secrets: tuple[str, ...]
    allow: tuple[str, ...]
    tools: list[dict[str, Any]]
    tags: list[str]
    timeout_seconds: float
    created_at: str
    created_by: str
    updated_at: str


class McpServerList(msgspec.Struct, frozen=True):
    mcp_servers: list[McpServerShown]


async def _document(call: Call) -> dict[str, Any]:
    """The body, checked. Raises: Problem."""
    fields = await body_of(call, McpServerFields)
    if fields.transport == "stdio":
        if not fields.command or not fields.command[0].strip():
            raise broken("command", "a stdio server needs a command")
        if fields.url or fields.headers:
            raise broken("url" if fields.url else "headers", "only an http server has this")
    else:
        if not fields.url.startswith(("http://", "https://")):
            raise broken("url", "an http server needs an http or https address")
        if fields.command or fields.env:
            raise broken("command" if fields.command else "env", "only a stdio server has this")
    return msgspec.to_builtins(fields)


async def add_mcp_server(call: Call) -> Response:
    tenant = tenant_of(call)
    document = await _document(call)

    async def serve(request_id: str) -> Response:
        entry = await call.gateway.mcp_servers.add(tenant, document, cause_of(call), request_id)
        location = f"{PREFIX}/{entry.resource.resource_id}"
        return answer(_shown(entry), 201, {"location": location})

    digest = request_digest(tenant.encode(), msgspec.json.encode(document))
    return await call.gateway.idempotency.once(call, digest, serve)


async def list_mcp_servers(call: Call) -> Response:
    found = await call.gateway.mcp_servers.listing(tenant_of(call))
    return answer(McpServerList([_shown(entry) for entry in found]))


async def show_mcp_server(call: Call) -> Response:
    try:
        return answer(_shown(await call.gateway.mcp_servers.find(tenant_of(call), call.path["server"])))
    except NotFound:
        raise Problem("mcp_server_not_found") from None


async def replace_mcp_server(call: Call) -> Response:
    tenant, identity = tenant_of(call), call.path["server"]
    try:
        # Known before valid (gateway rule G1).
        await call.gateway.mcp_servers.find(tenant, identity)
        document = await _document(call)
        return answer(
            _shown(await call.gateway.mcp_servers.replace(tenant, identity, document, cause_of(call)))
        )
    except NotFound:
        raise Problem("mcp_server_not_found") from None


async def remove_mcp_server(call: Call) -> Response:
    try:
        entry = await call.gateway.mcp_servers.remove(tenant_of(call), call.path["server"], cause_of(call))
    except NotFound:
        raise Problem("mcp_server_not_found") from None
    return answer(_shown(entry))


def _shown(entry: McpServerEntry) -> McpServerShown:
    tool, resource = entry.tool, entry.resource
    return McpServerShown(
        server_id=resource.resource_id,
        name=tool.name,
        description=entry.description,
        category=entry.category or None,
        transport=entry.transport,
        command=tool.command,
        url=tool.url,
        env=tool.env,
        headers=tool.headers,
        auth_params=entry.auth_params,
        auth_required=entry.auth_required,
        auth_verified=entry.auth_verified,
        missing_secrets=entry.missing,
        allow=tool.allow,
        tools=resource.document.get("tools", []),
        tags=resource.document.get("tags", []),
        timeout_seconds=tool.timeout_seconds,
        created_at=iso(resource.created_at),
        created_by=resource.created_by,
        updated_at=iso(resource.updated_at),
    )


# --- documentation and routes ---------------------------------------------------------------------------

_NEW: dict[str, Any] = {
    "name": "tickets",
    "description": "Reads and writes the ticket system.",
    "category": "work",
    "transport": "http",
    "url": "https://mcp.example.org/mcp",
    "headers": {"Authorization": "Bearer {secret:tickets-token}"},
    "allow": ["search_tickets"],
}
_SHOWN: dict[str, Any] = {
    "server_id": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
    **_NEW,
    "command": [],
    "env": {},
    "auth_params": ["tickets-token"],
    "auth_required": True,
    "auth_verified": False,
    "missing_secrets": ["tickets-token"],
    "tools": [],
    "tags": [],
    "timeout_seconds": 60.0,
    "created_at": "2026-01-31T12:00:00.000000Z",
    "created_by": "first",
    "updated_at": "2026-01-31T12:00:00.000000Z",
}
_UNKNOWN = refusal("No such MCP server.", "mcp_server_not_found", "MCP server not found.")
_TAKEN = refusal("The name is taken.", "conflict", "an MCP server is called 'tickets' already")
_BROKEN = refusal(
    "A field breaks a rule.",
    "invalid_input",
    "command: a stdio server needs a command",
    [{"field": "command", "rule": "a stdio server needs a command"}],
)


def _operation(handler: Any, doc: Doc) -> Operation:
    return Operation(handler=handler, scope=ADMIN, doc=msgspec.structs.replace(doc, parameters=(TENANT,)))


RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": _operation(
                list_mcp_servers,
                Doc(
                    summary="List MCP servers, oldest first",
                    answers={200: json_answer("All of the tenant", McpServerList, {"mcp_servers": [_SHOWN]})},
                ),
            ),
            "POST": _operation(
                add_mcp_server,
                Doc(
                    summary="Add an MCP server",
                    description="A stdio server is a command on the hosts, an http one an address of "
                    "streamable HTTP. `{secret:NAME}` in env or headers is looked up at each call.",
                    request=json_request(McpServerFields, _NEW),
                    answers={
                        201: json_answer("It is added", McpServerShown, _SHOWN),
                        409: _TAKEN,
                        422: _BROKEN,
                    },
                ),
            ),
        },
    ),
    Resource(
        f"{PREFIX}/{{server}}",
        {
            "GET": _operation(
                show_mcp_server,
                Doc(
                    summary="Show an MCP server, by id or name",
                    answers={200: json_answer("The server", McpServerShown, _SHOWN), 404: _UNKNOWN},
                ),
            ),
            "PUT": _operation(
                replace_mcp_server,
                Doc(
                    summary="Replace an MCP server's fields",
                    description="An absent field gets its default. Runs that began keep what they had.",
                    request=json_request(McpServerFields, _NEW),
                    answers={
                        200: json_answer("The server", McpServerShown, _SHOWN),
                        404: _UNKNOWN,
                        409: _TAKEN,
                        422: _BROKEN,
                    },
                ),
            ),
            "DELETE": _operation(
                remove_mcp_server,
                Doc(
                    summary="Remove an MCP server",
                    answers={200: json_answer("The server as it was", McpServerShown, _SHOWN), 404: _UNKNOWN},
                ),
            ),
        },
    ),
)
