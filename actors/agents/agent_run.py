"""From a specification to its output: the checks, the conversation, and what is done with its answer."""

from contextlib import AsyncExitStack
from typing import cast

import msgspec

from actors.agents.claim_check import ClaimCheck
from actors.agents.conversation import Said, converse
from actors.agents.home import AgentHome, AgentSettings
from actors.agents.messages import messages_of
from actors.agents.models import Models, NamedModel
from actors.agents.recorded_model import Calls, RecordedModel
from actors.agents.recorded_tools import RecordedToolset
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
        spec = self._spec
        named = self._shared.models.named(spec.model)
        async with AsyncExitStack() as stack:
            opened: OpenTools | None = None
            if spec.tools or spec.repository is not None or spec.todos:
                opened = await stack.enter_async_context(self._shared.tools().open(spec, self._journal))
            said = await self._converse(named, opened)
            diff_ref = None if opened is None else await opened.finish(self._journal)
        return AgentOutput(
            output=said.output,
            messages=tuple(cast("list[Json]", messages_of(said.history))),
            turns=said.turns,
            stop_reason="max_turns" if said.is_cut else "completed",
            diff_ref=msgspec.to_builtins(diff_ref),
            model=named.name,
        )

    async def _converse(self, named: NamedModel, opened: OpenTools | None) -> Said:
        shared, spec, journal = self._shared, self._spec, self._journal
        toolset = None
        if opened is not None:
            toolset = RecordedToolset(shared.home, journal, opened, shared.claims, spec.tsv_tool_results)
        model = RecordedModel(named, journal, shared.calls, shared.claims)
        return await converse(
            spec, named, model, toolset, "" if opened is None else opened.instructions, journal
        )
