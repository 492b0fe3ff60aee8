"""What each kind asks its shell to do, and which configurations it refuses."""

from typing import Any

import pytest

from runtime.errors import InvalidGraph
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import SECOND, Micros, NodeId
from runtime.kinds import KINDS
from runtime.kinds import map as map_kind
from runtime.kinds.sleep import moment
from runtime.plan import (
    Action,
    CallFunction,
    HttpRequest,
    MapOver,
    Output,
    ReadText,
    StartChild,
    Step,
    Wait,
)

SCOPE: dict[str, Any] = {
    "inputs": {
        "n": 3,
        "who": "me",
        "list": [1, 2],
        "when": "2030-01-01T00:00:00Z",
        "obj": {"a": 1},
        "no": None,
    },
    "nodes": {},
    "execution": {"id": "e", "key": "k"},
}


def step_of(kind: str, **config: Any) -> Step:
    document = {"heliograph": 1, "id": "f", "nodes": [{"id": "it", "kind": kind, **config}]}
    return compile_flow(parse_flow(document)).steps[NodeId("it")]


def act(kind: str, **config: Any) -> Action:
    return step_of(kind, **config).act(SCOPE)


def refused(kind: str, **config: Any) -> set[tuple[str, str]]:
    with pytest.raises(InvalidGraph) as caught:
        step_of(kind, **config)
    return {(field, rule) for _, field, rule in caught.value.problems}


def branch(**inputs: Any) -> Action:
    cases = [
        {"name": "big", "when": "inputs.big", "then": ["a", "both"]},
        {"when": "inputs.small", "then": ["b", "both"]},
    ]
    nodes = [{"id": node, "kind": "template", "template": ""} for node in ("a", "b", "both", "c")]
    way = {"id": "way", "kind": "branch", "cases": cases, "else": ["c"]}
    document = {"heliograph": 1, "id": "f", "nodes": [*nodes, way]}
    return compile_flow(parse_flow(document)).steps[NodeId("way")].act({"inputs": inputs})


def test_the_table_names_the_kinds_of_the_format() -> None:
    assert list(KINDS) == [
        "agent",
        "branch",
        "chat_model",
        "flow",
        "http_request",
        "map",
        "python",
        "select",
        "sleep",
        "template",
        "text_file",
        "tool",
        "wait_for_signal",
    ]


def test_template_gives_text() -> None:
    assert act("template", template="{{ inputs.who }} {{ execution.key }}") == Output("me k")


def test_select_gives_the_result_of_an_expression() -> None:
    assert act("select", expression="sum(inputs.list)") == Output(3)


def test_select_builds_a_value() -> None:
    assert act("select", value={"total": "${sum(inputs.list)}", "of": ["${inputs.who}"]}) == Output(
        {"total": 3, "of": ["me"]}
    )


def test_select_may_give_null_as_a_value() -> None:
    assert act("select", value=None) == Output(None)


def test_select_takes_either_expression_or_value() -> None:
    rule = "exactly one of expression and value is required"

    assert ("expression", rule) in refused("select")
    assert ("expression", rule) in refused("select", expression="inputs.n", value=1)


def test_branch_takes_the_first_case_that_holds() -> None:
    assert branch(big=True, small=True) == Output("big", (NodeId("b"), NodeId("c")))
    assert branch(small=True) == Output(1, (NodeId("a"), NodeId("c")))


def test_branch_takes_else_when_no_case_holds() -> None:
    assert branch() == Output("else", (NodeId("a"), NodeId("both"), NodeId("b")))


def test_branch_without_else_skips_all_it_names() -> None:
    document = {
        "heliograph": 1,
        "id": "f",
        "nodes": [
            {"id": "a", "kind": "template", "template": ""},
            {"id": "way", "kind": "branch", "cases": [{"when": "inputs.x", "then": ["a"]}]},
        ],
    }

    assert compile_flow(parse_flow(document)).steps[NodeId("way")].act(SCOPE) == Output(None, (NodeId("a"),))


def test_branch_needs_a_case() -> None:
    assert ("cases", "expected list of length >= 1") in refused("branch", cases=[])


def test_map_gives_the_items_and_the_step_for_each() -> None:
    each = {
        "kind": "python",
        "function": "a:b",
        "with": {"x": "${item}"},
        "retry": {"attempts": 4},
        "timeout_seconds": 9,
    }
    action = act("map", over="inputs.list", each=each, concurrency=2, on_error="fail")
    assert isinstance(action, MapOver)

    assert (action.items, action.concurrency, action.on_error) == ((1, 2), 2, "fail")
    assert (action.each.kind, action.each.retry.attempts, action.each.timeout_seconds) == ("python", 4, 9.0)
    assert action.each.act({**SCOPE, "item": 7, "index": 0}) == CallFunction("a:b", {"x": 7})


def test_map_goes_over_lists_only() -> None:
    with pytest.raises(TypeError, match="over must give a list, not dict"):
        act("map", over="inputs.obj", each={"kind": "select", "expression": "item"})


def test_map_bounds_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_kind, "ITEMS_MAX", 1)

    with pytest.raises(ValueError, match="over gives 2 items; 1 are allowed"):
        act("map", over="inputs.list", each={"kind": "select", "expression": "item"})


@pytest.mark.parametrize("concurrency", [0, 1001])
def test_map_bounds_its_concurrency(concurrency: int) -> None:
    each = {"kind": "select", "expression": "item"}

    assert {field for field, _ in refused("map", over="inputs.list", each=each, concurrency=concurrency)} == {
        "concurrency"
    }


@pytest.mark.parametrize("kind", ["branch", "map", "sleep", "wait_for_signal"])
def test_map_holds_no_kind_that_waits_or_decides(kind: str) -> None:
    fields = {field for field, _ in refused("map", over="inputs.list", each={"kind": kind})}

    assert fields & {"each.kind", "each.cases", "each.each", "each.signal"}


def test_flow_starts_a_child_with_its_input() -> None:
    assert act("flow", flow="child", input={"n": "${inputs.n}"}) == StartChild("child", {"n": 3})  # type: ignore[arg-type]  # NewType
    assert act("flow", flow="child", input="${inputs.obj}").input == {"a": 1}  # type: ignore[union-attr]  # known kind


def test_flow_takes_an_object_as_input() -> None:
    with pytest.raises(TypeError, match="input must give an object, not int"):
        act("flow", flow="child", input="${inputs.n}")


def test_sleep_waits_for_a_delay() -> None:
    assert act("sleep", seconds=1.5) == Wait(delay_seconds=1.5)
    assert act("sleep", seconds="${inputs.n}") == Wait(delay_seconds=3.0)


def test_sleep_waits_until_a_time() -> None:
    new_year = Wait(until=Micros(1_893_456_000 * SECOND))

    assert act("sleep", until="2030-01-01T01:00:00+01:00") == new_year
    assert act("sleep", until="${inputs.when}") == new_year


def test_times_keep_their_microseconds() -> None:
    assert moment("1970-01-01T00:00:01.000001Z") == 1_000_001


@pytest.mark.parametrize("expression", ["inputs.who", "`-1`", "`true`", "inputs.no", "`1e300`"])
def test_sleep_fails_on_what_is_no_delay(expression: str) -> None:
    with pytest.raises((TypeError, ValueError), match="seconds must"):
        act("sleep", seconds=f"${{{expression}}}")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "seconds"),
        ({"seconds": 1, "until": "2030-01-01T00:00:00Z"}, "seconds"),
        ({"seconds": "5"}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"until": "tomorrow"}, "until"),
        ({"until": "2030-01-01T00:00:00"}, "until"),
    ],
)
def test_sleep_refuses_what_is_no_time(config: dict[str, Any], field: str) -> None:
    assert {name for name, _ in refused("sleep", **config)} == {field}


def test_wait_for_signal_waits_for_ever_or_for_its_time_out() -> None:
    assert act("wait_for_signal", signal="go") == Wait(signal="go")
    assert act("wait_for_signal", signal="go", timeout_seconds=5, on_timeout="continue") == Wait(
        signal="go", delay_seconds=5.0, on_timeout="continue"
    )


def test_the_time_out_of_a_wait_is_not_that_of_the_step() -> None:
    assert step_of("wait_for_signal", signal="go", timeout_seconds=5).timeout_seconds is None


def test_wait_for_signal_refuses_to_continue_after_no_time() -> None:
    assert refused("wait_for_signal", signal="go", on_timeout="continue") == {
        ("on_timeout", "needs timeout_seconds")
    }


def test_http_request_is_built_from_its_parts() -> None:
    assert act(
        "http_request",
        method="POST",
        url=" https://a.example/{{ inputs.who | urlencode }} ",
        headers={"x-n": "${inputs.n}", "x-none": "${inputs.no}"},
        query={"flag": True, "q": "${inputs.who}"},
        json={"list": "${inputs.list}"},
        fail_on_status=False,
    ) == HttpRequest(
        method="POST",
        url="https://a.example/me",
        headers={"x-n": "3"},
        query={"flag": "true", "q": "me"},
        json={"list": [1, 2]},
        fail_on_status=False,
    )
    assert act("http_request", url="http://a.example", body="Dear {{ inputs.who }}").body == "Dear me"  # type: ignore[union-attr]  # known kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": "file:///etc/hostname"}, "url must begin with http"),
        ({"url": "http://a.example", "headers": {"x": "${join(`\"\\n\"`, ['a', 'b'])}"}}, "line breaks"),
        ({"url": "http://a.example", "query": {"x": "${inputs.list}"}}, "query.x must be a text or a number"),
        ({"url": "http://a.example", "query": "${inputs.list}"}, "query must give an object"),
    ],
)
def test_http_request_fails_on_what_it_can_not_send(config: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        act("http_request", **config)


def test_http_request_refuses_two_bodies_and_odd_methods() -> None:
    fields = refused("http_request", url="http://a.example", json={"a": 1}, body="x")

    assert fields == {("body", "json and body exclude each other")}
    assert {field for field, _ in refused("http_request", url="http://a.example", method="BREW")} == {
        "method"
    }


def test_python_calls_a_function_by_name() -> None:
    assert act(
        "python", function="a.b:C.d", **{"with": {"x": "${inputs.list}", "y": "$${z}"}}
    ) == CallFunction("a.b:C.d", {"x": [1, 2], "y": "${z}"})
    assert act("python", function="a:b", **{"with": "${inputs.obj}"}) == CallFunction("a:b", {"a": 1})


@pytest.mark.parametrize("function", ["a", "a:", ":b", "a:b:c", "a b:c", "a:<lambda>", "a.:b", "1:b"])
def test_python_refuses_what_is_no_function_name(function: str) -> None:
    assert {field for field, _ in refused("python", function=function)} == {"function"}


def test_text_file_reads_a_uri() -> None:
    assert act("text_file", uri="docs/{{ inputs.who }}.txt") == ReadText("docs/me.txt")
    assert act("text_file", uri="${inputs.who}", encoding="latin-1") == ReadText("me", "latin-1")


def test_text_file_fails_without_a_uri() -> None:
    with pytest.raises(TypeError, match="uri must give a text"):
        act("text_file", uri="${inputs.no}")


def test_text_file_refuses_an_unknown_encoding() -> None:
    assert refused("text_file", uri="x", encoding="utf-9") == {("encoding", "unknown encoding 'utf-9'")}
