"""The MCPs a plan may name: the tenant's servers, its published flows, and the assistant.

The gateway opens no MCP session: what a server can do is what was registered with it (``tools``, else the
allow-list). Nothing registered: the model names the action, and the server refuses one it doesn't have.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway.builtin_flows import DEFINITIONS
from gateway.dialects.external.plan_flow import ANSWER, ASSISTANT, FLOWS
from gateway.dialects.external.wire import Mcp

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.mcp_servers import McpServerEntry
    from projections.flows import FlowRow

FLOWS_MAX = 100
"""Flows told to the model."""

_OWN_FLOWS = re.compile(r"(?:task|agent)-[0-9a-f]{8}-[0-9a-f-]{27}")
"""The flows made of plans: none is an action of a plan, nor are the built-in ones."""

_BUILT_IN: Mapping[str, Mcp] = {
    ASSISTANT: Mcp(ASSISTANT, "A language model follows an instruction", "assistant", False, True, ()),
    FLOWS: Mcp(FLOWS, "Published flows; an action is the id of a flow", "flows", False, True, ()),
}


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """``spec``: the server as a tool of a flow. ``tools``: what it can do, as far as that is known."""

    shown: Mcp
    spec: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]] = ()


class Mcps(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan of one tenant may name."""

    servers: Mapping[str, Server]
    flows: Sequence[Mapping[str, Any]] = ()

    @property
    def specs(self) -> dict[str, Mapping[str, Any]]:
        return {name: server.spec for name, server in self.servers.items()}

    def shown(self, names: Collection[str]) -> list[Mcp]:
        """Those of ``names`` that exist, each once, in order."""
        found: list[Mcp] = []
        for name in dict.fromkeys(names):
            server = self.servers.get(name)
            known = _BUILT_IN.get(name) or (None if server is None else server.shown)
            if known is not None:
                found.append(known)
        return found

    def unauthenticated(self, names: Collection[str]) -> list[str]:
        """Those of ``names`` that can't be used yet: without their secrets, or no longer there."""
        usable = {mcp.name for mcp in self.shown(names) if mcp.auth_verified or not mcp.auth_required}
        return [name for name in dict.fromkeys(names) if name not in usable]


async def known_servers(call: Call) -> Mcps:
    """The tenant's servers, without its flows."""
    entries = await call.gateway.mcp_servers.listing(call.caller.tenant)
    return Mcps(servers={entry.name: _server(entry) for entry in entries if entry.name not in _BUILT_IN})


async def known_mcps(call: Call) -> Mcps:
    """The same with the flows a plan may run."""
    rows = await call.gateway.catalogue.listing(call.caller.tenant, limit=FLOWS_MAX * 5)
    flows: list[Mapping[str, Any]] = []
    for row in rows:
        if row.flow_id in DEFINITIONS or _OWN_FLOWS.fullmatch(row.flow_id):
            continue
        if row.enabled and len(flows) < FLOWS_MAX:
            flows.append(await _flow(call, row))
    return msgspec.structs.replace(await known_servers(call), flows=flows)


async def _flow(call: Call, row: FlowRow) -> dict[str, Any]:
    published = await call.gateway.catalogue.published(call.caller.tenant, row.flow_id)
    described: dict[str, Any] = {"action": row.flow_id, "name": row.name}
    if published is not None:
        document = published.definition.document
        described["description"] = document.get("description", "")
        described["input_schema"] = document.get("inputs") or {"type": "object"}
    return described


def _server(entry: McpServerEntry) -> Server:
    shown = Mcp(
        name=entry.name,
        description=entry.description,
        category=entry.category or None,
        auth_required=entry.auth_required,
        auth_verified=entry.auth_verified,
        auth_params=entry.auth_params,
    )
    registered = cast("list[Any]", entry.resource.document.get("tools") or entry.tool.allow or ())
    tools = [_described_tool(each) for each in registered]
    return Server(shown=shown, spec=msgspec.to_builtins(entry.tool), tools=tools)


def _described_tool(tool: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", tool) if isinstance(tool, dict) else {"name": str(tool)}


def described(mcps: Mcps) -> list[dict[str, Any]]:
    """What a model is told to choose from."""
    servers: list[dict[str, Any]] = []
    for name, server in mcps.servers.items():
        entry: dict[str, Any] = {"mcp": name, "description": server.shown.description}
        if server.tools:
            entry["actions"] = list(server.tools)
        else:
            entry["note"] = "its actions are not listed: name the one such a server is sure to have"
        servers.append(entry)
    assistant = {
        "mcp": ASSISTANT,
        "description": _BUILT_IN[ASSISTANT].description,
        "actions": [{"name": ANSWER, "input": {"instruction": "what to do, as a text"}}],
    }
    flows = {"mcp": FLOWS, "description": _BUILT_IN[FLOWS].description, "actions": list(mcps.flows)}
    return [*servers, *([flows] if mcps.flows else []), assistant]
