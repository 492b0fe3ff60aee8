"""One agent run: the conversation between the model and its tools until there is an answer.

The library's agent drives it; every call it makes is answered by the journal when it was answered before. So
a run that starts again after a crash walks the same way through its records and goes on behind them.
"""

from collections.abc import Sequence
from typing import Any, cast

from pydantic_ai import Agent, CallToolsNode, ModelRequestNode, RunContext
from pydantic_ai.capabilities import AbstractCapability, NodeResult, ToolSearch
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import AgentNativeTool
from pydantic_ai.toolsets import AbstractToolset
from pydantic_ai.usage import UsageLimits
from pydantic_graph import End

from actors.agents.messages import history_of
from actors.agents.models import NamedModel
from actors.agents.prompt import instructions_of
from actors.agents.recorded_model import RecordedModel
from actors.agents.recorded_tools import RETRIES, RecordedToolset
from actors.agents.structured import OUTPUT_RETRIES, OUTPUT_TOOL, output_spec
from actors.step_journal import StepJournal
from runtime.agent_spec import AgentSpec
from runtime.events import Json


class _RunTools(ToolSearch[object]):
    """A run's tools are its deps, and no others.

    The library would join them with the agent's own, of which there are none, and offer a search among them:
    anew in each step, by tasks of its own, which takes a fifth of the loop's time.
    """

    def __init__(self, tools: RecordedToolset | None = None) -> None:
        super().__init__()
        self._tools = tools

    async def for_run(self, ctx: RunContext[object]) -> AbstractCapability[object]:
        return _RunTools(cast("RecordedToolset | None", ctx.deps))

    def get_native_tools(self) -> Sequence[AgentNativeTool[object]]:
        return ()

    def get_wrapper_toolset(self, toolset: AbstractToolset[object]) -> AbstractToolset[object]:
        return toolset if self._tools is None else self._tools


_AGENT: Agent[object, Any] = Agent(deps_type=object, name="heliograph", capabilities=[_RunTools()])
"""Holds nothing of a run, and building one takes longer than a run."""

_NO_LIMITS = UsageLimits(request_limit=None)


class Said:
    """What a conversation came to."""

    def __init__(self, output: Json, history: list[ModelMessage], turns: int, is_cut: bool) -> None:
        """``is_cut``: it ended at ``max_turns``; ``output`` is then the model's last text."""
        self.output = output
        self.history = history
        self.turns = turns
        self.is_cut = is_cut


async def converse(
    spec: AgentSpec,
    named: NamedModel,
    model: RecordedModel,
    toolset: RecordedToolset | None,
    of_tools: str,
    journal: StepJournal,
) -> Said:
    """Talk until the model has answered or ``max_turns`` rounds of tools are done.

    Raises: what a model's last try raised; RunFailed; ValueError for a history that is none.
    """
    run: AgentRun[object, Any]
    # The prompt stands in the history, so what the library sends has a message for each of these.
    asked: Json = {"role": "user", "content": spec.prompt}
    async with _AGENT.iter(
        None,
        output_type=output_spec(named, spec.output_schema),
        message_history=history_of([*spec.history, asked]),
        model=model,
        instructions=instructions_of(spec, of_tools) or None,
        deps=toolset,
        model_settings=settings_of(spec),
        usage_limits=_NO_LIMITS,
        retries={"tools": RETRIES, "output": OUTPUT_RETRIES},
        infer_name=False,
        # Given, so that none is drawn: neither goes anywhere.
        run_id="run",
        conversation_id="conversation",
    ) as run:
        turns = 0
        node: NodeResult[object] = run.next_node
        while not isinstance(node, End):
            is_tool_round = isinstance(node, CallToolsNode) and _calls_tools(node.model_response)
            # Not by `run.next`: the hooks and the graph that it serves take a third of the library's time.
            node = cast("NodeResult[object]", await node.run(run.ctx))
            if not is_tool_round or not isinstance(node, ModelRequestNode):
                continue
            turns += 1
            if toolset is not None:
                await toolset.record_refusals(node.request)
            if turns >= spec.max_turns:
                journal.log("max_turns_reached", {"turns": turns})
                history = [*run.all_messages(), node.request]
                return Said(_last_text(history), history, turns, is_cut=True)
        return Said(node.data.output, run.all_messages(), turns, is_cut=False)


def settings_of(spec: AgentSpec) -> ModelSettings:
    settings = ModelSettings()
    if spec.temperature is not None:
        settings["temperature"] = spec.temperature
    if spec.reasoning_effort:
        settings["thinking"] = spec.reasoning_effort
    return settings


def _calls_tools(response: ModelResponse) -> bool:
    return any(isinstance(part, ToolCallPart) and part.tool_name != OUTPUT_TOOL for part in response.parts)


def _last_text(history: list[ModelMessage]) -> str:
    return next((m.text or "" for m in reversed(history) if isinstance(m, ModelResponse)), "")
