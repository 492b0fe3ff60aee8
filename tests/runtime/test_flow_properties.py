"""What holds for every graph, found by generating them."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runtime.authoring import Handle, flow, node
from runtime.errors import InvalidGraph
from runtime.flow import FlowDefinition, parse_flow
from runtime.graph import compile_flow

Edges = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn) -> Edges:
    """Nodes to predecessors; without a cycle, in an order of no meaning."""
    size = draw(st.integers(1, 12))
    names = [f"n{i}" for i in range(size)]
    edges = {
        name: draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else []
        for i, name in enumerate(names)
    }
    return {name: edges[name] for name in draw(st.permutations(names))}


def node_of(name: str, needs: list[str]) -> dict[str, Any]:
    """Half of the predecessors are needed in words, half by being mentioned."""
    text = name + "".join(f"{{{{ nodes.{need} }}}}" for need in needs[::2])
    return {"id": name, "kind": "template", "template": text, "needs": needs[1::2]}


def document_of(edges: Edges) -> dict[str, Any]:
    return {"heliograph": 1, "id": "f", "nodes": [node_of(name, needs) for name, needs in edges.items()]}


@given(graphs())
def test_graph_order_respects_needs_and_loses_none(edges: Edges) -> None:
    plan = compile_flow(parse_flow(document_of(edges)))
    seen: set[str] = set()

    for node_id, step in plan.steps.items():
        assert set(step.needs) == set(edges[node_id])
        assert set(step.needs) <= seen
        assert set(step.reads) <= set(step.needs)
        assert set(step.dependents) == {name for name, needs in edges.items() if node_id in needs}
        seen.add(node_id)
    assert seen == set(edges)


@given(graphs())
def test_the_default_output_has_what_nothing_depends_on(edges: Edges) -> None:
    plan = compile_flow(parse_flow(document_of(edges)))
    last = {name for name in edges if not any(name in needs for needs in edges.values())}

    assert set(plan.output_reads) == last


@given(graphs(), st.data())
def test_any_cycle_is_found_and_named(edges: Edges, data: st.DataObject) -> None:
    closing = data.draw(st.lists(st.sampled_from(list(edges)), min_size=1, max_size=6, unique=True))
    for name, need in zip(closing, [*closing[1:], closing[0]], strict=True):
        edges[name] = list(dict.fromkeys([*edges[name], need]))
    document = {
        "heliograph": 1,
        "id": "f",
        "nodes": [
            {"id": n, "kind": "template", "template": "", "needs": needs} for n, needs in edges.items()
        ],
    }

    with pytest.raises(InvalidGraph) as caught:
        compile_flow(parse_flow(document))

    for _, field, rule in caught.value.problems:
        path = rule.removeprefix("the nodes form a cycle: ").split(" -> ")
        assert field == "needs"
        assert path[0] == path[-1]
        assert all(before in edges[after] for before, after in pairwise(path))


@given(graphs(), st.randoms(use_true_random=False))
def test_yaml_json_and_python_give_the_same_version(edges: Edges, source: random.Random) -> None:
    document = document_of(edges)
    shuffled = [dict(source.sample(list(node.items()), len(node))) for node in document["nodes"]]

    @flow(id="f")
    def authored(_inputs: Handle) -> None:
        for raw in document["nodes"]:
            needs = [Handle(f"nodes.{need}", need) for need in raw["needs"]]
            node(raw["kind"], raw["id"], template=raw["template"], needs=needs)

    versions = {
        parse_flow(document).version,
        parse_flow(json.dumps({**document, "nodes": shuffled})).version,
        parse_flow(yaml.safe_dump(document)).version,
        authored.definition().version,
        FlowDefinition.from_document(parse_flow(document).document).version,
    }

    assert len(versions) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
keys = st.sampled_from(
    ["id", "kind", "needs", "when", "template", "retry", "each", "over", "cases", "else", "with", "x"]
)
kinds = st.sampled_from(
    ["template", "branch", "map", "select", "sleep", "python", "flow", "http_request", "nope"]
)
nodes = st.dictionaries(keys, json_values, max_size=6) | st.fixed_dictionaries(
    {"id": st.sampled_from("ab"), "kind": kinds}, optional=dict.fromkeys(["each"], st.just({"kind": "map"}))
)


@given(
    st.fixed_dictionaries(
        {"heliograph": st.just(1)}, optional={"id": json_values, "nodes": st.lists(nodes | json_values)}
    )
)
def test_a_document_compiles_or_is_refused_with_rules(document: dict[str, Any]) -> None:
    problems = (("", "", "none"),)
    try:
        compile_flow(parse_flow(document))
    except InvalidGraph as refused:
        problems = refused.problems

    assert all(rule for _, _, rule in problems)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_a_text_is_read_or_refused_with_rules(text: str | bytes) -> None:
    problems = (("", "", "none"),)
    try:
        parse_flow(text)
    except InvalidGraph as refused:
        problems = refused.problems

    assert all(rule for _, _, rule in problems)
