"""Flows in Python give the definitions that YAML gives."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from runtime.authoring import FlowFunction, Handle, NotImportable, flow, node, run_flow, step
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import NodeId
from runtime.plan import CallFunction
from tests.runtime import authored_flows
from tests.runtime.authored_flows import WORDS_INPUT, later, linear, shout, split, very_wide, waits, wide

HERE = "tests.runtime.authored_flows"


def composed(body: Callable[[Handle], Any]) -> FlowFunction:
    return flow(id="test")(body)


def test_calls_of_steps_give_what_yaml_gives() -> None:
    yaml = f"""
    heliograph: 1
    id: linear
    name: Linear
    description: Two steps
    timeout_seconds: 60
    nodes:
      - {{id: split, kind: python, function: "{HERE}:split", with: {{text: "${{inputs.text}}"}}}}
      - id: shout
        kind: python
        function: "{HERE}:shout"
        with: {{word: "${{nodes.split[0]}}", mark: "$${{not an expression}}"}}
        retry: {{attempts: 3, on: [ValueError]}}
        timeout_seconds: 5
        resources: {{cpus: 1}}
    output: "${{nodes.shout}}"
    """

    assert linear.definition() == parse_flow(yaml)
    assert linear.definition().version == parse_flow(yaml).version


def test_maps_give_what_yaml_gives() -> None:
    settings = "retry: {attempts: 3, on: [ValueError]}, timeout_seconds: 5, resources: {cpus: 1}"
    yaml = f"""
    heliograph: 1
    id: wide
    inputs: {{type: object, properties: {{words: {{type: array}}}}}}
    nodes:
      - id: shout
        kind: map
        over: inputs.words
        concurrency: 2
        on_error: fail
        each: {{kind: python, function: "{HERE}:shout", with: {{word: "${{item}}", mark: "?"}}, {settings}}}
      - id: fixed
        name: Fixed
        kind: map
        over: '`["a", "\\u0060b\\u0060"]`'
        each: {{kind: python, function: "{HERE}:shout", with: {{word: "${{item}}"}}, {settings}}}
    output:
      all: "${{nodes.shout.results}}"
      first: "${{nodes.fixed.results[0]}}"
      odd: '${{inputs."odd key"}}'
    """

    assert wide.definition() == parse_flow(yaml)
    assert wide.definition().inputs == WORDS_INPUT


def test_wide_maps_give_what_yaml_gives() -> None:
    settings = "retry: {attempts: 3, on: [ValueError]}, timeout_seconds: 5, resources: {cpus: 1}"
    call = f'kind: python, function: "{HERE}:shout", with: {{word: "${{item}}"}}, {settings}'
    yaml = f"""
    heliograph: 1
    id: very-wide
    nodes:
      - id: first
        kind: map
        source: "words/*.csv"
        format: csv
        chunk: {{size: 10}}
        failures_max_share: 0.1
        each: {{{call}}}
      - id: second
        kind: map
        source: "${{nodes.first}}"
        concurrency: 2
        on_error: fail
        chunk: {{seconds: 0.5}}
        each: {{{call}}}
    output: "${{nodes.second}}"
    """
    assert very_wide.definition().document == parse_flow(yaml).document


def test_a_literal_list_reaches_the_map() -> None:
    action = compile_flow(wide.definition()).steps[NodeId("fixed")].act({"inputs": {}})

    assert action.items == ("a", "`b`")  # type: ignore[union-attr]  # known kind


def test_waits_children_and_other_kinds_give_what_yaml_gives() -> None:
    yaml = f"""
    heliograph: 1
    id: waits
    nodes:
      - {{id: go_ahead, kind: wait_for_signal, signal: go-ahead, timeout_seconds: 10, on_timeout: continue}}
      - id: sleep
        kind: sleep
        seconds: "${{inputs.delay}}"
        needs: [go_ahead]
        when: nodes.go_ahead.approved
      - {{id: linear, kind: flow, flow: linear, input: {{text: "${{inputs.text}}"}}, needs: [sleep]}}
      - {{id: later, kind: python, function: "{HERE}:later", with: {{word: x}}, needs: [linear]}}
      - {{id: later_2, kind: python, function: "{HERE}:later", with: {{word: y}}}}
      - {{id: letter, kind: template, template: "Dear {{{{ inputs.text }}}}", needs: [later, later_2]}}
      - {{id: way, kind: branch, cases: [{{when: inputs.text, then: [letter]}}]}}
    """

    assert waits.definition() == parse_flow(yaml)
    assert list(compile_flow(waits.definition()).steps)


def test_a_plan_calls_the_step_by_a_name_that_finds_it() -> None:
    action = compile_flow(linear.definition()).steps[NodeId("split")].act({"inputs": {"text": "a b"}})

    assert action == CallFunction(f"{HERE}:split", {"text": "a b"})
    assert authored_flows.split is split


def test_outside_a_flow_a_step_is_its_function() -> None:
    assert split("a-b", separator="-") == ["a", "b"]
    assert split.__doc__ == "Cut a text into words."
    assert inspect.iscoroutinefunction(inspect.unwrap(later))


def test_the_definition_is_composed_once() -> None:
    assert linear.definition() is linear.definition()


def test_keyword_parameters_are_passed_by_their_names() -> None:
    made = composed(lambda _inputs: shout("a", extra=1)).definition()

    assert made.document["nodes"][0]["with"] == {"word": "a", "extra": 1}


def test_functions_that_workers_can_not_import_are_refused() -> None:
    def local() -> None: ...

    with pytest.raises(NotImportable, match="defined inside another function"):
        step()(local)
    with pytest.raises(NotImportable, match="is a lambda"):
        step()(lambda: None)
    local.__module__, local.__qualname__ = "__main__", "local"
    with pytest.raises(NotImportable, match="defined in __main__"):
        step()(local)


def test_arguments_without_a_name_are_refused() -> None:
    def rest(*words: str) -> None: ...

    rest.__qualname__ = "rest"
    with pytest.raises(TypeError, match="arguments travel by name, so 'words' can't be one"):
        step()(rest)


def test_arguments_a_step_does_not_take_are_refused_while_composing() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        composed(lambda _inputs: split("a", colour="red")).definition()


def test_an_output_that_is_not_known_yet_can_not_be_used_as_one() -> None:
    with pytest.raises(TypeError, match=r"use a step's map\(\)"):
        composed(lambda inputs: [split(word) for word in inputs["words"]]).definition()
    with pytest.raises(TypeError, match="use when="):
        composed(lambda inputs: split("a") if inputs["x"] else None).definition()


def test_a_part_of_an_output_can_not_be_needed() -> None:
    with pytest.raises(TypeError, match="needs takes the handles of whole nodes"):
        composed(lambda inputs: node("template", "t", template="", needs=[inputs["x"]])).definition()


def test_nodes_belong_into_flows() -> None:
    with pytest.raises(TypeError, match="in the body of a function decorated with @flow"):
        node("template", "t", template="")


def test_a_flow_is_not_composed_inside_another() -> None:
    inner = composed(lambda _inputs: split("a"))

    with pytest.raises(TypeError, match="can't define another flow"):
        composed(lambda _inputs: inner.definition()).definition()
    assert composed(lambda _inputs: run_flow(inner)).definition().document["nodes"] == [
        {"id": "test", "kind": "flow", "flow": "test"}
    ]
