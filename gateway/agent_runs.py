"""Runs of agents for every contract: put together, started, found again, and seen.

A run is an execution of the built-in flow `agent-run` (or of a plan's flow) that belongs to a resource, its
``subject``: ``workflow:<id>``, ``task:<id>``, ``conversation:<id>`` or ``agent:<id>``. Nothing is kept here
but pictures of runs, each as new as the row it is asked for with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from gateway.agent_documents import RunOptions
from gateway.agent_memories import Memories
from gateway.agent_specs import AgentSpecs
from gateway.builtin_flows import AGENT_ID, AGENT_RUN, ensure
from gateway.run_stream import SubjectNews, whole_event
from gateway.run_view import RunFold, RunView
from projections import execution_summary
from runtime.commands import StartExecution
from runtime.errors import NotFound
from runtime.guardrails import missing_fields, schema_violation, text_violation
from runtime.plan import Step
from runtime.queue_keys import placed

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.catalogue import PublishedFlow
    from gateway.context import Gateway
    from gateway.happenings import RunMessage
    from gateway.registry import Resource
    from projections.execution_summary import ExecutionRow
    from runtime.agent_spec import AgentSpec
    from runtime.events import Json

VIEWS_MAX = 256
"""Pictures of runs kept; the one not asked for longest goes first."""

RUNS_LOOKED_AT_MAX = 50
"""How far back the last conversation of a resource is looked for."""


class InputViolation(NamedTuple):
    """``is_missing``: the guardrail asks for an input that isn't there, rather than refusing what is."""

    guardrail: str
    reason: str
    is_missing: bool = False


class AgentRuns:
    """Lives on the event loop, one for a gateway. ``news`` wakes the streams of a subject."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._folds: OrderedDict[str, RunFold] = OrderedDict()
        self.news = SubjectNews()
        self.specs = AgentSpecs(gateway)
        self.memories = Memories(gateway)

    # --- before a run -----------------------------------------------------------------------------------

    async def spec(
        self,
        tenant: str,
        agent: Resource | None,
        prompt: str,
        options: RunOptions,
        history: Sequence[Json] = (),
        *,
        subject: str = "",
    ) -> AgentSpec:
        """What the run is asked to do, from the resources as they are now.

        ``subject``: what its last run found worth keeping is among the memories already.
        Raises: InvalidInput for an agent's document or an option that can't be run.
        """
        if subject and agent is not None and not options.bypass_memory:
            latest = await self.latest_run(tenant, subject)
            if latest is not None:
                await self.memories.settle(latest)
        return await self.specs.spec(tenant, agent, prompt, options, history)

    @staticmethod
    def check_input(
        spec: AgentSpec, text: str, request: Mapping[str, Json] | None = None
    ) -> tuple[InputViolation, ...]:
        """What the input guardrails have against it, in their order; those that ask a model are the run's.

        ``text``: the prompt, empty when there is none. ``request``: the object given instead or beside it.
        """
        found: list[InputViolation] = []
        for rule in spec.guardrails:
            if rule.stage == "output":
                continue
            missing = missing_fields(rule, request)
            if missing:
                reason = rule.message or f"missing required input: {', '.join(missing)}"
                found.append(InputViolation(rule.name, reason, is_missing=True))
                continue
            reason = ""
            if rule.rule == "json_schema" and request is not None:
                reason = schema_violation(rule, dict(request), "Request")
            elif text:
                reason = text_violation(rule, text, "Prompt")
            if reason:
                found.append(InputViolation(rule.name, reason))
        return tuple(found)

    # --- starting ---------------------------------------------------------------------------------------

    async def start(
        self,
        call: Call,
        spec: AgentSpec,
        *,
        execution_id: str,
        source: str,
        subject: str,
        timeout_seconds: float | None = None,
        callback_url: str = "",
        agent_id: str = "",
    ) -> None:
        """Start an agent's run; returns when it is durable. The same id again is harmless.

        ``agent_id``: whose memories the run may add to.
        Raises: Problem too_many_executions or unavailable; NotFound when the tenant disabled `agent-run`;
        Overloaded, Unavailable.
        """
        flow = await ensure(self._gateway, call.caller.tenant, AGENT_RUN)
        given: dict[str, Any] = msgspec.to_builtins(spec)
        if agent_id:
            given[AGENT_ID] = agent_id
        await self._start(call, flow, given, execution_id, source, subject, timeout_seconds, callback_url)

    async def start_flow(
        self,
        call: Call,
        flow_id: str,
        given: Mapping[str, Json],
        *,
        execution_id: str,
        source: str,
        subject: str,
        timeout_seconds: float | None = None,
        callback_url: str = "",
        flow_version: str = "",
    ) -> None:
        """Start a plan's flow with named inputs; ``flow_version`` empty: the latest.

        Raises: as `start`; NotFound for a flow that isn't there; InvalidInput by the flow's own schema.
        """
        tenant = call.caller.tenant
        catalogue = self._gateway.catalogue
        if flow_version:
            flow = await catalogue.version(tenant, flow_id, flow_version)
        else:
            flow = await catalogue.published(tenant, flow_id)
        if flow is None:
            raise NotFound(f"flow {flow_id} is not published")
        await self._start(
            call, flow, dict(given), execution_id, source, subject, timeout_seconds, callback_url
        )

    async def _start(
        self,
        call: Call,
        flow: PublishedFlow,
        given: dict[str, Any],
        execution_id: str,
        source: str,
        subject: str,
        timeout_seconds: float | None,
        callback_url: str,
    ) -> None:
        gateway = self._gateway
        flow.check_input(given)
        await gateway.limits.count_start(call.caller)
        call.execution_id = execution_id
        command = StartExecution(
            at=gateway.clock(),
            by=call.caller.key_id,
            cause=call.correlation_id,
            execution_id=execution_id,
            tenant=call.caller.tenant,
            flow_id=flow.definition.id,
            flow_version=flow.version,
            placement=flow.plan.placement,
            source=source,
            input=given,
            correlation_id=call.given_correlation_id,
            timeout_seconds=timeout_seconds,
            callback_url=callback_url,
            subject=subject,
        )
        with gateway.limits.starting():
            await gateway.executions.start(placed(command, flow.plan))
        self.news.tell(call.caller.tenant, subject)

    # --- afterwards -------------------------------------------------------------------------------------

    async def latest_run(self, tenant: str, subject: str) -> ExecutionRow | None:
        found = await self.runs(tenant, subject, 1)
        return found[0] if found else None

    async def runs(self, tenant: str, subject: str, limit: int) -> list[ExecutionRow]:
        """The subject's runs, newest first."""
        return await self._gateway.hops.run(
            execution_summary.runs_of, self._gateway.store, tenant, subject, limit
        )

    async def session(self, tenant: str, subject: str, *, completed_only: bool = False) -> tuple[Json, ...]:
        """The ``history`` for the subject's next run; empty before the first.

        It ends with the latest run that has ended: as that run left it when it completed; else with what was
        said and answered until it stopped. ``completed_only``: a run that did not complete leaves no trace.
        """
        for row in await self.runs(tenant, subject, RUNS_LOOKED_AT_MAX):
            if row.ended_at is None and row.cancel_requested_at is None:
                continue
            if completed_only and row.status != "completed":
                continue
            view = await self.view(row)
            if view.conversation is not None:
                return view.conversation
            if view.status != "completed":
                return _interrupted(view)
        return ()

    async def view(self, row: ExecutionRow) -> RunView:
        """The run as it is now, at least as new as ``row``."""
        fold = self._folds.get(row.execution_id)
        if fold is None:
            published = await self._gateway.catalogue.version(row.tenant, row.flow_id, row.flow_version)
            steps: Mapping[Any, Step] = {} if published is None else published.plan.steps
            fold = self._folds.setdefault(row.execution_id, RunFold(steps))
        self._folds.move_to_end(row.execution_id)
        while len(self._folds) > VIEWS_MAX:
            self._folds.popitem(last=False)
        if fold.version < row.version:
            recorded = await self._gateway.log_hops.run(
                self._gateway.log.read, row.execution_id, fold.version
            )
            for each in recorded:
                event = await whole_event(self._gateway, each)
                if each.originator_version == fold.version + 1:  # another reader may have been faster
                    fold.apply(each.position, event)
        return fold.view()


def _interrupted(view: RunView) -> tuple[Json, ...]:
    """What was said in a run that did not complete: no prompt without answer, no call without result."""
    given: Any = view.input
    history: Any = cast("dict[str, Any]", given).get("history") if isinstance(given, dict) else None
    before: list[Json] = cast("list[Json]", history) if isinstance(history, list) else []
    said = list(view.messages)
    end = len(said)
    open_calls: set[str] = set()
    for index in range(len(said) - 1, -1, -1):
        message = said[index]
        if message.role == "tool":
            open_calls.add(message.tool_call_id)
        elif message.role == "assistant":
            if {call.tool_call_id for call in message.tool_calls} <= open_calls:
                break
            end = index
            open_calls.clear()
    said = said[:end]
    if not any(message.role == "assistant" for message in said):
        return tuple(before)
    return (*before, *(_plain(message) for message in said))


def _plain(message: RunMessage) -> Json:
    """As ``AgentOutput.messages`` has it."""
    plain: dict[str, Json] = {"role": message.role, "content": message.content}
    if message.role == "assistant":
        plain["content"] = message.content or None
        if message.tool_calls:
            plain["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
        if message.raw is not None:
            plain["raw"] = message.raw
    elif message.role == "tool":
        plain |= {"tool_call_id": message.tool_call_id, "name": message.name}
        if message.is_error:
            plain["is_error"] = True
    return plain
