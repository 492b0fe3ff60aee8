"""A flow's queue: what a definition may say, and what an input makes of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from runtime.authoring import Handle, flow, node
from runtime.commands import StartExecution
from runtime.errors import InvalidGraph, InvalidInput
from runtime.events import BlobRef
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import SECOND, Micros
from runtime.plan import Plan
from runtime.queue_keys import placed
from runtime.queues import QueueFields, Rate


def document(queue: Any, **fields: Any) -> dict[str, Any]:
    nodes = [{"id": "a", "kind": "template", "template": "x"}]
    return {"heliograph": 1, "id": "queued", "queue": queue, "nodes": nodes, **fields}


def plan(queue: Any) -> Plan:
    return compile_flow(parse_flow(document(queue)))


def start(given: Any, **fields: Any) -> StartExecution:
    return StartExecution(
        at=Micros(1),
        execution_id="e1",
        tenant="acme",
        flow_id="queued",
        flow_version="v",
        source="executions",
        input=given,
        **fields,
    )


@pytest.mark.parametrize(
    ("queue", "field", "rule"),
    [
        ({}, "queue", "needs concurrency, rate or priority"),
        ({"key": "x"}, "queue.key", "does nothing without concurrency or rate"),
        ({"concurrency": 0}, "queue.concurrency", "expected int >= 1"),
        ({"concurrency": 2, "slots": 1}, "queue.slots", "unknown key"),
        ({"rate": "5/week"}, "queue.rate", "expected str matching regex"),
        ({"rate": "0/minute"}, "queue.rate", "expected str matching regex"),
        ({"rate": "20000/day"}, "queue.rate", "at most 10000 starts"),
        ({"priority": 101}, "queue.priority", "expected int <= 100"),
        ({"concurrency": 1, "key": "${inputs.a}"}, "queue.key", "is a template"),
        ({"concurrency": 1, "key": "{{ nodes.a }}"}, "queue.key", "unknown name 'nodes'; there are inputs"),
        ({"concurrency": 1, "key": "{{ inputs.a"}, "queue.key", "unexpected end of template"),
        ({"concurrency": 1, "priority": "{{ item }}"}, "queue.priority", "unknown name 'item'; there are"),
        (3, "queue", "expected object | null, got int"),
    ],
)
def test_what_a_queue_may_not_be_is_told_by_field_and_rule(queue: Any, field: str, rule: str) -> None:
    with pytest.raises(InvalidGraph) as caught:
        plan(queue)
    [(node_id, at, told)] = caught.value.problems
    assert (node_id, at) == ("", field)
    assert rule in told


def test_a_key_can_only_be_made_from_inputs_the_flow_has() -> None:
    inputs: Any = {"type": "object", "properties": {"name": {}}, "additionalProperties": False}
    with pytest.raises(InvalidGraph) as caught:
        compile_flow(parse_flow(document({"concurrency": 1, "key": "{{ inputs.nam }}"}, inputs=inputs)))
    assert caught.value.problems == (
        ("", "queue.key", "unknown input 'nam': the flow's inputs don't have it"),
    )


def test_dedicated_placement_has_no_rate() -> None:
    with pytest.raises(InvalidGraph, match="can't be kept by dedicated placement"):
        compile_flow(parse_flow(document({"rate": "5/minute"}, placement="dedicated")))


def test_a_decorated_flow_has_the_queue_that_yaml_gives() -> None:
    fields = QueueFields(key="{{ inputs.who }}", concurrency=2, rate="100/minute", priority=5)

    @flow(id="queued", queue=fields)
    def queued(inputs: Handle) -> None:
        node("template", "a", template="x")

    same = document({"key": "{{ inputs.who }}", "concurrency": 2, "rate": "100/minute", "priority": 5})
    assert queued.definition().document == parse_flow(same).document


def test_a_rate_is_an_amount_and_a_window() -> None:
    assert Rate.parse("100/minute") == Rate(100, Micros(60 * SECOND))
    assert str(Rate.parse("7/day")) == "7/day"


def test_key_and_priority_are_made_from_the_input() -> None:
    queue = {"key": "{{ inputs.who }} ", "concurrency": 1, "priority": "{{ 7 if inputs.urgent else 1 }}"}
    command = placed(start({"who": "ada", "urgent": True}), plan(queue))
    assert (command.queue_key, command.priority) == ("ada", 7)
    assert placed(command, plan(queue)) is command


def test_the_example_of_the_docs_does_what_it_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "queues.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    crawl = compile_flow(parse_flow(example))
    usual, urgent = (placed(start({"site": "example.org", **more}), crawl) for more in ({}, {"urgent": True}))
    assert (usual.queue_key, usual.priority, urgent.priority) == ("example.org", 0, 10)


def test_without_a_key_the_flow_is_one_queue() -> None:
    assert placed(start({}), plan({"concurrency": 1})).queue_key == "*"


def test_a_queue_of_priorities_alone_has_no_key() -> None:
    command = placed(start({}), plan({"priority": 3}))
    assert (command.queue_key, command.priority) == ("", 3)


def test_a_flow_without_a_queue_changes_nothing() -> None:
    command = start({"who": "ada"})
    assert placed(command, compile_flow(parse_flow(document(None)))) is command


@pytest.mark.parametrize(
    ("queue", "given", "rule"),
    [
        ({"concurrency": 1, "key": "{{ inputs.who }}"}, {}, "queue.key can't be made from it"),
        ({"concurrency": 1, "key": "{{ inputs.who }}"}, {"who": " "}, "1 to 200 characters"),
        ({"concurrency": 1, "key": "{{ inputs.who }}"}, {"who": "x" * 201}, "1 to 200 characters"),
        ({"concurrency": 1, "key": "{{ inputs.who }}"}, {"who": "a\x00b"}, "none of them NUL"),
        ({"priority": "{{ inputs.n }}"}, {"n": "high"}, "a whole number from -100 to 100"),
        ({"priority": "{{ inputs.n }}"}, {"n": 1000}, "a whole number from -100 to 100"),
    ],
)
def test_an_input_that_gives_no_key_or_priority_is_refused(queue: Any, given: Any, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        placed(start(given), plan(queue))


def test_an_input_that_was_put_aside_can_not_be_placed_any_more() -> None:
    command = start(None, input_ref=BlobRef(sha256="0" * 64, size=1))
    with pytest.raises(InvalidInput, match="too large"):
        placed(command, plan({"concurrency": 1}))
