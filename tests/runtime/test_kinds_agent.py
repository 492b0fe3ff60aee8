"""What the kinds that talk to models and tools ask for, and what they refuse."""

import re

import pytest

from runtime.agent_spec import AgentSpec, McpServer, PythonTool, Skill
from runtime.plan import CallTool, RunAgent
from tests.runtime.test_kinds import SCOPE, act, refused, step_of

ADD = {"kind": "python", "function": "flows.arithmetic:add"}


def test_an_agent_gets_its_texts_rendered_and_its_values_typed() -> None:
    action = act(
        "agent",
        prompt="Hello {{ inputs.who }}",
        system="Be kind to {{ inputs.who }}",
        tools=[ADD, {"kind": "mcp", "name": "m", "command": ["serve"], "allow": ["t"]}],
        skills=[{"name": "s", "instructions": "do"}],
        max_turns="${inputs.n}",
    )
    assert action == RunAgent(
        AgentSpec(
            prompt="Hello me",
            system="Be kind to me",
            tools=(
                PythonTool(function="flows.arithmetic:add"),
                McpServer(name="m", command=("serve",), allow=("t",)),
            ),
            skills=(Skill(name="s", instructions="do"),),
            max_turns=3,
        )
    )


def test_a_field_that_gives_null_counts_as_left_out() -> None:
    assert act("agent", prompt="p", tools="${inputs.no}", history="${inputs.no}") == RunAgent(
        AgentSpec(prompt="p")
    )


def test_braces_in_what_a_user_wrote_are_not_rendered_again() -> None:
    scope = {**SCOPE, "inputs": {"who": "{{ inputs.secret }}"}}
    action = step_of("agent", prompt="{{ inputs.who }}").act(scope)
    assert isinstance(action, RunAgent)
    assert action.spec.prompt == "{{ inputs.secret }}"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"max_turns": "${`0`}"}, "max_turns"),
        ({"max_turns": "${`201`}"}, "max_turns"),
        ({"tools": [{"kind": "telepathy"}]}, "telepathy"),
        ({"tools": [{**ADD, "timeout_seconds": -1}]}, "timeout_seconds"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
    ],
)
def test_an_agent_whose_values_break_a_rule_fails_naming_it(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        act("agent", prompt="p", **fields)


def test_a_chat_model_gives_the_answer_alone() -> None:
    action = act("chat_model", prompt="Hello {{ inputs.who }}", model="gpt-4.1-mini")
    assert action == RunAgent(AgentSpec(prompt="Hello me", model="gpt-4.1-mini"), plain=True)


def test_a_chat_model_has_no_tools() -> None:
    assert {field for field, _ in refused("chat_model", prompt="p", tools=[ADD])} == {"tools"}


def test_a_prompt_is_required() -> None:
    assert {field for field, _ in refused("agent")} == {"prompt"}


def test_a_tool_node_calls_one_tool_with_its_arguments() -> None:
    server = {"kind": "mcp", "name": "m", "url": "http://127.0.0.1:1/mcp"}
    action = act("tool", tool=server, name="search", arguments={"who": "${inputs.who}"})
    assert action == CallTool(McpServer(name="m", url="http://127.0.0.1:1/mcp"), "search", {"who": "me"})


def test_an_mcp_server_needs_the_name_of_a_tool_and_others_none() -> None:
    with pytest.raises(ValueError, match="name"):
        act("tool", tool={"kind": "mcp", "name": "m", "command": ["x"]})
    with pytest.raises(ValueError, match="name"):
        act("tool", tool=ADD, name="add")


def test_the_arguments_of_a_tool_must_be_an_object() -> None:
    with pytest.raises(TypeError, match="arguments must give an object"):
        act("tool", tool=ADD, arguments="${inputs.list}")
