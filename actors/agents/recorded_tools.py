"""The tools of a run, as the model library sees them: each call is a recorded step, made once.

A call that fails is an answer too: the model is told, and goes on. So nothing here ends a run but
cancellation and a log that is away.
"""

import asyncio
import time
from typing import Any, Literal, cast

import msgspec
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.tools import ToolDefinition as LibraryDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

from actors.agents.claim_check import ClaimCheck
from actors.agents.home import AgentHome
from actors.agents.messages import text_of
from actors.agents.tools.interface import OpenTools, ToolDefinition, ToolResult, child_id_of
from actors.agents.tracing import tool_span
from actors.agents.tsv import as_tsv
from actors.step_journal import StepJournal
from runtime.events import Json

ARGUMENTS_BYTES_MAX = 16 * 1024
"""Of a call's arguments, as its beginning shows them; the model's answer holds them whole."""

RETRIES = 1_000
"""What the library counts against a tool; the bound of a run is ``max_turns``."""

_UNKNOWN = ("unknown_tool", "unavailable_tool")
_NOT_JSON = "arguments that are no JSON object"


class _AnyArguments:
    """Takes what the model wrote: the tool checks it, and its refusal is recorded as any answer."""

    def validate_json(
        self,
        input: str | bytes | bytearray,  # noqa: A002 - the protocol's own name
        *,
        allow_partial: bool | Literal["off", "on", "trailing-strings"] = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        try:
            value: Json = msgspec.json.decode(input)
        except msgspec.DecodeError:
            value = None
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
        return {_NOT_JSON: input if isinstance(input, str) else input.decode(errors="replace")}

    def validate_python(
        self,
        input: Any,  # noqa: A002 - the protocol's own name
        *,
        allow_partial: bool | Literal["off", "on", "trailing-strings"] = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        return input


class RecordedToolset(AbstractToolset[object]):
    def __init__(
        self,
        home: AgentHome,
        journal: StepJournal,
        tools: OpenTools,
        claims: ClaimCheck,
        tsv: bool = False,
    ) -> None:
        self._home = home
        self._journal = journal
        self._open = tools
        self._claims = claims
        self._tsv = tsv
        self._definitions = {definition.name: definition for definition in tools.definitions}
        self._tools = {
            name: ToolsetTool[object](
                toolset=self,
                tool_def=LibraryDefinition(
                    name=name,
                    description=definition.description,
                    parameters_json_schema=dict(definition.parameters),
                ),
                max_retries=RETRIES,
                args_validator=_AnyArguments(),
            )
            for name, definition in self._definitions.items()
        }

    @property
    def id(self) -> str:
        return "heliograph"

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        return self._tools

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[object], tool: ToolsetTool[object]
    ) -> Any:
        """The call's recorded result. Raises: ToolFailed, which the model is told, when it is an error."""
        content, is_error = await self.record(ctx.tool_call_id or "", name, tool_args)
        if is_error:
            raise ToolFailed(text_of({"content": content}))
        return content

    async def record(self, call_id: str, name: str, arguments: dict[str, Json]) -> tuple[Json, bool]:
        """What the call gave, from the log or from the tool; and whether it is an error."""
        step = f"tool-{call_id}"
        answer = self._journal.answer(step)
        if answer is not None:
            return await self._claims.read(answer.content, answer.content_ref), answer.is_error
        definition = self._definitions[name]
        await self._begin(step, name, arguments, definition)
        began = time.perf_counter()
        with tool_span(self._journal, step, name, call_id) as span:
            result = await self._call(definition, arguments, step)
            if result.is_error:
                span.failed("ToolError")
        content = bounded(as_tsv(result.content) if self._tsv else None, result.content, definition)
        await self._end(step, call_id, name, content, result.is_error, time.perf_counter() - began)
        return content, result.is_error

    async def record_refusals(self, request: ModelRequest) -> None:
        """Record what the library itself answered to a call, as of a tool that does not exist."""
        for part in request.parts:
            if not isinstance(part, ToolReturnPart) or part.retry is None or part.retry.cause not in _UNKNOWN:
                continue
            step = f"tool-{part.tool_call_id}"
            if self._journal.answer(step) is None:
                await self._journal.begin(step, "tool", part.tool_name)
                content = part.model_response_str(wrap_if_error=False)
                await self._end(step, part.tool_call_id, part.tool_name, content, True, 0.0)

    async def _begin(
        self, step: str, name: str, arguments: dict[str, Json], definition: ToolDefinition
    ) -> None:
        shown: Json = arguments
        if len(msgspec.json.encode(arguments)) > ARGUMENTS_BYTES_MAX:
            shown = {"omitted": f"more than {ARGUMENTS_BYTES_MAX} bytes"}
        await self._journal.begin(
            step,
            "tool",
            name,
            request=shown,
            child_id=child_id_of(self._home, self._journal, step) if definition.child_flow else "",
        )

    async def _end(
        self, step: str, call_id: str, name: str, content: Json, is_error: bool, seconds: float
    ) -> None:
        kept, ref = await self._claims.check(content)
        await self._journal.end(
            step,
            "tool",
            content=kept,
            content_ref=ref,
            tool_call_id=call_id,
            name=name,
            is_error=is_error,
            duration_ms=seconds * 1e3,
        )

    async def _call(self, definition: ToolDefinition, arguments: dict[str, Json], step: str) -> ToolResult:
        if _NOT_JSON in arguments:
            return ToolResult(content="the arguments are no JSON object", is_error=True)
        try:
            async with asyncio.timeout(definition.timeout_seconds):
                return await self._open.call(definition.name, arguments, step, self._journal)
        except TimeoutError:
            message = f"{definition.name} took longer than its {definition.timeout_seconds:g} s"
            return ToolResult(content=message, is_error=True)


def bounded(table: str | None, content: Json, definition: ToolDefinition) -> Json:
    """The result as it is told and recorded: a table as TSV, and a long one cut with a word about it."""
    value: Json = content if table is None else table
    data = value.encode(errors="replace") if isinstance(value, str) else msgspec.json.encode(value)
    most = definition.result_bytes_max
    if len(data) <= most:
        return value
    return f"{data[:most].decode(errors='ignore')}\n[cut: {most} of {len(data)} bytes]"
