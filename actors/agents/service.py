"""Runs agent nodes and tool nodes for one host: what it holds is shared by all its runs.

No fault leaves ``run``: it is the outcome's error. Whatever was asked and answered until then is recorded, so
a later attempt of the node pays only for what comes after.
"""

import asyncio
import time

import msgspec
import pydantic_ai
import structlog

from actors.agents.agent_run import AgentRun, Shared
from actors.agents.claim_check import ClaimCheck
from actors.agents.errors import RUN_FAULTS, RunFailed, step_error
from actors.agents.home import AgentHome, AgentSettings
from actors.agents.messages import text_of
from actors.agents.models import Models
from actors.agents.prices import PriceTable, read_table
from actors.agents.recorded_model import Calls
from actors.agents.tools.interface import ToolBox
from actors.agents.tracing import flush_spans, tool_span
from actors.step_call import StepOutcome
from actors.step_journal import StepJournal
from runtime.errors import DomainError
from runtime.events import Json, StepError
from runtime.plan import CallTool, RunAgent

log = structlog.stdlib.get_logger(__name__)

_CALL_STEP = "tool-call"


class AgentService:
    def __init__(self, home: AgentHome, settings: AgentSettings, tools: ToolBox | None = None) -> None:
        """``tools``: None: the real ones, made with the first run that has some."""
        pydantic_ai.BANNER_ENABLED = False  # a host is nobody's first run
        self._home = home
        self._settings = settings
        self._models = Models(settings)
        self._claims = ClaimCheck(home)
        self._tools = tools
        self._shared: Shared | None = None
        self._opening = asyncio.Lock()

    async def run(
        self, action: RunAgent | CallTool, journal: StepJournal, timeout_seconds: float | None
    ) -> StepOutcome:
        """How the attempt ended; ``timeout_seconds``: for all of it. Raises: CancelledError only."""
        began = time.perf_counter()
        limit = asyncio.timeout(timeout_seconds)
        try:
            async with limit:
                if isinstance(action, RunAgent):
                    output = await self._run_agent(action, journal)
                else:
                    output = await self._call_tool(action, journal)
            outcome = await self._outcome(output)
        except TimeoutError as error:
            if timeout_seconds is not None and limit.expired():
                message = f"the attempt took longer than its {timeout_seconds:g} s"
                outcome = self._failed(StepError(type="TimeoutError", message=message))
            else:
                outcome = self._failed(step_error(error, self._models.key))
        except (*RUN_FAULTS, DomainError) as error:
            outcome = self._failed(step_error(error, self._models.key))
        except Exception as error:  # a fault of ours ends the run, not the host
            log.exception("an agent run failed in a way nobody foresaw", node_id=journal.node_id)
            outcome = self._failed(step_error(error, self._models.key))
        duration = int((time.perf_counter() - began) * 1e6)
        return msgspec.structs.replace(outcome, duration_micros=duration)

    async def _run_agent(self, action: RunAgent, journal: StepJournal) -> Json:
        shared = await self._open()
        await journal.turn()
        output = await AgentRun(shared, action.spec, journal).run()
        return output.output if action.plain else msgspec.to_builtins(output)

    async def _call_tool(self, action: CallTool, journal: StepJournal) -> Json:
        answer = journal.answer(_CALL_STEP)
        if answer is not None:
            content, is_error = await self._claims.read(answer.content, answer.content_ref), answer.is_error
        else:
            shared = await self._open()
            name = action.name or getattr(action.tool, "name", "") or "tool"
            await journal.begin(_CALL_STEP, "tool", name, request=dict(action.arguments))
            began = time.perf_counter()
            with tool_span(journal, _CALL_STEP, name, "call") as span:
                result = await shared.tools().call_once(action, _CALL_STEP, journal)
                if result.is_error:
                    span.failed("ToolError")
            content, is_error = result.content, result.is_error
            kept, ref = await self._claims.check(content)
            await journal.end(
                _CALL_STEP,
                "tool",
                content=kept,
                content_ref=ref,
                tool_call_id="call",
                name=name,
                is_error=is_error,
                duration_ms=(time.perf_counter() - began) * 1e3,
            )
        if is_error:
            raise RunFailed("ToolError", text_of({"content": content}))
        return content

    async def _open(self) -> Shared:
        async with self._opening:
            if self._shared is None:
                prices: PriceTable = await asyncio.to_thread(read_table, self._settings.models_file)
                calls = Calls(prices, self._settings.model_calls_max, self._models.key)
                self._shared = Shared(
                    self._home, self._settings, self._models, calls, self._claims, self._tools
                )
            return self._shared

    async def _outcome(self, output: Json) -> StepOutcome:
        kept, ref = await self._claims.check(output)
        return StepOutcome(output=kept, output_ref=ref, where=self._home.where, started=True)

    def _failed(self, error: StepError) -> StepOutcome:
        return StepOutcome(error=error, where=self._home.where, started=True)

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()
        await self._models.close()
        await asyncio.to_thread(flush_spans)
