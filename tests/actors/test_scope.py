"""What a node sees of large outputs: the value, or the marker of where it is."""

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from actors.item_sources import SourceAccess, open_source
from actors.scope import ScopeBuilder
from runtime.blob_store import BlobStore
from runtime.events import BlobRef
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import NodeId
from runtime.plan import MapSource, Plan, WideMap
from runtime.state import ExecutionState, NodeState
from runtime.values import marker

NUMBERS = NodeId("numbers")
WIDE = NodeId("wide")


def _plan(**fields: Any) -> Plan:
    wide: dict[str, Any] = {"id": "wide", "kind": "map", "source": "${nodes.numbers}"}
    wide |= {"each": {"kind": "select", "expression": "item"}, **fields}
    nodes: list[dict[str, Any]] = [{"id": "numbers", "kind": "select", "value": []}, wide]
    return compile_flow(parse_flow({"heliograph": 1, "id": "f", "nodes": nodes}))


def _state(ref: BlobRef) -> ExecutionState:
    return ExecutionState(
        execution_id="e1",
        version=3,
        status="running",
        tenant="t",
        flow_id="f",
        flow_version="v",
        source="api",
        by="k",
        correlation_id="e1",
        owner="h",
        total_nodes=2,
        created_at=1,
        updated_at=1,
        nodes={NUMBERS: NodeState(status="completed", attempt=1, output_ref=ref)},
    )


def test_a_large_list_that_is_only_a_source_is_streamed_from_where_it_is(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))
    ref = blobs.put_bytes(msgspec.json.encode(list(range(1_000))))
    step = _plan().steps[WIDE]
    scopes = ScopeBuilder()
    state = _state(ref)
    assert scopes.missing(state, step.reads, step.streams) == ()
    scopes.keep(ref, list(range(1_000)))  # for another node: an attempt made again must see the same
    action = step.act(scopes.build(state, step.reads, {}, step.streams))
    assert isinstance(action, WideMap)
    source = MapSource(dataset=marker(ref))
    assert action.source == source
    with closing(open_source(source, SourceAccess(blobs=blobs))) as stream:
        stream.skip(998)
        assert [bytes(item) for item in stream.read(10, 1_000)] == [b"998", b"999"]


def test_a_large_output_that_anything_else_mentions_is_loaded(tmp_path: Path) -> None:
    ref = BlobStore(str(tmp_path)).put_bytes(b"[1]")
    others = [
        {"source": "${nodes.numbers[0]}"},
        {"when": "nodes.numbers[0]"},
        {"each": {"kind": "select", "expression": "nodes.numbers[0]"}},
    ]
    for fields in others:
        step = _plan(**fields).steps[WIDE]
        assert step.streams == (), fields
        assert ScopeBuilder().missing(_state(ref), step.reads, step.streams) == (ref,)
