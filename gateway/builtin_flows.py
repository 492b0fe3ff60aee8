"""The flows that come with the server, published into a tenant's catalogue when they are first needed.

They are ordinary definitions, so their runs are ordinary executions: shown, audited and repeated like any. A
release that changes one publishes a new version of it; runs of the old one go on as they began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.batch_documents import MAP_NODE
from runtime.administration import Cause
from runtime.agent_spec import AgentSpec
from runtime.errors import NotFound

if TYPE_CHECKING:
    from gateway.catalogue import PublishedFlow
    from gateway.context import Gateway

AGENT_RUN = "agent-run"
"""One agent node; its input is an `AgentSpec` as JSON, beside `AGENT_ID`."""

TASK_ANALYSIS = "task-analysis"
"""One answer of a model by a schema: inputs ``prompt``, ``system``, ``model``, ``output_schema``."""

BATCH = "batch-run"
"""One flow over the items of a source; its input is made by `batch_documents.input_of`."""

AGENT_ID = "agent_id"
"""Input of `AGENT_RUN`: the agent resource that memories of the run belong to; may be absent."""

ANSWER = "answer"
"""The node of both."""

_TEMPLATES = ("prompt", "system", "model")


def _node(kind: str, fields: tuple[str, ...]) -> dict[str, Any]:
    node: dict[str, Any] = {"id": ANSWER, "kind": kind, "prompt": "{{ inputs.prompt }}"}
    for name in fields:
        if name == "prompt":
            continue
        node[name] = (
            f"{{{{ inputs.{name} | default('', true) }}}}" if name in _TEMPLATES else f"${{inputs.{name}}}"
        )
    return node


def _inputs(fields: tuple[str, ...]) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {} for name in fields}
    properties["prompt"] = {"type": "string"}
    return {
        "type": "object",
        "required": ["prompt"],
        "properties": properties,
        "additionalProperties": False,
    }


_ANALYSIS_FIELDS = ("prompt", "system", "model", "output_schema", "reasoning_effort")

DEFINITIONS: Mapping[str, Mapping[str, Any]] = {
    AGENT_RUN: {
        "heliograph": 1,
        "id": AGENT_RUN,
        "name": "Agent run",
        "description": "One turn of an agent. Comes with the server.",
        "inputs": _inputs((*AgentSpec.__struct_fields__, AGENT_ID)),
        "nodes": [_node("agent", AgentSpec.__struct_fields__)],
        "output": f"${{nodes.{ANSWER}}}",
    },
    TASK_ANALYSIS: {
        "heliograph": 1,
        "id": TASK_ANALYSIS,
        "name": "Task analysis",
        "description": "A plan for a task, by structured output. Comes with the server.",
        "inputs": _inputs(_ANALYSIS_FIELDS),
        "nodes": [_node("chat_model", _ANALYSIS_FIELDS)],
        "output": f"${{nodes.{ANSWER}}}",
    },
    BATCH: {
        "heliograph": 1,
        "id": BATCH,
        "name": "Batch",
        "description": "A flow over the items of a source. Comes with the server.",
        "inputs": {
            "type": "object",
            "required": ["flow", "version", "source", "format", "shard", "concurrency"],
            "properties": {
                "flow": {"type": "string"},
                "version": {"type": "string"},
                "source": {"type": "string"},
                "format": {"type": "string"},
                "shard": {"type": "array", "items": {"type": "integer"}},
                "concurrency": {"type": "integer"},
            },
            "additionalProperties": False,
        },
        "nodes": [
            {
                "id": MAP_NODE,
                "kind": "map",
                "source": "${inputs.source}",
                "format": "${inputs.format}",
                "shard": "${inputs.shard}",
                "concurrency": "${inputs.concurrency}",
                "each": {
                    "kind": "flow",
                    "flow": "${inputs.flow}",
                    "version": "${inputs.version}",
                    "input": "${item}",
                },
            }
        ],
        "output": f"${{nodes.{MAP_NODE}}}",
    },
}


async def ensure(gateway: Gateway, tenant: str, flow_id: str) -> PublishedFlow:
    """The built-in flow in the tenant's catalogue, in this release's version.

    Raises: KeyError for a flow that isn't built in; NotFound when the tenant's administrator disabled it.
    """
    definition = DEFINITIONS[flow_id]
    known = await gateway.catalogue.published(tenant, flow_id)
    if known is not None and known.definition.document == _normal(flow_id):
        return known
    described = await gateway.catalogue.describe(tenant, flow_id) if known is None else None
    if described is not None and not described[0].enabled:
        raise NotFound(f"flow {flow_id} is disabled")
    publication = await gateway.catalogue.publish(tenant, definition, Cause(at=gateway.clock()))
    return publication.flow


_normalised: dict[str, Mapping[str, Any]] = {}


def _normal(flow_id: str) -> Mapping[str, Any]:
    """The definition as the catalogue keeps it."""
    from runtime.flow import parse_flow

    if flow_id not in _normalised:
        _normalised[flow_id] = parse_flow(DEFINITIONS[flow_id]).document
    return _normalised[flow_id]
