"""A plan as a flow: what a model may write into its steps, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.dialects.external.plan_flow import (
    PlanFault,
    final_node,
    flow_document,
    planned_steps,
)
from gateway.dialects.external.plans import steps_of
from gateway.dialects.external.wire import Step
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import NodeId
from runtime.plan import CallTool, Plan, RunAgent, StartChild

SERVERS = {
    "tools": {
        "kind": "mcp",
        "name": "tools",
        "url": "http://tools.example",
        "headers": {"authorization": "{secret:T}", "x": "Bearer {secret:T}"},
    }
}
SCOPE: Any = {
    "inputs": {"input": "cats", "parameters": {"lang": "en"}},
    "nodes": {"step_1": {"found": [1]}, "step_2": "two", "step_3": None},
    "execution": {},
}


def plan_of(*steps: Step) -> Plan:
    return compile_flow(parse_flow(flow_document("task-x", "T", steps, SERVERS)))


def act(plan: Plan, node: str) -> Any:
    return plan.steps[NodeId(node)].act(SCOPE)


def test_expressions_are_computed_alone_and_within_a_text() -> None:
    given = {
        "query": "about ${inputs.input}, `quoted` and {{ braces }}",
        "whole": "${nodes.step_1.found}",
        "nested": [{"lang": "${inputs.parameters.lang}"}],
        "plain": 7,
    }
    plan = plan_of(
        Step(1, "tools", "search", {"q": "x"}),
        Step(2, "tools", "search", given),
    )
    called = act(plan, "step_2")
    assert isinstance(called, CallTool)
    assert called.name == "search"
    assert called.arguments == {
        "query": "about cats, `quoted` and {{ braces }}",
        "whole": [1],
        "nested": [{"lang": "en"}],
        "plain": 7,
    }


def test_a_servers_texts_are_never_computed() -> None:
    called = act(plan_of(Step(1, "tools", "search", {})), "step_1")
    assert called.tool.headers == SERVERS["tools"]["headers"]


def test_an_instruction_shows_results_and_its_own_braces() -> None:
    instruction = 'Use ${nodes.step_1}, {{ not this }} and "that" {% nor this %}'
    plan = plan_of(
        Step(1, "tools", "search", {}), Step(2, "assistant", "answer", {"instruction": instruction})
    )
    asked = act(plan, "step_2")
    assert isinstance(asked, RunAgent)
    assert asked.spec.prompt.endswith('Use {"found": [1]}, {{ not this }} and "that" {% nor this %}')
    assert "cats" in asked.spec.prompt
    assert "Result of step 1, tools: search:" in asked.spec.prompt


def test_steps_run_in_order_and_a_model_words_the_result() -> None:
    plan = plan_of(
        Step(1, "flows", "shout", {"text": "${inputs.input}"}), Step(2, "tools", "search", {"a": 1})
    )
    assert list(plan.steps) == ["step_1", "step_2", "result"]
    assert plan.steps[NodeId("step_2")].needs == ("step_1",)
    assert act(plan, "step_1") == StartChild("shout", {"text": "cats"})  # pyright: ignore[reportArgumentType]
    prompt = act(plan, "result").spec.prompt
    assert "cats" in prompt
    assert "Step 2, tools: search:\ntwo" in prompt


def test_an_assistants_last_step_is_the_result() -> None:
    steps = [Step(1, "assistant", "answer", {"instruction": "Go."})]
    plan = plan_of(*steps)
    assert list(plan.steps) == ["step_1"]
    assert final_node(steps) == "step_1"


def test_the_steps_can_be_read_off_the_flow() -> None:
    steps = [
        Step(1, "flows", "shout", {"text": "x"}),
        Step(2, "tools", "search", {"a": 1}),
        Step(3, "assistant", "answer", {"instruction": "Go."}),
    ]
    document = parse_flow(flow_document("task-x", "T", steps, SERVERS)).document
    assert [(step.step, step.mcp, step.action) for step in planned_steps(document)] == [
        (step.step, step.mcp, step.action) for step in steps
    ]


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (Step(1, "nobody", "x", {}), "there is no mcp 'nobody'"),
        (Step(1, "tools", "", {}), "the action is missing"),
        (Step(1, "tools", "x", {"a": "${nodes.step_1}"}), "step 1 has no result yet"),
        (Step(1, "tools", "x", {"a": "up to ${nodes.step_4.b}"}), "step 4 has no result yet"),
        (Step(1, "assistant", "answer", {"instruction": "${length(inputs.input)}"}), "plain paths"),
        (Step(1, "assistant", "answer", {}), "the input of 'assistant'"),
    ],
)
def test_what_cannot_run_is_named(step: Step, rule: str) -> None:
    with pytest.raises(PlanFault, match=rule.replace("'", ".")) as fault:
        flow_document("task-x", "T", [step], SERVERS)
    assert all(where.startswith("step") for where, _ in fault.value.problems)


def test_a_plan_has_a_step_and_a_bound() -> None:
    for steps in ([], [Step(number, "tools", "x", {}) for number in range(1, 22)]):
        with pytest.raises(PlanFault, match="must be 1 to 20"):
            flow_document("task-x", "T", steps, SERVERS)


def test_an_answer_is_read_leniently_where_only_one_thing_can_be_meant() -> None:
    answer: dict[str, Any] = {"steps": [{"mcp": "assistant", "action": "think", "input": {}}]}
    assert steps_of(answer) == [Step(1, "assistant", "answer", {"instruction": "Carry out the task."})]
    for wrong in (None, "x", {}, {"steps": [{"mcp": "tools"}]}):
        with pytest.raises(PlanFault):
            steps_of(wrong)
