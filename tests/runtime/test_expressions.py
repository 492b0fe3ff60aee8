"""Expressions and values: what they give, what they mention, what is refused."""

from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.expressions import (
    MAP_NAMES,
    ExpressionSyntax,
    compile_expression,
    compile_value,
    escape,
    is_truthy,
)

SCOPE: dict[str, Any] = {
    "inputs": {"who": "me", "list": [{"n": 1}, {"n": 2}], "odd key": 5},
    "nodes": {"a": {"b": [10, 20]}, "skipped": None},
    "execution": {"id": "e", "attempt": 1},
}


@pytest.mark.parametrize(
    "text",
    [
        "inputs.who",
        "nodes.a.b",
        "nodes.a.b[1]",
        "nodes.a.b[-1:]",
        "nodes.a.b[*]",
        "nodes.a.missing.deeper",
        "nodes.skipped.x",
        'inputs."odd key"',
        "inputs.list[?n > `1`].n | [0]",
        "map(&n, inputs.list)",
        "sum(inputs.list[].n)",
        "nodes.{x: a, y: skipped}",
        "[inputs.who, execution.id]",
        "@.inputs.who",
        "inputs",
        "!(inputs.who)",
        "inputs.who == 'me' && nodes.a",
        "max_by(inputs.list, &n)",
        '`{"x": 1}`',
    ],
)
def test_an_expression_gives_what_the_library_gives(text: str) -> None:
    assert compile_expression(text).evaluate(SCOPE) == jmespath.search(text, SCOPE)


@pytest.mark.parametrize(
    ("text", "nodes", "inputs"),
    [
        ("nodes.a.b", ("a",), ()),
        ("inputs.a.nodes", (), ("a",)),
        ("nodes.{x: a, y: b.c}", ("a", "b"), ()),
        ("nodes | a", ("a",), ()),
        ("@.nodes.a", ("a",), ()),
        ("nodes.a[?nodes.b]", ("a",), ()),
        ("join(inputs.sep, nodes.a[*].nodes)", ("a",), ("sep",)),
        ("sort_by(nodes.a, &inputs.x)", ("a",), ()),
        ("nodes.a || nodes.b || nodes.a", ("a", "b"), ()),
        ("inputs.*", (), ()),
        ('nodes."a"', ("a",), ()),
    ],
)
def test_what_an_expression_mentions_is_known(
    text: str, nodes: tuple[str, ...], inputs: tuple[str, ...]
) -> None:
    compiled = compile_expression(text)

    assert (compiled.node_reads, compiled.input_reads, compiled.is_constant) == (nodes, inputs, False)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("nodes", "must be followed by the id of a node"),
        ("nodes.*", "must be followed by the id of a node"),
        ("keys(nodes)", "must be followed by the id of a node"),
        ("nodes || `1`", "must be followed by the id of a node"),
        ("@", "names nothing"),
        ("other.x", "unknown name 'other'"),
        ("item", "unknown name 'item'"),
        ("len(inputs.x)", "unknown function 'len'"),
        ("length(inputs.x, inputs.y)", "length() takes 1 arguments, 2 given"),
        ("merge()", "merge() takes at least 1 arguments, 0 given"),
        ("!inputs.x", "write !(a.b)"),
        ("inputs.", "no JMESPath expression: Expecting"),
        ("", "empty"),
        ("(" * 9000, "nested too deeply"),
        ("a" * 10_001, "10000 characters at most"),
    ],
)
def test_what_is_no_usable_expression_is_refused(text: str, rule: str) -> None:
    with pytest.raises(ExpressionSyntax) as caught:
        compile_expression(text)

    assert rule in str(caught.value)


def test_inside_a_map_there_are_item_and_index() -> None:
    compiled = compile_expression("[item.n, index]", MAP_NAMES)

    assert compiled.evaluate({"item": {"n": 1}, "index": 7}) == [1, 7]


def test_an_expression_that_mentions_nothing_is_constant() -> None:
    assert compile_expression("`0`").is_constant


@pytest.mark.parametrize("value", [0, 0.0, 1, True, "x", [0], {"a": None}])
def test_these_are_true(value: Any) -> None:
    assert is_truthy(value)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_these_are_false(value: Any) -> None:
    assert not is_truthy(value)


def test_a_value_keeps_the_type_of_its_expressions() -> None:
    value = {"n": "${nodes.a.b[0]}", "deep": ["${ inputs.list }", {"s": "a ${inputs.who} b"}], "c": 1}
    compiled = compile_value(value)

    assert compiled.evaluate(SCOPE) == {
        "n": 10,
        "deep": [[{"n": 1}, {"n": 2}], {"s": "a ${inputs.who} b"}],
        "c": 1,
    }
    assert (compiled.node_reads, compiled.input_reads, compiled.is_constant) == (("a",), ("list",), False)


def test_a_doubled_dollar_stands_for_one() -> None:
    assert compile_value(["$${a}", "$$${a}", "$${open", "$5", "$$"]).evaluate({}) == [
        "${a}",
        "$${a}",
        "${open",
        "$5",
        "$$",
    ]


def test_a_broken_expression_in_a_value_is_refused() -> None:
    with pytest.raises(ExpressionSyntax):
        compile_value({"a": ["${nope}"]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet="$${}ab`", max_size=8) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_an_escaped_value_evaluates_to_itself(value: Any) -> None:
    compiled = compile_value(escape(value))

    assert compiled.evaluate({}) == value
    assert compiled.is_constant
