"""What is kept of an agent, and what a caller may choose for one run of it: shared by all contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from runtime.events import Json

AGENT = "agent"
SKILL = "skill"
GUARDRAIL = "guardrail"
MEMORY = "memory"
MCP_SERVER = "mcp_server"
"""Kinds of resources that an agent's run is put together from."""


class AgentDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A resource of kind `AGENT`; a contract may keep fields of its own beside these.

    ``tools``: as in ``AgentSpec.tools``, and two short forms: ``{"kind": "mcp", "server": <name>}`` for a
    registered server (``allow`` may narrow it) and ``{"kind": "flow", "flow_id": <id>}``. ``model`` empty:
    the server's default. ``flow_id``: the published flow that carries out its plan; empty: none.
    """

    name: str
    description: str = ""
    system_prompt: str = ""
    model: str = ""
    max_turns: int | None = None
    temperature: float | None = None
    reasoning_effort: Literal["", "low", "medium", "high"] | None = None
    output_schema: dict[str, Json] | None = None
    tools: tuple[dict[str, Json], ...] = ()
    skill_ids: tuple[str, ...] = ()
    skill_tags: tuple[str, ...] = ()
    guardrail_ids: tuple[str, ...] = ()
    guardrail_tags: tuple[str, ...] = ()
    todos: bool = False
    categories: tuple[str, ...] = ()
    status: Literal["private", "public", "draft"] = "private"
    related_questions: tuple[str, ...] = ()
    task_id: str | None = None
    flow_id: str = ""
    flow_version: str = ""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The choices of one run (workflows contract 3.1). None and empty: the agent's, else the default.

    A workflow's document is one, beside its other fields: ``msgspec.convert(document, RunOptions)``.
    ``credential_overrides``: environment name to the name of a secret.
    """

    model: str | None = None
    max_turns: int | None = None
    output_format: Literal["", "json", "markdown"] = ""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    skill_ids: tuple[str, ...] = ()
    skill_tags: tuple[str, ...] = ()
    guardrail_ids: tuple[str, ...] = ()
    guardrail_tags: tuple[str, ...] = ()
    infinite_session: bool = False
    caveman: bool = False
    bypass_memory: bool = False
    auto_memory: bool = False
    tsv_tool_results: bool = False
    todos: bool | None = None
    repo_url: str | None = None
    repo_branch: str | None = None
    repo_token_name: str | None = None
    credential_overrides: Mapping[str, str] = {}


def agent_of(document: Mapping[str, Any]) -> AgentDocument:
    """Nulls stand for what is left out. Raises: msgspec.ValidationError for a document that is none."""
    return msgspec.convert(
        {key: value for key, value in document.items() if value is not None}, AgentDocument
    )
