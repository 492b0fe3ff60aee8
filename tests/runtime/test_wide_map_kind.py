"""``map`` in chunks: what makes it one, where its items come from, and what is refused."""

from typing import Any

import pytest

from runtime.errors import InvalidGraph
from runtime.flow import parse_flow
from runtime.graph import compile_each, compile_flow
from runtime.kinds.map import LIST_ITEMS_MAX
from runtime.plan import MapOver, MapSource, Output, StartChild, WideMap

EACH = {"kind": "python", "function": "m:f", "with": {"x": "${item}", "n": "${nodes.first}"}}
DATASET = {"dataset": 1, "items": 2, "failed": 0, "format": "jsonl", "parts": {"sha256": "ab", "size": 1}}
INPUTS: dict[str, Any] = {
    "list": [1, 2, 3],
    "name": "a",
    "n": 3,
    "data": DATASET,
    "wide": 5_000,
    "shard": [1, 2],
}


def compiled(**fields: Any) -> Any:
    nodes = [{"id": "first", "kind": "select", "value": 1}, {"id": "m", "kind": "map", "each": EACH} | fields]
    plan = compile_flow(parse_flow({"heliograph": 1, "id": "f", "nodes": nodes}))
    return plan.steps["m"]  # type: ignore[index]  # NewType


def act(**fields: Any) -> Any:
    return compiled(**fields).act({"inputs": INPUTS, "nodes": {"first": 1}, "execution": {}})


def problems(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidGraph) as refused:
        compiled(**fields)
    return [(field, rule) for _, field, rule in refused.value.problems]


def test_a_source_or_a_chunk_makes_a_map_wide() -> None:
    assert isinstance(act(over="inputs.list"), MapOver)
    assert isinstance(act(over="inputs.list", chunk={"size": 2}), WideMap)
    assert isinstance(act(source="data/*.jsonl"), WideMap)


def test_a_source_is_a_text_a_data_set_or_a_list() -> None:
    assert act(source="x/{{ inputs.name }}.csv").source == MapSource(uri="x/a.csv")
    assert act(source="x", format="parquet").source == MapSource(uri="x", format="parquet")
    assert act(source="${inputs.data}", shard="${inputs.shard}").source == MapSource(
        dataset=DATASET, shard=(1, 2)
    )
    assert act(source="${inputs.list}").source == (1, 2, 3)
    assert act(source="${inputs.list}", shard=[1, 2]).source == (2,)


def test_chunks_last_a_second_unless_the_map_says_otherwise() -> None:
    assert (act(source="x").chunk_items, act(source="x").chunk_seconds) == (None, 1.0)
    assert act(source="x", chunk={"size": 10}).chunk_items == 10
    assert act(source="x", chunk={"seconds": 2.5}).chunk_seconds == 2.5


def test_concurrency_may_be_computed() -> None:
    assert act(source="x", concurrency="${inputs.n}").concurrency == 3
    assert act(over="inputs.list", concurrency="${inputs.n}").concurrency == 3
    with pytest.raises(ValueError, match="concurrency must be a whole number from 1 to 1000"):
        act(source="x", concurrency="${inputs.wide}")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, ("over", "a map has either over (a list) or source (a stream of items)")),
        ({"over": "inputs.list", "source": "x"}, ("over", "a map has either")),
        ({"source": "x", "chunk": {}}, ("chunk", "has either size or seconds")),
        ({"source": "x", "chunk": {"size": 1, "seconds": 1}}, ("chunk", "has either size or seconds")),
        ({"source": "x", "chunk": {"size": 0}}, ("chunk.size", "expected int >= 1")),
        ({"source": "x", "format": "xml"}, ("format", "must be one of jsonl, csv, parquet")),
        ({"over": "inputs.list", "format": "csv"}, ("format", "is about a source")),
        ({"over": "inputs.list", "failures_max_share": 0.5}, ("failures_max_share", "is for maps in chunks")),
        (
            {"source": "x", "failures_max_share": 0.5, "on_error": "fail"},
            ("failures_max_share", "contradicts on_error: fail"),
        ),
        ({"source": "x", "failures_max_share": 2}, ("failures_max_share", "expected float <= 1.0")),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], problem: tuple[str, str]) -> None:
    field, rule = problem
    found = [text for name, text in problems(**fields) if name == field]
    assert any(text.startswith(rule) for text in found), problems(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "${inputs.n}"}, "source must give .* not int"),
        ({"source": "x", "shard": [2, 2]}, "shard must be"),
        ({"source": "x", "format": "${inputs.name}"}, "format must be one of jsonl, csv, parquet, not 'a'"),
        ({"over": "inputs.n", "chunk": {"size": 1}}, "over must give a list, not int"),
    ],
)
def test_what_does_not_fit_fails_the_node(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        act(**fields)


def test_a_list_in_chunks_has_a_bound() -> None:
    scope = {"inputs": {"list": [None] * (LIST_ITEMS_MAX + 1)}, "nodes": {}, "execution": {}}
    with pytest.raises(ValueError, match="1000000 are allowed"):
        compiled(over="inputs.list", chunk={"size": 1}).act(scope)


def test_each_can_be_compiled_by_itself() -> None:
    wide = act(source="x")
    assert wide.each.reads == ("first",)
    step = compile_each(wide.document)
    assert step.reads == ("first",)
    action = step.act({"inputs": {}, "nodes": {"first": 7}, "item": "i", "index": 0, "execution": {}})
    assert not isinstance(action, Output)
    assert action.arguments == {"x": "i", "n": 7}  # type: ignore[union-attr]  # a call


def test_items_can_be_child_flows_of_a_given_version() -> None:
    each = {"kind": "flow", "flow": "${inputs.name}", "version": "v1", "input": "${item}"}
    scope = {"inputs": INPUTS, "nodes": {}, "execution": {}, "item": {"x": 1}, "index": 0}
    action = compiled(source="x", each=each).act(scope).each.act(scope)
    assert action == StartChild("a", {"x": 1}, "v1")  # type: ignore[arg-type]  # NewType
    assert action.flow == "a@v1"
