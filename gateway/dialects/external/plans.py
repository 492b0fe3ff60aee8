"""A plan as it is stored, checked and published (contract section 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.dialects.external.mcps import known_servers
from gateway.dialects.external.plan_flow import ANSWER, ASSISTANT, PlanFault, flow_document
from gateway.dialects.external.records import cause_of
from gateway.dialects.external.wire import Plan, Step
from gateway.envelopes import Problem
from runtime.errors import InvalidGraph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.call import Call
    from gateway.catalogue import PublishedFlow
    from gateway.dialects.external.mcps import Mcps


def plan_of(steps: Sequence[Step], mcps: Mcps) -> Plan:
    """The plan as it is shown: each MCP that a step names, once."""
    named = mcps.shown([step.mcp for step in steps])
    shown = [
        {
            "name": mcp.name,
            "description": mcp.description,
            "category": mcp.category,
            "authRequired": mcp.auth_required,
            "authParams": list(mcp.auth_params),
        }
        for mcp in named
    ]
    return Plan(tuple(shown), tuple(steps))


async def check_plan(
    flow_id: str, name: str, steps: Sequence[Step], mcps: Mcps, call: Call
) -> dict[str, Any]:
    """The flow that carries the steps out. Raises: PlanFault with all that is wrong."""
    document = flow_document(flow_id, name, steps, mcps.specs)
    try:
        await call.gateway.catalogue.validate(document)
    except InvalidGraph as error:
        problems = [(f"{node or 'flow'} {field}".strip(), rule) for node, field, rule in error.problems]
        raise PlanFault(problems) from None
    return document


async def publish_plan(call: Call, flow_id: str, name: str, plan: Plan) -> PublishedFlow:
    """Make the plan the caller's flow ``flow_id``, with the MCP servers as they are registered now.

    Raises: Problem mcp_auth_required when a server is not there (any more).
    """
    mcps = await known_servers(call)
    missing = [mcp for mcp in mcps.unauthenticated(names_of(plan)) if mcp not in mcps.servers]
    if missing:
        raise Problem("mcp_auth_required", details=[{"mcp": mcp} for mcp in missing])
    document = await check_plan(flow_id, name, plan.workflow, mcps, call)
    publication = await call.gateway.catalogue.publish(call.caller.tenant, document, cause_of(call))
    return publication.flow


async def require_authentication(call: Call, plan: Plan) -> None:
    """Raises: Problem mcp_auth_required naming each MCP that lacks a secret."""
    mcps = await known_servers(call)
    missing = mcps.unauthenticated(names_of(plan))
    if missing:
        raise Problem("mcp_auth_required", details=[{"mcp": name} for name in missing])


def names_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(step.mcp for step in plan.workflow))


def steps_of(answer: Any) -> list[Step]:
    """The steps a model answered, numbered from 1. Raises: PlanFault for an answer of another shape."""
    try:
        given = msgspec.convert(answer, _Answer)
    except msgspec.ValidationError as error:
        raise PlanFault([("answer", str(error))]) from None
    return [_step(number, each) for number, each in enumerate(given.steps, 1)]


def _step(number: int, given: _AnsweredStep) -> Step:
    mcp = given.mcp.strip()
    if mcp != ASSISTANT:
        return Step(number, mcp, given.action.strip(), given.input)
    # The one thing an assistant does; without an instruction it is the task itself.
    instruction = given.input.get("instruction")
    text = instruction.strip() if isinstance(instruction, str) else ""
    return Step(number, mcp, ANSWER, {"instruction": text or "Carry out the task."})


class _AnsweredStep(msgspec.Struct):
    mcp: str
    action: str
    input: dict[str, Any] = {}


class _Answer(msgspec.Struct):
    steps: list[_AnsweredStep]
