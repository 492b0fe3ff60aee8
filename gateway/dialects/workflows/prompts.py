"""A prompt and a halt (contract 3.6, 3.7). One unfinished task a workflow, decided by its own history.

    (idle) --claim: latest_run = the id to be--> claimed --start--> running --end--> (idle)
                                                    |  the start was refused: the claim is given back
                                                    +  nothing started for 15 s: the claim counts as none

Who moves it: the prompt that claims; two that come at once meet in the registry, and the later one sees the
earlier one's claim. After a crash between claim and start the claim lapses by itself; a repeat of the request
by its Idempotency-Key has the same id, finds its own claim and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from gateway.agent_documents import RunOptions
from gateway.call import Call
from gateway.dialects.workflows.bodies import Prompt, parsed
from gateway.dialects.workflows.documents import document_of, subject_of
from gateway.dialects.workflows.halts import halt_row, halted
from gateway.dialects.workflows.input_rules import check_input
from gateway.dialects.workflows.requests import cause_of, once
from gateway.dialects.workflows.tickets import installation_tickets
from gateway.dialects.workflows.webhooks import both_urls
from gateway.dialects.workflows.wire import AGENT, SOURCE, WORKFLOW, PromptObject, answer, is_unfinished
from gateway.dialects.workflows.workflows import changed, found
from gateway.envelopes import Problem
from gateway.registry import Resource
from projections import execution_summary
from runtime.agent_spec import AgentSpec
from runtime.errors import NotFound, Overloaded, Unavailable
from runtime.ids import SECOND

CLAIM_SECONDS = 15
"""A claim without an execution counts as none after so long."""


async def prompt(call: Call) -> Response:
    kept = await found(call)
    body = await call.body()

    async def serve(execution_id: str) -> Response:
        given = parsed(call, body, Prompt)
        if not given.prompt and given.request is None:
            raise Problem("bad_value", "Either 'prompt' or 'request' must be provided.")
        await call.gateway.hops.run(_check_state, call, kept, execution_id)
        spec, agent_id = await _spec(call, kept, given)
        claimed = await _claim(call, kept, execution_id)
        await _start(call, claimed, spec, agent_id, execution_id)
        return await _accepted(call, claimed, execution_id)

    return await once(call, body, serve)


async def halt(call: Call) -> Response:
    kept = await found(call)
    return await once(call, b"", lambda _: halted(call, kept))


# --- what is run ----------------------------------------------------------------------------------------


async def _spec(call: Call, kept: Resource, given: Prompt) -> tuple[AgentSpec, str]:
    """What the run is asked to do, its input guardrails passed; and the agent's id. Raises: Problem."""
    gateway, tenant = call.gateway, call.caller.tenant
    document = document_of(kept)
    agent = await gateway.registry.get(tenant, AGENT, document.agent_id)
    if agent is None:
        raise Problem("agent_not_found")
    options = msgspec.structs.replace(
        msgspec.convert(kept.document, RunOptions),
        reasoning_effort=given.reasoning_effort or document.reasoning_effort,
        todos=True,  # the stream's `progress` comes from it
    )
    subject = subject_of(kept.resource_id)
    history = await gateway.agent_runs.session(tenant, subject) if document.infinite_session else ()
    text = given.prompt or ""
    if given.request is not None:
        text = json.dumps(given.request, ensure_ascii=False)  # spaced as the original's effective prompt
    spec = await gateway.agent_runs.spec(tenant, agent, text, options, history, subject=subject)
    check_input(spec.guardrails, given.prompt, given.request)
    return spec, agent.resource_id


# --- the claim ------------------------------------------------------------------------------------------


def _check_state(call: Call, kept: Resource, execution_id: str) -> None:
    """Raises: Problem bad_state. Blocks."""
    document = document_of(kept)
    if document.status == "inactive":
        raise Problem("bad_state", "Workflow is inactive")
    if not document.latest_run or document.latest_run == execution_id:
        return
    row = execution_summary.get(call.gateway.store, document.latest_run)
    if row is None:
        is_busy = call.gateway.clock() < document.claimed_at + CLAIM_SECONDS * SECOND
    else:
        is_busy = is_unfinished(row)
    if is_busy:
        raise Problem("bad_state", "A task is already running for this workflow")


async def _claim(call: Call, kept: Resource, execution_id: str) -> Resource:
    """The workflow with this run as its latest. Raises: Problem bad_state, workflow_not_found."""

    def decide(workflow: Resource) -> Mapping[str, Any]:
        _check_state(call, workflow, execution_id)
        before = document_of(workflow)
        if before.latest_run == execution_id:
            return {}
        return {
            "latest_run": execution_id,
            "previous_run": before.latest_run,
            "claimed_at": call.gateway.clock(),
        }

    return await changed(call, kept.resource_id, decide)


async def _start(call: Call, claimed: Resource, spec: AgentSpec, agent_id: str, execution_id: str) -> None:
    document = document_of(claimed)
    try:
        await call.gateway.agent_runs.start(
            call,
            spec,
            execution_id=execution_id,
            source=SOURCE,
            subject=subject_of(claimed.resource_id),
            callback_url=both_urls(document.webhook_url, document.error_webhook_url),
            agent_id=agent_id,
        )
    except Exception as error:
        # After Unavailable (or when this request is cancelled) the execution may exist all the same: then the
        # claim has to stay, and lapses by itself if it doesn't.
        if isinstance(error, Overloaded) or not isinstance(error, Unavailable):
            await _give_back(call, claimed.resource_id, execution_id)
        raise
    if await call.gateway.registry.get(claimed.tenant, WORKFLOW, claimed.resource_id) is None:
        # Deleted after the claim, by somebody who could not see the run yet.
        row = await call.gateway.reads.execution(execution_id)
        if row is not None:
            await halt_row(call, row)
        raise Problem("workflow_not_found")


async def _give_back(call: Call, workflow_id: str, execution_id: str) -> None:
    def decide(workflow: Resource) -> Mapping[str, Any]:
        document = document_of(workflow)
        if document.latest_run != execution_id:
            return {}
        return {"latest_run": document.previous_run}

    try:
        await call.gateway.registry.change(call.caller.tenant, WORKFLOW, workflow_id, decide, cause_of(call))
    except NotFound:
        return  # deleted meanwhile; so is the claim


# --- the answer -----------------------------------------------------------------------------------------


async def _accepted(call: Call, claimed: Resource, execution_id: str) -> Response:
    document = document_of(claimed)
    tickets = installation_tickets(call.gateway.settings)
    ticket = tickets.issue(claimed.tenant, claimed.resource_id, call.caller.key_id, call.gateway.clock())
    body = PromptObject(
        workflow_id=claimed.resource_id,
        task_id=execution_id,
        max_turns=document.max_turns,
        output_format=document.output_format,
        infinite_session=document.infinite_session,
        caveman=document.caveman,
        tsv_tool_results=document.tsv_tool_results,
        stream_url=f"/api/workflows/{claimed.resource_id}/stream?ticket={ticket}",
    )
    return answer(body, 201)
