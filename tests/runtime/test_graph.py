"""Compiling: edges, order and defaults of a good definition; the problems of a broken one."""

from typing import Any

import pytest

from runtime.errors import InvalidGraph, InvalidInput
from runtime.flow import NODES_MAX, parse_flow
from runtime.graph import CYCLES_MAX, check_input, compile_flow
from runtime.ids import NodeId
from runtime.plan import Plan, Resources

Node = dict[str, Any]


def text(node_id: str, template: str = "x", **more: Any) -> Node:
    return {"id": node_id, "kind": "template", "template": template, **more}


def plan_of(*nodes: Node, **flow: Any) -> Plan:
    return compile_flow(parse_flow({"heliograph": 1, "id": "f", "nodes": list(nodes), **flow}))


def problems_of(*nodes: Any, **flow: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(InvalidGraph) as caught:
        plan_of(*nodes, **flow)
    return list(caught.value.problems)


# --- a good definition ------------------------------------------------------------------------------


def test_what_a_node_mentions_is_what_it_needs() -> None:
    plan = plan_of(
        text("last", "{{ nodes.a }} {{ nodes['b'] }}", needs=["c"], when="nodes.d"),
        text("a"),
        text("b"),
        text("c"),
        text("d"),
    )
    last = plan.steps[NodeId("last")]

    assert last.needs == ("c", "d", "a", "b")
    assert last.reads == ("d", "a", "b")
    assert plan.steps[NodeId("a")].dependents == ("last",)


def test_steps_stand_after_those_they_need_and_else_as_written() -> None:
    plan = plan_of(text("d", needs=["a"]), text("c"), text("b", needs=["d"]), text("a"))

    assert list(plan.steps) == ["c", "a", "d", "b"]


def test_the_nodes_of_a_branch_need_it() -> None:
    plan = plan_of(
        text("no"),
        text("yes"),
        {"id": "way", "kind": "branch", "cases": [{"when": "inputs.x", "then": ["yes"]}], "else": ["no"]},
    )

    assert plan.steps[NodeId("yes")].needs == ("way",)
    assert plan.steps[NodeId("way")].dependents == ("no", "yes")


def test_what_a_map_mentions_inside_is_an_edge_of_the_map() -> None:
    each = {"kind": "select", "value": ["${item}", "${nodes.a}"]}
    plan = plan_of(text("a"), {"id": "m", "kind": "map", "over": "inputs.items", "each": each})

    assert plan.steps[NodeId("m")].needs == ("a",)


def test_the_default_output_is_that_of_the_only_last_node() -> None:
    plan = plan_of(text("a"), text("b", needs=["a"]))

    assert plan.output({"nodes": {"a": 1, "b": 2}}) == 2
    assert plan.output_reads == ("b",)


def test_the_default_output_of_several_last_nodes_has_them_by_id() -> None:
    plan = plan_of(text("a"), text("b"))

    assert plan.output({"nodes": {"a": 1, "b": None}}) == {"a": 1, "b": None}


def test_an_output_of_null_is_an_output() -> None:
    assert plan_of(text("a"), output=None).output({"nodes": {"a": 1}}) is None


def test_the_output_is_a_value() -> None:
    plan = plan_of(
        text("a"), text("b"), output={"sum": "${nodes.a}", "who": "${inputs.who}", "is": ["$${x}"]}
    )

    assert plan.output({"nodes": {"a": 1}, "inputs": {"who": "me"}}) == {
        "sum": 1,
        "who": "me",
        "is": ["${x}"],
    }
    assert plan.output_reads == ("a",)


def test_settings_reach_the_plan() -> None:
    plan = plan_of(
        text("a", retry={"attempts": 3, "on": ["E"]}, timeout_seconds=5, resources={"cpus": 2}, name="A"),
        timeout_seconds=60,
        placement="dedicated",
        resources={"gpus": 1},
        name="Flow",
    )
    step = plan.steps[NodeId("a")]

    assert (step.retry.attempts, step.retry.on, step.timeout_seconds, step.name) == (3, ("E",), 5.0, "A")
    assert step.resources == Resources(cpus=2)
    assert (plan.timeout_seconds, plan.placement, plan.resources) == (60.0, "dedicated", Resources(gpus=1))
    assert (plan.flow_id, plan.name) == ("f", "Flow")


def test_a_condition_follows_the_truth_of_jmespath() -> None:
    condition = plan_of(text("a", when="inputs.x")).steps[NodeId("a")].condition
    assert condition is not None

    true: list[Any] = [0, "a", True, [0]]
    false: list[Any] = [None, "", False, [], {}]

    assert [condition({"inputs": {"x": x}}) for x in (*true, *false)] == [True] * 4 + [False] * 5


# --- a broken one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (text("a", needs=["b"]), ("a", "needs", "unknown node 'b'")),
        (text("a", "{{ nodes.b }}"), ("a", "template", "unknown node 'b'")),
        (text("a", when="nodes.b"), ("a", "when", "unknown node 'b'")),
        (text("a", "{{ nodes.a }}"), ("a", "template", "mentions its own output, which can't exist yet")),
        (text("a", needs=["a"]), ("a", "needs", "the nodes form a cycle: a -> a")),
        (text("a", tmplate="x"), ("a", "tmplate", "unknown key; did you mean template?")),
        (text("a", retry={"attemps": 2}), ("a", "retry.attemps", "unknown key; did you mean attempts?")),
        (text("a", retry={"attempts": 0}), ("a", "retry.attempts", "expected int >= 1")),
        (text("a", retry={"on": ["A", 3]}), ("a", "retry.on[1]", "expected str, got int")),
        (text("a", timeout_seconds="5"), ("a", "timeout_seconds", "expected float | null, got str")),
        (text("a", resources={"gpu": 1}), ("a", "resources.gpu", "unknown key; did you mean gpus?")),
        (text("a", when="`false`"), ("a", "when", "is always false, so the node can never run")),
        (
            text("a", when="inputs.["),
            ("a", "when", 'no JMESPath expression: Incomplete expression: "inputs.[" ^'),
        ),
        (
            text("a", when="${inputs.x}"),
            ("a", "when", "stands without ${ }: the whole field is an expression"),
        ),
        (
            text("a", when="input.x"),
            ("a", "when", "unknown name 'input'; there are execution, inputs, nodes"),
        ),
        (
            text("a", "{{ item }}"),
            ("a", "template", "unknown name 'item'; there are execution, inputs, nodes"),
        ),
        (
            text("a", "{% if %}"),
            ("a", "template", "Expected an expression, got 'end of statement block' (line 1)"),
        ),
        ({"id": "a", "kind": "template"}, ("a", "template", "is required")),
        ({"id": "a"}, ("a", "kind", "is required")),
        ({"kind": "template", "template": "x"}, ("", "nodes[0].id", "is required")),
        ({"id": "a", "kind": "map", "over": "inputs.x", "each": {}}, ("a", "each.kind", "is required")),
        (
            text("a", when="starts_with('x', `5`)"),
            (
                "a",
                "when",
                "always fails: In function starts_with(), invalid type for value: 5, "
                "expected one of: ['string'], received: \"number\"",
            ),
        ),
        (
            {"id": "a", "kind": "map", "over": "inputs.x", "each": {"kind": "sleep", "seconds": 1}},
            (
                "a",
                "each.kind",
                "'sleep' can't stand in a map; only agent, chat_model, flow, http_request, python, select,"
                " template, text_file, tool",
            ),
        ),
        (
            {
                "id": "a",
                "kind": "map",
                "over": "inputs.x",
                "each": {"kind": "template", "template": "{{ x }}"},
            },
            ("a", "each.template", "unknown name 'x'; there are execution, index, inputs, item, nodes"),
        ),
        (
            {
                "id": "a",
                "kind": "map",
                "over": "inputs.x",
                "each": {"kind": "select"},
                "retry": {"attempts": 2},
            },
            ("a", "retry", "stands in each: it is about one item"),
        ),
        (
            {"id": "a", "kind": "branch", "cases": [{"when": "inputs.x", "then": ["b"]}]},
            ("a", "cases[0].then", "unknown node 'b'"),
        ),
        (
            {"id": "a", "kind": "branch", "cases": [{"when": "inputs.x", "than": ["b"]}]},
            ("a", "cases[0].than", "unknown key; did you mean then?"),
        ),
        (7, ("", "nodes[0]", "must be an object")),
    ],
)
def test_a_problem_names_node_field_and_rule(node: Any, problem: tuple[str, str, str]) -> None:
    assert problem in problems_of(node)


@pytest.mark.parametrize(
    ("flow", "field", "rule"),
    [
        ({"id": "a b"}, "id", "expected str matching regex"),
        ({"heliograph": 2}, "heliograph", "invalid enum value 2"),
        ({"outputs": 1}, "outputs", "unknown key; did you mean output?"),
        ({"output": "${nodes.zz}"}, "output", "unknown node 'zz'"),
        ({"output": "${nodes}"}, "output", "'nodes' must be followed by the id of a node"),
        ({"placement": "here"}, "placement", "invalid enum value 'here'"),
        ({"timeout_seconds": 0}, "timeout_seconds", "expected float > 0.0"),
        ({"inputs": {"type": "array"}}, "inputs.type", "must be object"),
        ({"inputs": {"type": "objekt"}}, "inputs.type", "is not valid under any"),
        ({"inputs": {"$ref": "http://a.example/s"}}, "inputs", "can't refer to another document"),
        ({"inputs": {"$ref": "file:///etc/hostname"}}, "inputs", "can't refer to another document"),
        (
            {"inputs": {"$schema": "http://json-schema.org/draft-07/schema#"}},
            "inputs.$schema",
            "must be https",
        ),
        ({"nodes": []}, "nodes", "length >= 1"),
        ({"nodes": {}}, "nodes", "expected list, got object"),
    ],
)
def test_a_problem_of_the_flow_names_field_and_rule(flow: dict[str, Any], field: str, rule: str) -> None:
    document = {"heliograph": 1, "id": "f", "nodes": [text("a")], **flow}

    with pytest.raises(InvalidGraph) as caught:
        compile_flow(parse_flow(document))

    assert [(n, f) for n, f, r in caught.value.problems if rule in r] == [("", field)]


def test_what_a_definition_needs_is_named_when_it_is_missing() -> None:
    with pytest.raises(InvalidGraph) as caught:
        compile_flow(parse_flow({}))

    assert {field for _, field, rule in caught.value.problems if rule == "is required"} == {
        "heliograph",
        "id",
        "nodes",
    }


def test_every_cycle_is_named_in_running_order() -> None:
    problems = problems_of(
        text("start"),
        text("a", "{{ nodes.c }}", needs=["start"]),
        text("b", needs=["a"]),
        text("c", needs=["b"]),
        text("behind", needs=["c"]),
        text("x", needs=["y"]),
        text("y", needs=["x"]),
    )

    assert [rule for _, _, rule in problems] == [
        "the nodes form a cycle: b -> c -> a -> b",
        "the nodes form a cycle: y -> x -> y",
    ]


def test_a_cycle_through_a_branch_is_found() -> None:
    way = {"id": "way", "kind": "branch", "cases": [{"when": "nodes.a", "then": ["a"]}]}

    assert "cycle: " in problems_of(text("a"), way)[0][2]


def test_an_id_that_stands_twice_is_named() -> None:
    assert ("a", "id", "this id stands twice") in problems_of(text("a"), text("b"), text("a"))


def test_all_problems_come_at_once() -> None:
    problems = problems_of(
        text("a", "{{ nodes.zz }}", needs=["q"], retry={"attempts": "x"}),
        {"id": "b", "kind": "nope"},
        {"id": "c", "kind": "select", "expression": "nodes.c ||"},
        text("d", needs=["e"]),
        text("e", needs=["d"]),
        timeout_seconds=-1,
        colour="red",
    )

    assert {(node, field) for node, field, _ in problems} >= {
        ("", "timeout_seconds"),
        ("", "colour"),
        ("a", "needs"),
        ("a", "retry.attempts"),
        ("b", "kind"),
        ("c", "expression"),
        ("a", "template"),
        ("e", "needs"),
    }


def test_the_number_of_problems_is_bounded() -> None:
    problems = problems_of(*(text(f"n{i}", needs=["zz"]) for i in range(300)))

    assert len(problems) == 201
    assert problems[-1] == ("", "", "and 100 more problems")


def test_the_number_of_nodes_is_bounded() -> None:
    problems = problems_of(*(text(f"n{i}") for i in range(NODES_MAX + 1)), output="${inputs.x}")

    assert problems == [("", "nodes", f"expected list of length <= {NODES_MAX}")]


def test_the_number_of_cycles_named_is_bounded() -> None:
    problems = problems_of(*(text(f"n{i}", needs=[f"n{i}"]) for i in range(CYCLES_MAX + 5)))

    assert len(problems) == CYCLES_MAX


def test_nodes_that_can_never_run_are_named() -> None:
    way = {
        "id": "way",
        "kind": "branch",
        "cases": [{"when": "`true`", "then": ["a"]}, {"when": "inputs.x", "then": ["b"]}],
        "else": ["c"],
    }
    problems = problems_of(
        way, text("a"), text("b"), text("c"), text("d", needs=["b", "c"]), text("e", needs=["d", "a"])
    )

    assert [(node, field) for node, field, rule in problems if "can never run" in rule] == [
        ("b", "id"),
        ("c", "id"),
        ("d", "needs"),
    ]


def test_an_output_that_can_not_exist_is_not_to_be_mentioned() -> None:
    way = {
        "id": "way",
        "kind": "branch",
        "cases": [{"when": "inputs.x", "then": ["a"]}, {"when": "inputs.y", "then": ["b", "c"]}],
    }
    problems = problems_of(way, text("a"), text("b", "{{ nodes.a }}"), text("c", "{{ nodes.b }}"))

    assert [(node, field) for node, field, _ in problems] == [("b", "template")]
    assert "node 'a' is in another case of branch way" in problems[0][2]


def test_an_input_that_the_schema_rules_out_is_not_to_be_mentioned() -> None:
    closed: dict[str, Any] = {"type": "object", "properties": {"who": {}}, "additionalProperties": False}

    assert problems_of(text("a", "{{ inputs.whom }}"), inputs=closed) == [
        ("a", "template", "unknown input 'whom': the flow's inputs don't have it")
    ]
    assert plan_of(text("a", "{{ inputs.whom }}"), inputs={"properties": {"who": {}}}).steps


# --- the input of an execution ------------------------------------------------------------------------


INPUTS = {
    "type": "object",
    "required": ["who"],
    "properties": {"who": {"type": "string"}, "list": {"type": "array", "items": {"type": "integer"}}},
}


def input_problems(value: Any, schema: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    definition = parse_flow({"heliograph": 1, "id": "f", "nodes": [text("a")], "inputs": schema})
    try:
        check_input(definition, value)
    except InvalidInput as refused:
        return refused.problems
    return ()


def test_an_input_that_keeps_the_schema_is_accepted() -> None:
    assert input_problems({"who": "me", "list": [1]}, INPUTS) == ()
    assert input_problems({"anything": 1}, None) == ()


def test_every_problem_of_an_input_names_its_path_and_rule() -> None:
    assert input_problems({"who": 1, "list": [1, "x"]}, INPUTS) == (
        ("who", 'the value is not of type "string"'),
        ("list[1]", 'the value is not of type "integer"'),
    )
    assert input_problems({}, INPUTS) == (("", '"who" is a required property'),)


def test_a_refusal_does_not_repeat_the_value() -> None:
    assert "secret" not in str(input_problems({"who": ["secret"]}, INPUTS))


def test_an_input_must_be_an_object() -> None:
    assert input_problems([1], None) == (("", "must be an object"),)


def test_the_problems_of_an_input_are_bounded() -> None:
    assert len(input_problems({"who": "me", "list": ["x"] * 1000}, INPUTS)) == 50


def test_a_pattern_can_not_hang_the_check() -> None:
    schema = {"properties": {"who": {"pattern": "^(a|a)*(?=b)$"}}}

    assert input_problems({"who": "a" * 5000}, schema) != ()
