"""Python functions as tools: described and called in worker processes.

A function gets its arguments as JSON gives them, after the check against the schema of its signature: a
parameter that is a dataclass or a model is filled with a dict.
"""

import msgspec

from actors.agents.home import AgentHome
from actors.agents.tools.bound_tool import Arguments, BoundTool, ToolFailed, object_schema
from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.step_call import StepCall, StepOutcome
from actors.step_journal import StepJournal
from runtime.agent_spec import PythonTool
from runtime.events import Json, StepError
from runtime.ids import ExecutionId

DESCRIBE_SECONDS = 60.0
"""Importing the function's module included."""

DESCRIPTIONS_MAX = 1_024
RESULT_BYTES_MAX = 8 * 1024 * 1024
_DESCRIBE = "actors.agents.tools.describe:describe"


class _Description(msgspec.Struct, frozen=True):
    name: str
    description: str
    parameters: dict[str, Json]


class PythonTools:
    """Of one host: keeps what workers said about functions, the latest ``DESCRIPTIONS_MAX`` of them."""

    def __init__(self, home: AgentHome) -> None:
        self._home = home
        self._descriptions: dict[str, _Description] = {}

    async def bind(self, spec: PythonTool, journal: StepJournal) -> BoundTool:
        """Raises: ToolsUnavailable when the function can't be imported or described."""
        described = await self._describe(spec.function, journal)
        name = spec.name or described.name
        definition = ToolDefinition(
            name=name,
            description=spec.description or described.description,
            parameters=object_schema(described.parameters, name),
            timeout_seconds=spec.timeout_seconds,
            result_bytes_max=spec.result_bytes_max,
        )

        async def call(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
            return await self._call(spec, arguments, step, journal)

        return BoundTool(definition=definition, call=call)

    async def _describe(self, function: str, journal: StepJournal) -> _Description:
        known = self._descriptions.pop(function, None)
        if known is None:
            outcome = await self._home.call_function(
                self._step_call(
                    journal, "describe", _DESCRIBE, {"function": function}, seconds=DESCRIBE_SECONDS
                )
            )
            if outcome.error is not None:
                message = f"tool {function}: {outcome.error.type}: {outcome.error.message}"
                raise ToolsUnavailable("InvalidTool", message[:2_000])
            known = msgspec.convert(await self._output(outcome), _Description)
        self._descriptions[function] = known  # at the end: the least lately used goes first
        if len(self._descriptions) > DESCRIPTIONS_MAX:
            del self._descriptions[next(iter(self._descriptions))]
        return known

    async def _call(
        self, spec: PythonTool, arguments: Arguments, step: str, journal: StepJournal
    ) -> ToolResult:
        outcome = await self._home.call_function(
            self._step_call(journal, step, spec.function, arguments, seconds=spec.timeout_seconds)
        )
        if outcome.error is not None:
            raise ToolFailed(_told(outcome.error))
        return ToolResult(content=await self._output(outcome))

    async def _output(self, outcome: StepOutcome) -> Json:
        if outcome.output_ref is None:
            return msgspec.json.decode(msgspec.json.encode(outcome.output))  # it may still be raw JSON
        if outcome.output_ref.size > RESULT_BYTES_MAX:
            size = outcome.output_ref.size
            raise ToolFailed(f"the result has {size} bytes; at most {RESULT_BYTES_MAX} are taken")
        return await self._home.load(outcome.output_ref)

    def _step_call(
        self, journal: StepJournal, step: str, function: str, arguments: Arguments, *, seconds: float
    ) -> StepCall:
        state = journal.execution
        return StepCall(
            execution_id=ExecutionId(state.execution_id),
            node_id=journal.node_id,
            attempt=journal.attempt,
            key=journal.key(step),
            function=function,
            arguments=arguments,
            timeout_seconds=seconds,
            files=state.files,
        )


def _told(error: StepError) -> str:
    """Without the traceback: it names places in the user's code that are no business of a model's."""
    return f"{error.type}: {error.message}"
