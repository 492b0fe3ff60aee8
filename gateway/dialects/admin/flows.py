"""/api/admin/flows: publish, check, list, show, disable and enable flows."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from gateway import flow_drawing
from gateway.call import Call
from gateway.envelopes import Problem
from gateway.house_api import (
    JSON,
    LIMIT,
    TENANT,
    answer,
    iso,
    json_answer,
    page_size,
    parameter,
    refusal,
    tenant_of,
)
from gateway.idempotency import request_digest
from gateway.keys import ADMIN
from gateway.routes import Doc, Operation, Resource
from projections.flows import FlowRow
from runtime.administration import Cause, FlowState
from runtime.errors import NotFound

PREFIX = "/api/admin/flows"
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


class FlowSummary(msgspec.Struct, frozen=True):
    """``version`` is the latest one."""

    flow_id: str
    tenant: str
    name: str
    version: str
    enabled: bool
    created_at: str
    published_at: str
    published_by: str
    updated_at: str


class FlowPage(msgspec.Struct, frozen=True):
    flows: list[FlowSummary]
    next_cursor: str | None


class FlowVersion(msgspec.Struct, frozen=True):
    version: str
    published_at: str
    published_by: str


class GraphNode(msgspec.Struct, frozen=True):
    id: str
    name: str
    kind: str
    needs: list[str]


class GraphEdge(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    source: str
    target: str


class Graph(msgspec.Struct, frozen=True):
    nodes: list[GraphNode]
    edges: list[GraphEdge]


class FlowDetail(msgspec.Struct, frozen=True):
    """``shown_version``: the one that ``definition``, ``graph`` and ``mermaid`` describe."""

    flow: FlowSummary
    versions: list[FlowVersion]
    shown_version: str
    definition: dict[str, Any]
    graph: Graph
    mermaid: str


class Published(msgspec.Struct, frozen=True):
    """``changed`` is false when this content was the latest version already."""

    flow_id: str
    tenant: str
    name: str
    version: str
    changed: bool
    enabled: bool


class Checked(msgspec.Struct, frozen=True):
    """What publishing would give."""

    valid: bool
    flow_id: str
    name: str
    version: str
    graph: Graph
    mermaid: str


class FlowSwitched(msgspec.Struct, frozen=True):
    flow_id: str
    tenant: str
    version: str
    enabled: bool


def cause_of(call: Call) -> Cause:
    return Cause(
        at=call.gateway.clock(),
        by=call.caller.key_id,
        cause=call.correlation_id,
        corr=call.given_correlation_id,
    )


async def _document(call: Call) -> bytes:
    """The definition as it was sent, JSON or YAML. Raises: Problem unsupported_media_type."""
    media_type = call.media_type
    if media_type != JSON and media_type not in YAML_TYPES:
        raise Problem("unsupported_media_type", f"Send the flow as {JSON} or {YAML_TYPES[0]}.")
    return await call.body()


async def publish_flow(call: Call) -> Response:
    tenant = tenant_of(call)
    document = await _document(call)

    async def serve(_: str) -> Response:
        publication = await call.gateway.catalogue.publish(tenant, document, cause_of(call))
        state, definition = publication.state, publication.flow.definition
        body = Published(
            flow_id=definition.id,
            tenant=tenant,
            name=definition.name,
            version=definition.version,
            changed=publication.changed,
            enabled=state.enabled,
        )
        location = f"{PREFIX}/{definition.id}"
        return answer(body, 201 if publication.changed else 200, {"location": location})

    return await call.gateway.idempotency.once(call, request_digest(tenant.encode(), document), serve)


async def validate_flow(call: Call) -> Response:
    definition, plan = await call.gateway.catalogue.validate(await _document(call))
    graph = msgspec.convert(flow_drawing.graph_of(plan), Graph)
    mermaid = flow_drawing.mermaid(plan)
    return answer(Checked(True, definition.id, definition.name, definition.version, graph, mermaid))


async def list_flows(call: Call) -> Response:
    tenant, limit = tenant_of(call), page_size(call)
    # Ids are unique in a tenant and sorted, so the last one is all a cursor has to know.
    rows = await call.gateway.catalogue.listing(tenant, call.query("cursor") or "", limit + 1)
    page = rows[:limit]
    following = page[-1].flow_id if len(rows) > limit else None
    return answer(FlowPage([_summary(row) for row in page], following))


async def show_flow(call: Call) -> Response:
    tenant, flow_id = tenant_of(call), call.path["flow_id"]
    found = await call.gateway.catalogue.describe(tenant, flow_id)
    if found is None:
        raise Problem("flow_not_found")
    row, versions = found
    flow = await call.gateway.catalogue.version(tenant, flow_id, call.query("version") or row.version)
    if flow is None:
        raise Problem("flow_not_found")
    body = FlowDetail(
        flow=_summary(row),
        versions=[FlowVersion(v.version, iso(v.published_at), v.published_by) for v in versions],
        shown_version=flow.version,
        definition=dict(flow.definition.document),
        graph=msgspec.convert(flow_drawing.graph_of(flow.plan), Graph),
        mermaid=flow_drawing.mermaid(flow.plan),
    )
    return answer(body)


async def disable_flow(call: Call) -> Response:
    return await _switch(call, enabled=False)


async def enable_flow(call: Call) -> Response:
    return await _switch(call, enabled=True)


async def _switch(call: Call, *, enabled: bool) -> Response:
    catalogue = call.gateway.catalogue
    change = catalogue.enable if enabled else catalogue.disable
    try:
        state = await change(tenant_of(call), call.path["flow_id"], cause_of(call))
    except NotFound:
        raise Problem("flow_not_found") from None
    return answer(_switched(state))


def _switched(state: FlowState) -> FlowSwitched:
    return FlowSwitched(state.flow_id, state.tenant, state.latest, state.enabled)


def _summary(row: FlowRow) -> FlowSummary:
    return FlowSummary(
        flow_id=row.flow_id,
        tenant=row.tenant,
        name=row.name,
        version=row.version,
        enabled=bool(row.enabled),
        created_at=iso(row.created_at),
        published_at=iso(row.published_at),
        published_by=row.published_by,
        updated_at=iso(row.updated_at),
    )


# --- documentation and routes ---------------------------------------------------------------------------

_DEFINITION = {
    "heliograph": 1,
    "id": "hello",
    "name": "Hello",
    "nodes": [{"id": "greet", "kind": "template", "template": "Hello {{ inputs.name }}"}],
}
_YAML = """\
heliograph: 1
id: hello
nodes:
  - {id: greet, kind: template, template: "Hello {{ inputs.name }}"}
"""
_REQUEST = {
    "required": True,
    "content": {
        JSON: {"schema": {"type": "object"}, "example": _DEFINITION},
        YAML_TYPES[0]: {"schema": {"type": "string"}, "example": _YAML},
    },
}
_SUMMARY = {
    "flow_id": "hello",
    "tenant": "default",
    "name": "Hello",
    "version": "3f6d0b7a91c2e854",
    "enabled": True,
    "created_at": "2026-01-31T12:00:00.000000Z",
    "published_at": "2026-01-31T12:00:00.000000Z",
    "published_by": "first",
    "updated_at": "2026-01-31T12:00:00.000000Z",
}
_GRAPH: dict[str, Any] = {
    "nodes": [{"id": "greet", "name": "greet", "kind": "template", "needs": []}],
    "edges": [],
}
_MERMAID = 'flowchart TD\n    n0["greet<br/><i>template</i>"]\n'
_DETAIL: dict[str, Any] = {
    "flow": _SUMMARY,
    "versions": [
        {
            "version": "3f6d0b7a91c2e854",
            "published_at": "2026-01-31T12:00:00.000000Z",
            "published_by": "first",
        }
    ],
    "shown_version": "3f6d0b7a91c2e854",
    "definition": _DEFINITION,
    "graph": _GRAPH,
    "mermaid": _MERMAID,
}
_BROKEN = refusal(
    "The definition breaks rules; each is named by node, field and rule.",
    "invalid_input",
    "node greet, template: unknown input 'nmae': the flow's inputs don't have it",
    [{"node": "greet", "field": "template", "rule": "unknown input 'nmae': the flow's inputs don't have it"}],
)
_UNKNOWN = refusal("No such flow.", "flow_not_found", "Flow not found.")
_PUBLISHED = {name: _SUMMARY[name] for name in ("flow_id", "tenant", "name", "version")} | {
    "changed": True,
    "enabled": True,
}
_SWITCH_ANSWERS = {
    200: json_answer(
        "The flow as it is now",
        FlowSwitched,
        {"flow_id": "hello", "tenant": "default", "version": "3f6d0b7a91c2e854", "enabled": False},
    ),
    404: _UNKNOWN,
}


def _operation(handler: Any, doc: Doc) -> Operation:
    return Operation(handler=handler, scope=ADMIN, doc=doc)


RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": _operation(
                list_flows,
                Doc(
                    summary="List flows",
                    parameters=(TENANT, LIMIT, parameter("cursor", "The next_cursor of the page before.")),
                    answers={
                        200: json_answer("One page", FlowPage, {"flows": [_SUMMARY], "next_cursor": None})
                    },
                ),
            ),
            "POST": _operation(
                publish_flow,
                Doc(
                    summary="Publish a flow",
                    description="The content becomes the flow's latest version. Publishing the latest "
                    "content again changes nothing and says so (200, `changed` false).",
                    parameters=(TENANT,),
                    request=_REQUEST,
                    answers={
                        201: json_answer("A new version", Published, _PUBLISHED),
                        200: json_answer("Unchanged", Published, {**_PUBLISHED, "changed": False}),
                        422: _BROKEN,
                    },
                ),
            ),
        },
    ),
    Resource(
        "/api/admin/validate",
        {
            "POST": _operation(
                validate_flow,
                Doc(
                    summary="Check a flow without publishing it",
                    request=_REQUEST,
                    answers={
                        200: json_answer(
                            "It could be published",
                            Checked,
                            {
                                "valid": True,
                                "flow_id": "hello",
                                "name": "Hello",
                                "version": "3f6d0b7a91c2e854",
                                "graph": _GRAPH,
                                "mermaid": _MERMAID,
                            },
                        ),
                        422: _BROKEN,
                    },
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{flow_id}}",
        {
            "GET": _operation(
                show_flow,
                Doc(
                    summary="Show a flow: versions, definition, graph",
                    description="The graph comes as nodes and edges, and as Mermaid text.",
                    parameters=(TENANT, parameter("version", "Show this version; default: the latest.")),
                    answers={200: json_answer("The flow", FlowDetail, _DETAIL), 404: _UNKNOWN},
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{flow_id}}/disable",
        {
            "POST": _operation(
                disable_flow,
                Doc(
                    summary="Disable a flow",
                    description="Nothing can be started any more; running executions go on.",
                    parameters=(TENANT,),
                    answers=_SWITCH_ANSWERS,
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{flow_id}}/enable",
        {
            "POST": _operation(
                enable_flow, Doc(summary="Enable a flow again", parameters=(TENANT,), answers=_SWITCH_ANSWERS)
            )
        },
    ),
)
