"""An agent that answers by itself: its run as the server's agents are run (sections 4.2 and 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.agent_documents import RunOptions
from gateway.dialects.external.plans import publish_plan
from gateway.dialects.external.records import agent_of, agent_plan
from gateway.dialects.external.wire import invalid
from runtime.agent_spec import AgentSpec, FlowTool

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from runtime.events import Json

_PLAN_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {"input": {"type": "string", "description": "what to do, in full sentences"}},
}


async def answering_spec(
    call: Call, agent: Resource, prompt: str, field: str, history: Sequence[Json] = ()
) -> AgentSpec:
    """What the agent is asked to do. Raises: Problem invalid_input when a guardrail refuses ``field``."""
    runs = call.gateway.agent_runs
    spec = await runs.spec(call.caller.tenant, agent, prompt, RunOptions(), history)
    violations = runs.check_input(spec, prompt)
    if violations:
        raise invalid(*((field, violation.reason) for violation in violations))
    return spec


async def chatting_spec(call: Call, agent: Resource, message: str, history: Sequence[Json]) -> AgentSpec:
    """One turn of a chat. An agent with a plan answers by itself too, and has its plan as a tool."""
    spec = await answering_spec(call, agent, message, "message", history)
    plan = agent_plan(agent)
    if plan is None:
        return spec
    known = agent_of(agent)
    flow = await publish_plan(call, f"agent-{agent.resource_id}", known.name, plan)
    tool = FlowTool(
        flow_id=flow.definition.id,
        name="carry_out",
        description=known.description[:1_000] or f"What {known.name} does",
        schema=dict(_PLAN_SCHEMA),
    )
    return msgspec.structs.replace(spec, tools=(*spec.tools, tool))


def with_parameters(text: str, parameters: Mapping[str, Json]) -> str:
    """A prompt is all that an agent without a plan reads, so named inputs stand in it."""
    if not parameters:
        return text
    return f"{text}\n\nParameters:\n{msgspec.json.encode(dict(parameters)).decode()}"
