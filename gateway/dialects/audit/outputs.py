"""/api/audit/executions/{id}/output and /graph: results of any size, as what they are; the flow's graph.

An output, or what stands at a JSON Pointer in it, is sent by what it is: a large value by reference as the
bytes it stands for, a data set as JSON Lines, one line an item, everything else as JSON. Bodies are streamed
block by block; each holds one of the caller's stream places, which bounds how many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway import flow_drawing
from gateway.call import Call
from gateway.dialects.audit.executions import (
    PAYLOAD_BYTES_MAX,
    UNKNOWN,
    folded,
    get_resource,
    visible_row,
)
from gateway.envelopes import Problem
from gateway.house_api import JSON, answer, broken, json_answer, parameter, refusal, whole_number
from gateway.routes import Doc
from projections.execution_summary import ExecutionRow
from runtime.blob_store import BlobStore
from runtime.datasets import JSON_LINES, Dataset, is_dataset, iter_results, parse_dataset
from runtime.errors import NotFound
from runtime.events import BlobRef
from runtime.ids import NodeId
from runtime.state import ExecutionState
from runtime.values import value_ref

BLOCK_BYTES = 64 * 1024
ITEMS_MAX = 2**53
POINTER_MAX = 1_000

_HEADERS = {
    "cache-control": "no-store",
    # A result is somebody's data: no browser may take it for a page of this server.
    "content-disposition": "attachment",
    "x-content-type-options": "nosniff",
}


class Graph(msgspec.Struct, frozen=True):
    """``nodes`` in graph order, each with those it needs."""

    nodes: list[dict[str, Any]]


class Body(StreamingResponse):
    """A body of any size, read from a thread. Holds one of the caller's stream places.

    Raises: Problem too_many_streams or unavailable, before any byte is sent.
    """

    def __init__(self, call: Call, blocks: Iterator[bytes], media_type: str, size: int | None) -> None:
        headers = dict(_HEADERS)
        if size is not None:
            headers["content-length"] = str(size)
        super().__init__(blocks, 200, headers, media_type)
        self._call = call
        call.gateway.limits.open_stream(call.caller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.gateway.limits.close_stream(self._call.caller)


async def execution_output(call: Call) -> Response:
    row = await visible_row(call)
    after = whole_number(call, "after", 0, 0, ITEMS_MAX)
    pointer = call.query("at") or ""
    if len(pointer) > POINTER_MAX or (pointer and not pointer.startswith("/")):
        raise broken("at", f"must be a JSON Pointer of at most {POINTER_MAX} characters")
    state = await asyncio.to_thread(_state, call, row)
    value, ref = _output_of(state, call.query("node"))
    if ref is not None and ref.size > PAYLOAD_BYTES_MAX:
        if pointer:
            raise broken("at", f"the output is above {PAYLOAD_BYTES_MAX} bytes and only given as a whole")
        return await _body(call, call.gateway.blobs.open_reader(ref), JSON, ref.size)
    if ref is not None:
        value = msgspec.json.decode(await asyncio.to_thread(call.gateway.blobs.get_bytes, ref))
    value = pointed_at(value, pointer)
    if (large := value_ref(value)) is not None:
        return await _body(call, call.gateway.blobs.open_reader(large), large.media_type, large.size)
    if is_dataset(value):
        lines = _lines(call.gateway.blobs, _dataset(value), after)
        return await _body(call, lines, JSON_LINES, None)
    return answer(value)


async def _body(call: Call, blocks: Iterator[bytes], media_type: str, size: int | None) -> Response:
    """A body whose first block is there: what is not kept any more is refused, and no answer broken off."""
    try:
        first = await asyncio.to_thread(next, blocks, b"")
    except NotFound:
        raise Problem("execution_not_found", "The output is not kept any more.") from None
    return Body(call, chain((first,), blocks), media_type, size)


def _state(call: Call, row: ExecutionRow) -> ExecutionState:
    return folded(each.event() for each in call.gateway.log.read(row.execution_id, 0, row.version))


def _output_of(state: ExecutionState, node_id: str | None) -> tuple[Any, BlobRef | None]:
    """Raises: Problem conflict while there is none."""
    if node_id is None:
        if state.status != "completed":
            raise Problem("conflict", f"the execution is {state.status} and has no output")
        return state.output, state.output_ref
    node = state.nodes.get(NodeId(node_id))
    if node is None or node.status != "completed":
        status = "not begun" if node is None else node.status
        raise Problem("conflict", f"node {node_id[:64]} is {status} and has no output")
    return node.output, node.output_ref


def pointed_at(value: Any, pointer: str) -> Any:
    """What a JSON Pointer (RFC 6901) names. Raises: Problem invalid_input when nothing stands there."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        match value:
            case dict() if name in value:
                value = cast("dict[str, Any]", value)[name]
            case list() if name.isascii() and name.isdigit() and int(name) < len(cast("list[Any]", value)):
                value = cast("list[Any]", value)[int(name)]
            case _:
                raise broken("at", f"nothing stands at {pointer}")
    return value


def _dataset(value: Any) -> Dataset:
    try:
        return parse_dataset(value)
    except ValueError as error:
        raise broken("at", str(error)) from None


def _lines(blobs: BlobStore, dataset: Dataset, after: int) -> Iterator[bytes]:
    block = bytearray()
    for line in iter_results(blobs, dataset, after):
        block += line
        block += b"\n"
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


async def execution_graph(call: Call) -> Response:
    row = await visible_row(call)
    flow = await call.gateway.catalogue.version(row.tenant, row.flow_id, row.flow_version)
    if flow is None:
        raise Problem("flow_not_found")
    return answer(Graph(flow_drawing.graph_of(flow.plan)["nodes"]))


# --- documentation and routes ---------------------------------------------------------------------------

_AT = parameter("at", "A JSON Pointer into the output; default: the whole of it.", example="/0/table")
_NODE = parameter("node", "The output of this node instead of the execution's.")
_AFTER = parameter("after", "Of a data set: leave out so many items.", "integer", 0)
_OUTPUT: dict[str, Any] = {
    "description": "The value. By reference: its bytes; a data set: one line an item, null for a failed one",
    "content": {
        JSON: {"schema": {}, "example": "Hello World"},
        JSON_LINES: {"schema": {"type": "string"}, "example": '{"price": 3}\nnull\n'},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}

RESOURCES = (
    get_resource(
        "/{execution_id}/output",
        execution_output,
        Doc(
            summary="The output of an execution or a node, as what it is",
            parameters=(_AT, _NODE, _AFTER),
            answers={
                200: _OUTPUT,
                404: UNKNOWN,
                409: refusal("No output yet.", "conflict", "the execution is running and has no output"),
            },
        ),
        streams=True,
    ),
    get_resource(
        "/{execution_id}/graph",
        execution_graph,
        Doc(
            summary="The graph of the execution's flow, at the version it runs",
            answers={
                200: json_answer(
                    "The graph",
                    Graph,
                    {"nodes": [{"id": "greet", "name": "greet", "kind": "template", "needs": []}]},
                ),
                404: UNKNOWN,
            },
        ),
    ),
)
