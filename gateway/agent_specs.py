"""What an agent's run is asked to do, put together from the tenant's resources when the run is asked for.

The specification stands in the execution's input, so a run depends on nothing that changes later. What a list
names but is not there any more is left out; secrets stand in it by name only.

An agent shared by another tenant brings its words, skills and guardrails. Of its tools only those that name
no secret and no flow come along: both names would mean the caller's own things.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import structlog

from gateway.agent_documents import (
    GUARDRAIL,
    MEMORY,
    SKILL,
    AgentDocument,
    RunOptions,
    agent_of,
)
from gateway.registry import Resource
from runtime.agent_spec import AgentSpec, FlowTool, Guardrail, McpServer, Repository, Skill, ToolSpec
from runtime.errors import InvalidInput
from runtime.events import Json

if TYPE_CHECKING:
    from gateway.context import Gateway

log = structlog.get_logger("gateway.agent_specs")

MEMORIES_MAX = 50
"""The newest ones an agent is reminded of."""

TAGGED_MAX = 500
"""Skills (or guardrails) that one set of tags may bring."""

T = TypeVar("T")

_TURNS_DEFAULT = 5
_SECRET = b"secret:"


class AgentSpecs:
    """Reads the registry and the catalogue; keeps nothing."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def spec(
        self,
        tenant: str,
        agent: Resource | None,
        prompt: str,
        options: RunOptions,
        history: Sequence[Json] = (),
    ) -> AgentSpec:
        """Raises: InvalidInput for an agent's document or an option that can't be run."""
        document = AgentDocument(name="") if agent is None else _document(agent)
        owner = tenant if agent is None else agent.tenant
        skills, guardrails, memories, tools = await asyncio.gather(
            self._named(
                SKILL,
                Skill,
                (
                    (owner, document.skill_ids, document.skill_tags),
                    (tenant, options.skill_ids, options.skill_tags),
                ),
            ),
            self._named(
                GUARDRAIL,
                Guardrail,
                (
                    (owner, document.guardrail_ids, document.guardrail_tags),
                    (tenant, options.guardrail_ids, options.guardrail_tags),
                ),
            ),
            self._memories(tenant, agent, options),
            self._tools(tenant, owner, document),
        )
        repository = None
        if options.repo_url:
            repository = Repository(
                url=options.repo_url,
                branch=options.repo_branch or "",
                secret=options.repo_token_name or "",
            )
        fields: dict[str, Any] = {
            "prompt": prompt,
            "model": options.model or document.model,
            "system": document.system_prompt,
            "history": tuple(history),
            "tools": tools,
            "skills": skills,
            "guardrails": guardrails,
            "memories": memories,
            "max_turns": options.max_turns or document.max_turns or _TURNS_DEFAULT,
            "output_format": options.output_format,
            "output_schema": document.output_schema,
            "reasoning_effort": options.reasoning_effort or document.reasoning_effort or "",
            "temperature": document.temperature,
            "compaction": "summarise" if options.infinite_session else "drop",
            "auto_memory": options.auto_memory,
            "caveman": options.caveman,
            "tsv_tool_results": options.tsv_tool_results,
            "todos": document.todos if options.todos is None else options.todos,
            "repository": repository,
            "secrets": dict(options.credential_overrides),
        }
        return _checked(AgentSpec(**fields))

    async def flow_tool(self, tenant: str, given: FlowTool) -> FlowTool | None:
        """With the flow's own description and inputs where ``given`` says nothing; None without a flow."""
        published = await self._gateway.catalogue.published(tenant, given.flow_id)
        if published is None:
            return None
        definition = published.definition
        return msgspec.structs.replace(
            given,
            description=given.description or definition.description or definition.name,
            schema=given.schema or dict(definition.inputs or {"type": "object"}),
        )

    # --- parts ------------------------------------------------------------------------------------------

    async def _named(
        self,
        kind: str,
        made: type[T],
        sources: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    ) -> tuple[T, ...]:
        """Those named by id, in that order, then those that have a tag, by age; each once."""
        found: dict[str, Resource] = {}
        registry = self._gateway.registry
        for owner, ids, _ in sources:
            for resource in await registry.get_many(owner, kind, list(dict.fromkeys(ids))):
                found.setdefault(resource.resource_id, resource)
        for owner, _, tags in sources:
            if tags:
                tagged, _total = await registry.listing(owner, kind, labels=tags, limit=TAGGED_MAX)
                for resource in tagged:
                    found.setdefault(resource.resource_id, resource)
        return tuple(part for each in found.values() for part in _parts(each, made))

    async def _memories(self, tenant: str, agent: Resource | None, options: RunOptions) -> tuple[str, ...]:
        """Oldest first, so that what was learnt last stands nearest to the prompt."""
        if agent is None or options.bypass_memory:
            return ()
        listed, _ = await self._gateway.registry.listing(
            tenant, MEMORY, parent=agent.resource_id, newest_first=True, limit=MEMORIES_MAX
        )
        return tuple(str(memory.document.get("text", "")) for memory in reversed(listed))

    async def _tools(self, tenant: str, owner: str, document: AgentDocument) -> tuple[ToolSpec, ...]:
        names = [str(each["server"]) for each in document.tools if "server" in each]
        entries = await self._gateway.mcp_servers.named(owner, names) if names else []
        servers = {entry.name.casefold(): entry.tool for entry in entries}
        tools: list[ToolSpec] = []
        for raw in document.tools:
            tool = await self._tool(owner, raw, servers)
            if tool is None or (owner != tenant and _is_private(tool)):
                log.info("tool_left_out", agent=document.name, tool=raw.get("server") or raw.get("flow_id"))
                continue
            tools.append(tool)
        return tuple(tools)

    async def _tool(self, owner: str, raw: dict[str, Json], servers: dict[str, McpServer]) -> ToolSpec | None:
        if raw.get("kind") == "mcp" and "server" in raw:
            server = servers.get(str(raw["server"]).casefold())
            allow: Any = raw.get("allow")
            if server is None or not allow:
                return server
            allowed = [str(name) for name in allow if not server.allow or name in server.allow]
            # None left: an empty list would allow all of them.
            return msgspec.structs.replace(server, allow=tuple(allowed)) if allowed else None
        tool = _tool_spec(raw)
        return await self.flow_tool(owner, tool) if isinstance(tool, FlowTool) else tool


def _document(agent: Resource) -> AgentDocument:
    try:
        return agent_of(agent.document)
    except msgspec.ValidationError as error:
        raise InvalidInput((("agent", str(error)),)) from None


def _tool_spec(raw: dict[str, Json]) -> ToolSpec:
    """Raises: InvalidInput."""
    try:
        return msgspec.convert(raw, cast("type[ToolSpec]", ToolSpec))
    except msgspec.ValidationError as error:
        raise InvalidInput((("tools", str(error)),)) from None


def _checked(spec: AgentSpec) -> AgentSpec:
    """The specification as the execution will read it. Raises: InvalidInput for a value out of bounds."""
    try:
        return msgspec.convert(msgspec.to_builtins(spec), AgentSpec)
    except msgspec.ValidationError as error:
        raise InvalidInput((("", str(error)),)) from None


def _parts(resource: Resource, made: type[T]) -> list[T]:
    """What a skill's or guardrail's document says; what can't be read is left out, and logged.

    One with ``rules`` stands for each of them, and one that is not ``enabled`` for nothing.
    """
    if resource.document.get("enabled") is False:
        return []
    rules: Any = resource.document.get("rules")
    documents = cast("list[dict[str, Json]]", rules) if isinstance(rules, list) else [resource.document]
    parts: list[T] = []
    for document in documents:
        known = {key: value for key, value in document.items() if value is not None}
        try:
            parts.append(msgspec.convert(known, made))
        except msgspec.ValidationError as error:
            log.warning(
                "resource_left_out", kind=resource.kind, resource_id=resource.resource_id, reason=str(error)
            )
    return parts


def _is_private(tool: ToolSpec) -> bool:
    return isinstance(tool, FlowTool) or _SECRET in msgspec.json.encode(tool)
