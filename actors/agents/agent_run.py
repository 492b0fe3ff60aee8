"""From a specification to its output: the checks, the conversation, and what is done with its answer."""

from contextlib import AsyncExitStack
from typing import cast

import msgspec

from actors.agents.claim_check import ClaimCheck
from actors.agents.compaction import Context
from actors.agents.conversation import Said, converse
from actors.agents.home import AgentHome, AgentSettings
from actors.agents.judging import check_input, output_violations
from actors.agents.memories import found_in
from actors.agents.messages import messages_of, text_of
from actors.agents.models import Models, NamedModel
from actors.agents.recorded_model import Calls, RecordedModel
from actors.agents.recorded_tools import RecordedToolset
from actors.agents.side_calls import SideCalls
from actors.agents.tools.interface import OpenTools, ToolBox
from actors.step_journal import StepJournal
from runtime.agent_spec import AgentOutput, AgentSpec
from runtime.events import Json


class Shared:
    """What all runs of one service share."""

    def __init__(
        self,
        home: AgentHome,
        settings: AgentSettings,
        models: Models,
        calls: Calls,
        claims: ClaimCheck,
        tools: ToolBox | None,
    ) -> None:
        self.home = home
        self.settings = settings
        self.models = models
        self.calls = calls
        self.claims = claims
        self._tools = tools

    def tools(self) -> ToolBox:
        if self._tools is None:
            # Late: their libraries (MCP) cost memory that a run without tools does not need.
            from actors.agents.tools.toolbox import create_toolbox

            self._tools = create_toolbox(self.home, self.settings)
        return self._tools

    async def close(self) -> None:
        if self._tools is not None:
            await self._tools.close()


class AgentRun:
    """One attempt of one agent node."""

    def __init__(self, shared: Shared, spec: AgentSpec, journal: StepJournal) -> None:
        self._shared = shared
        self._spec = spec
        self._journal = journal

    async def run(self) -> AgentOutput:
        """Raises: what ``errors.step_error`` knows."""
        spec, shared, journal = self._spec, self._shared, self._journal
        named = shared.models.named(spec.model)
        asks = SideCalls(named, journal, shared.calls, shared.claims)
        await check_input(spec.guardrails, spec.prompt, asks)
        context = Context(
            shared.calls.prices.context_tokens(named.name),
            journal,
            asks if spec.compaction == "summarise" else None,
        )
        async with AsyncExitStack() as stack:
            opened: OpenTools | None = None
            if spec.tools or spec.repository is not None or spec.todos:
                opened = await stack.enter_async_context(shared.tools().open(spec, journal))
            said = await self._converse(named, opened, context)
            diff_ref = None if opened is None else await opened.finish(journal)
        violations = await output_violations(spec.guardrails, text_of({"content": said.output}), asks)
        if violations:
            journal.log("output_guardrail_violation", {"violations": violations})
        history = context.of(said.history)
        memories = await found_in(said.history, spec.memories, asks) if spec.auto_memory else ()
        return AgentOutput(
            output=said.output,
            messages=tuple(cast("list[Json]", messages_of(history))),
            violations=violations,
            memories=memories,
            turns=said.turns,
            stop_reason="max_turns" if said.is_cut else "completed",
            diff_ref=msgspec.to_builtins(diff_ref),
            model=named.name,
        )

    async def _converse(self, named: NamedModel, opened: OpenTools | None, context: Context) -> Said:
        shared, spec, journal = self._shared, self._spec, self._journal
        toolset = None
        if opened is not None:
            toolset = RecordedToolset(shared.home, journal, opened, shared.claims, spec.tsv_tool_results)
        model = RecordedModel(named, journal, shared.calls, shared.claims, fit=context.fit)
        return await converse(
            spec, named, model, toolset, "" if opened is None else opened.instructions, journal
        )
