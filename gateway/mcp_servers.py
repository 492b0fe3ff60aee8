"""The MCP servers a tenant's agents may use, and whether the secrets each needs are there.

A server is a resource; its secrets are named in it (``auth_params``, and ``{secret:NAME}`` in its environment
and headers). It needs authentication when it names any, and is authenticated once all of them are set: the
credential store is the one place where that happens (external contract, section 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.registry import Registry, Resource
from gateway.secrets import Secrets
from runtime.administration import Cause
from runtime.agent_spec import McpServer
from runtime.errors import AlreadyExists, NotFound, Refused
from runtime.events import Json

KIND = "mcp_server"

SERVERS_MAX = 500
"""MCP servers of one tenant; one more is refused."""

_PLACEHOLDER = re.compile(r"\{secret:([^{}]{1,200})\}")


class McpServerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """``auth_params``: every secret it needs, by name. ``missing``: those that are not set."""

    resource: Resource
    tool: McpServer
    description: str
    category: str
    transport: str
    auth_params: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.tool.name

    @property
    def auth_required(self) -> bool:
        return bool(self.auth_params)

    @property
    def auth_verified(self) -> bool:
        return bool(self.auth_params) and not self.missing

    @property
    def is_usable(self) -> bool:
        return not self.missing


class McpServers:
    def __init__(self, registry: Registry, secrets: Secrets) -> None:
        self._registry = registry
        self._secrets = secrets

    async def listing(self, tenant: str) -> list[McpServerEntry]:
        """Oldest first."""
        found, _ = await self._registry.listing(tenant, KIND, limit=SERVERS_MAX)
        return await self._entries(tenant, found)

    async def named(self, tenant: str, names: Iterable[str]) -> list[McpServerEntry]:
        """Those of ``names`` that exist, in that order; names are compared without regard to case."""
        by_name = {entry.name.casefold(): entry for entry in await self.listing(tenant)}
        wanted = dict.fromkeys(name.casefold() for name in names)
        return [by_name[name] for name in wanted if name in by_name]

    async def find(self, tenant: str, identity: str) -> McpServerEntry:
        """By id, else by name. Raises: NotFound."""
        resource = await self._registry.get(tenant, KIND, identity)
        if resource is not None:
            return (await self._entries(tenant, [resource]))[0]
        found = await self.named(tenant, [identity])
        if not found:
            raise NotFound(f"no MCP server {identity}")
        return found[0]

    async def add(
        self, tenant: str, document: Mapping[str, Json], cause: Cause, resource_id: str
    ) -> McpServerEntry:
        """Adding the same id again gives the one there is. Raises: AlreadyExists for a name that is taken."""
        if await self._registry.count(tenant, KIND) >= SERVERS_MAX:
            raise Refused(f"a tenant has at most {SERVERS_MAX} MCP servers")
        name = str(document["name"])
        await self._claim(tenant, name, resource_id)
        try:
            resource = await self._registry.create(tenant, KIND, document, cause, resource_id)
        except AlreadyExists:
            known = await self._registry.get(tenant, KIND, resource_id)
            if known is None:
                raise
            resource = known
        return (await self._entries(tenant, [resource]))[0]

    async def replace(
        self, tenant: str, identity: str, document: Mapping[str, Json], cause: Cause
    ) -> McpServerEntry:
        """Raises: NotFound; AlreadyExists for a name that is taken."""
        before = await self.find(tenant, identity)
        server_id, name = before.resource.resource_id, str(document["name"])
        await self._claim(tenant, name, server_id)
        resource = await self._registry.change(tenant, KIND, server_id, lambda _: document, cause)
        if name.casefold() != before.name.casefold():
            await self._registry.release_name(tenant, KIND, before.name.casefold(), server_id)
        return (await self._entries(tenant, [resource]))[0]

    async def remove(self, tenant: str, identity: str, cause: Cause) -> McpServerEntry:
        """The server as it was. Raises: NotFound."""
        entry = await self.find(tenant, identity)
        await self._registry.delete(tenant, KIND, entry.resource.resource_id, cause)
        await self._registry.release_name(tenant, KIND, entry.name.casefold(), entry.resource.resource_id)
        return entry

    async def _claim(self, tenant: str, name: str, server_id: str) -> None:
        if not await self._registry.claim_name(tenant, KIND, name.casefold(), server_id):
            raise AlreadyExists(f"an MCP server is called {name!r} already")

    async def _entries(self, tenant: str, found: Sequence[Resource]) -> list[McpServerEntry]:
        needs = [_auth_params(one.document) for one in found]
        missing = set(
            await self._secrets.missing(tenant, dict.fromkeys(name for each in needs for name in each))
        )
        return [
            McpServerEntry(
                resource=one,
                tool=tool_of(one.document),
                description=one.document.get("description", ""),
                category=one.document.get("category", ""),
                transport=one.document.get("transport", "http"),
                auth_params=names,
                missing=tuple(name for name in names if name in missing),
            )
            for one, names in zip(found, needs, strict=True)
        ]


def tool_of(document: Mapping[str, Any]) -> McpServer:
    """The server as a run's specification holds it; secrets stay names."""
    return McpServer(
        name=document["name"],
        command=tuple(document.get("command", ())),
        url=document.get("url", ""),
        env=dict(document.get("env", {})),
        headers=dict(document.get("headers", {})),
        allow=tuple(document.get("allow", ())),
        timeout_seconds=float(document.get("timeout_seconds", 60.0)),
    )


def _auth_params(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The names it lists, then those only its texts name."""
    texts = (*document.get("env", {}).values(), *document.get("headers", {}).values())
    used = [name for text in texts for name in _PLACEHOLDER.findall(text)]
    return tuple(dict.fromkeys([*document.get("auth_params", ()), *used]))
