"""What an agent node is asked to do: everything its run depends on, as data.

A gateway resolves skills, guardrails, memories and tools when a run is asked for and puts the result into the
execution's input, so a run is replayed with what it began with, whatever changed since. Secrets stand here by
name only; whoever makes a call looks the value up at that moment.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from runtime.events import Json

TURNS_MAX = 200
TOOL_SECONDS_MAX = 3_600.0
RESULT_BYTES_MAX = 256 * 1024

Seconds = Annotated[float, msgspec.Meta(gt=0, le=TOOL_SECONDS_MAX)]
ResultBytes = Annotated[int, msgspec.Meta(ge=256, le=8 * 1024 * 1024)]


class _Tool(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
):
    """``timeout_seconds``: for one call. ``result_bytes_max``: a longer result is cut, and says so."""

    timeout_seconds: Seconds = 60.0
    result_bytes_max: ResultBytes = 64 * 1024


class PythonTool(_Tool, frozen=True, kw_only=True, tag="python"):
    """``function``: ``module:qualname``; called in a worker process. Its schema comes from its signature."""

    function: str
    name: str = ""
    description: str = ""


class FlowTool(_Tool, frozen=True, kw_only=True, tag="flow"):
    """Run a published flow of the tenant as a child execution; its output is the result.

    ``schema``: JSON Schema of the arguments, taken from the flow's inputs when the run was asked for.
    """

    flow_id: str
    name: str = ""
    description: str = ""
    schema: dict[str, Json] = msgspec.field(default_factory=dict[str, Json])
    timeout_seconds: Seconds = 600.0


class HttpTool(_Tool, frozen=True, kw_only=True, tag="http"):
    """``url`` may hold ``{argument}``; what no place in it names goes to the query (GET) or the JSON body.

    ``headers`` may hold ``{secret:NAME}``. ``schema``: JSON Schema of the arguments.
    """

    name: str
    url: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    description: str = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    schema: dict[str, Json] = msgspec.field(default_factory=dict[str, Json])


class McpServer(_Tool, frozen=True, kw_only=True, tag="mcp"):
    """An MCP server, by ``command`` (stdio) or by ``url`` (streamable HTTP).

    ``allow``: the tools that may be used; empty = all. ``env`` and ``headers`` may hold ``{secret:NAME}``.
    """

    name: str
    command: tuple[str, ...] = ()
    url: str = ""
    env: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    allow: tuple[str, ...] = ()


ToolSpec = PythonTool | FlowTool | HttpTool | McpServer


class Skill(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    instructions: str


class Guardrail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule. ``rule`` says which of the other fields count.

    pattern: ``pattern`` (regular expression) must not be found, or must be when ``must_match``. length:
    ``min_chars`` to ``max_chars``. required_input: ``fields`` must be in the request object. json_schema:
    the text must be JSON that ``schema`` allows. model: a model judges by ``instructions``.
    """

    name: str
    stage: Literal["input", "output", "both"] = "both"
    rule: Literal["pattern", "length", "required_input", "json_schema", "model"]
    pattern: str = ""
    must_match: bool = False
    min_chars: int = 0
    max_chars: int | None = None
    fields: tuple[str, ...] = ()
    schema: dict[str, Json] | None = None
    instructions: str = ""
    message: str = ""


class Repository(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``secret``: name of the token that may read it; empty = it is public."""

    url: str
    branch: str = ""
    secret: str = ""


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One agent run. ``prompt`` is the user's message of this turn, ``history`` the turns before it.

    ``history``: the ``messages`` of an earlier run's output, as they are. ``model`` empty: the server's
    default. ``max_turns``: rounds of tool calls; at the bound the run ends with ``stop_reason``
    ``max_turns`` and calls the model no more. ``output_schema``: the answer must be JSON of this schema.
    ``secrets``: environment name to secret name, for tools (``credential_overrides``). ``todos``: offer
    the tool by which a model shows its plan and progress. ``compaction``: what happens to a history that
    outgrows the model's context: summed up by the model, or its oldest turns dropped.
    """

    prompt: str
    model: str = ""
    system: str = ""
    history: tuple[Json, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    skills: tuple[Skill, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    memories: tuple[str, ...] = ()
    max_turns: Annotated[int, msgspec.Meta(ge=1, le=TURNS_MAX)] = 5
    output_format: Literal["", "json", "markdown"] = ""
    output_schema: dict[str, Json] | None = None
    reasoning_effort: Literal["", "low", "medium", "high"] = ""
    temperature: float | None = None
    compaction: Literal["summarise", "drop"] = "drop"
    auto_memory: bool = False
    caveman: bool = False
    tsv_tool_results: bool = False
    todos: bool = False
    repository: Repository | None = None
    secrets: Mapping[str, str] = {}


class AgentOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent node gives: its output is this as JSON.

    ``output``: the answer, text or (with a schema) an object. ``messages``: the whole conversation after this
    run, to be handed in as the next run's ``history``. ``turns``: tool rounds done. ``violations``: of
    output guardrails; they inform only. ``memories``: worth keeping, when ``auto_memory`` asked for them.
    ``diff_ref``: the changes made in the repository's copy, as a blob (``text/x-diff``). ``model``: as named
    to the provider; ``offline`` marks the library's own stand-in.
    """

    output: Json
    messages: tuple[Json, ...] = ()
    turns: int = 0
    stop_reason: Literal["completed", "max_turns"] = "completed"
    violations: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    diff_ref: Json = None
    model: str = ""
