"""What a specification changes in the request that the model server really receives."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.agents.home import AgentSettings
from actors.agents.tools.interface import ToolResult
from runtime.agent_spec import AgentSpec, Guardrail, PythonTool, Skill
from runtime.events import MessageRecorded, NodeLogged, StepStarted
from tests.actors.agents.loop_household import Tools, output_of, run
from tests.model_server.script import Reply, Rule, ToolUse, endless_tool_loop, gives, says
from tests.model_server.server import ModelServer

TOOL = PythonTool(function="tests:unused", name="look")


def ask(server: ModelServer, spec: AgentSpec, tools: Tools | None = None) -> tuple[Any, Any]:
    return run(spec, AgentSettings(model="test-model", model_url=server.url), tools)


def sent(server: ModelServer, number: int = 0) -> dict[str, Any]:
    return server.journal.exchanges[number].body


def system_of(body: dict[str, Any]) -> str:
    return "\n".join(m["content"] for m in body["messages"] if m["role"] in ("system", "developer"))


def test_system_skills_memories_format_and_terseness_stand_in_the_system_message(
    model_server: ModelServer,
) -> None:
    spec = AgentSpec(
        prompt="hi",
        system="You are Ada.",
        skills=(Skill(name="review", instructions="Look for off-by-one errors."),),
        memories=("likes tea",),
        output_format="markdown",
        caveman=True,
    )
    ask(model_server, spec)
    system = system_of(sent(model_server))
    for part in ("You are Ada.", "# Skill: review", "off-by-one", "- likes tea", "caveman", "Markdown"):
        assert part in system
    ask(model_server, AgentSpec(prompt="hi"))
    assert system_of(sent(model_server, 1)) == ""


def test_temperature_effort_model_and_the_step_key_are_sent(model_server: ModelServer) -> None:
    spec = AgentSpec(prompt="hi", model="gpt-5-mini", reasoning_effort="low")
    ask(model_server, spec)
    exchange = model_server.journal.exchanges[0]
    assert exchange.body["model"] == "gpt-5-mini"
    assert exchange.body["reasoning_effort"] == "low"
    assert exchange.idempotency_key == "exec-1:agent:model-1"
    ask(model_server, AgentSpec(prompt="hi", model="gpt-4o", temperature=0.25))
    assert sent(model_server, 1)["temperature"] == 0.25


def test_history_comes_before_the_prompt_and_returns_longer(model_server: ModelServer) -> None:
    first = output_of(ask(model_server, AgentSpec(prompt="one"))[1])
    second = output_of(ask(model_server, AgentSpec(prompt="two", history=first.messages))[1])
    assert [(m["role"], m["content"]) for m in sent(model_server, 1)["messages"]] == [
        ("user", "one"),
        ("assistant", "one"),
        ("user", "two"),
    ]
    assert [m["content"] for m in second.messages] == ["one", "one", "two", "two"]


def test_a_history_with_tool_rounds_is_sent_as_it_was(model_server: ModelServer) -> None:
    model_server.play(
        Rule(turns=(Reply(text="look", calls=(ToolUse("look", {"at": 1}, id="c1"),)), says("ok"))),
    )
    first = output_of(ask(model_server, AgentSpec(prompt="one", tools=(TOOL,)), looking())[1])
    ask(model_server, AgentSpec(prompt="two", history=first.messages))
    before = sent(model_server, 1)["messages"]
    assert sent(model_server, 2)["messages"][: len(before)] == before


def test_a_schema_binds_the_answer_and_a_wrong_one_goes_back_to_the_model(model_server: ModelServer) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1}},
        "required": ["n"],
        "additionalProperties": False,
    }
    model_server.play(
        Rule(turns=(gives({"n": 3}),), prompt="validation_errors"), Rule(turns=(gives({"n": 0}),))
    )
    actor, outcome = ask(model_server, AgentSpec(prompt="count", output_schema=schema))
    assert output_of(outcome).output == {"n": 3}
    assert sent(model_server)["response_format"]["type"] == "json_schema"
    assert "minimum" in str(sent(model_server, 1)["messages"][-1])
    assert output_of(outcome).turns == 0
    assert actor.steps() == ["model-1", "model-2"]


def test_an_answer_that_never_fits_its_schema_fails_the_run(model_server: ModelServer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    model_server.play(Rule(turns=(says("no JSON at all"),)))
    _, outcome = ask(model_server, AgentSpec(prompt="count", output_schema=schema))
    assert outcome.error is not None
    assert outcome.error.type == "ModelError"


def test_a_schema_that_is_none_is_told_before_any_call(model_server: ModelServer) -> None:
    spec = AgentSpec(
        prompt="p", output_schema={"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}
    )
    _, outcome = ask(model_server, spec)
    assert outcome.error is not None
    assert outcome.error.type == "InvalidOutputSchema"
    assert model_server.journal.exchanges == []


def looking(result: Any = "seen") -> Tools:
    def look(**_: Any) -> Any:
        return result

    return Tools({"look": look}, result_bytes_max=200)


def test_the_run_ends_at_its_rounds_of_tools_without_one_more_call(model_server: ModelServer) -> None:
    model_server.play(endless_tool_loop("look", {"at": "x"}))
    actor, outcome = ask(model_server, AgentSpec(prompt="go", tools=(TOOL,), max_turns=2), looking())
    output = output_of(outcome)
    assert (output.stop_reason, output.turns) == ("max_turns", 2)
    assert len(model_server.journal.exchanges) == 2
    assert actor.logged("max_turns_reached") == [{"turns": 2}]
    assert [m["role"] for m in output.messages] == ["user", "assistant", "tool", "assistant", "tool"]


def test_tables_are_told_as_tsv_when_asked_for(model_server: ModelServer) -> None:
    rows = [{"id": 1, "name": "a\tb"}, {"id": 2, "name": None}]
    model_server.play(Rule(turns=(Reply(calls=(ToolUse("look", {}),)), says("{results}"))))
    spec = AgentSpec(prompt="go", tools=(TOOL,), tsv_tool_results=True)
    assert output_of(ask(model_server, spec, looking(rows))[1]).output == "id\tname\n1\ta\\tb\n2\tnull"


def test_a_long_result_is_cut_and_says_so(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(Reply(calls=(ToolUse("look", {}),)), says("{results}"))))
    output = output_of(ask(model_server, AgentSpec(prompt="go", tools=(TOOL,)), looking("y" * 900))[1])
    assert output.output == "y" * 200 + "\n[cut: 200 of 900 bytes]"


def test_a_failing_an_unknown_and_a_garbled_call_are_told_to_the_model_and_recorded(
    model_server: ModelServer,
) -> None:
    calls = (ToolUse("look", {"x": 1}, id="bad"), ToolUse("nothing", {}, id="unknown"))
    model_server.play(Rule(turns=(Reply(calls=calls), says("{results}"))))
    failing = looking(ToolResult(content="it is closed", is_error=True))
    actor, outcome = ask(model_server, AgentSpec(prompt="go", tools=(TOOL,)), failing)
    answers = {e.step: e for e in actor.told(MessageRecorded) if e.role == "tool"}
    assert answers["tool-bad"].content == "it is closed"
    assert answers["tool-unknown"].name == "nothing"
    assert all(answer.is_error for answer in answers.values())
    assert "it is closed" in str(output_of(outcome).output)


def test_a_tool_that_takes_too_long_is_given_up_and_the_model_told(model_server: ModelServer) -> None:
    async def look() -> None:
        await asyncio.Event().wait()

    model_server.play(Rule(turns=(Reply(calls=(ToolUse("look", {}),)), says("{results}"))))
    slow = Tools({"look": look}, timeout_seconds=0.05)
    _, outcome = ask(model_server, AgentSpec(prompt="go", tools=(TOOL,)), slow)
    assert "took longer than its 0.05 s" in str(output_of(outcome).output)


def test_repeated_call_ids_get_steps_of_their_own(model_server: ModelServer) -> None:
    same = Reply(calls=(ToolUse("look", {"n": 1}, id="call_0"),))
    model_server.play(Rule(turns=(same, same, says("done"))))
    actor, outcome = ask(model_server, AgentSpec(prompt="go", tools=(TOOL,)), looking())
    assert output_of(outcome).turns == 2
    assert [step for step in actor.steps() if step.startswith("tool")] == ["tool-call_0", "tool-call_0__2"]


def test_thinking_is_logged_and_kept_with_the_answer(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("42", thinking="hm, six times nine"),)))
    actor, outcome = ask(model_server, AgentSpec(prompt="?"))
    assert output_of(outcome).output == "42"
    assert actor.logged("thinking") == [{"text": "hm, six times nine"}]
    [answer] = actor.told(MessageRecorded)
    assert answer.content == "42"
    assert answer.raw["parts"][0]["part_kind"] == "thinking"


def test_a_judge_refuses_the_prompt_before_the_conversation(model_server: ModelServer) -> None:
    rule = Guardrail(name="polite", stage="input", rule="model", instructions="Be polite.")
    model_server.play(
        Rule(turns=(gives({"allowed": False, "reason": "It is rude."}),), system="Be polite."),
        Rule(turns=(says("hello"),)),
    )
    actor, outcome = ask(model_server, AgentSpec(prompt="oi", guardrails=(rule,)))
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == (
        "GuardrailViolation",
        "Guardrail 'polite': It is rude.",
    )
    assert actor.steps() == ["guardrail-polite"]
    assert actor.told(StepStarted)[0].purpose == "guardrail"


def test_output_rules_inform_and_do_not_fail_the_run(model_server: ModelServer) -> None:
    rules = (
        Guardrail(name="short", stage="output", rule="length", max_chars=3),
        Guardrail(name="kind", stage="both", rule="model", instructions="Be kind."),
    )
    model_server.play(
        Rule(turns=(gives({"allowed": True, "reason": ""}),), prompt="oi", system="Be kind."),
        Rule(turns=(gives({"allowed": False, "reason": "Unkind."}),), prompt="hello", system="Be kind."),
        Rule(turns=(says("hello"),)),
    )
    actor, outcome = ask(model_server, AgentSpec(prompt="oi", guardrails=rules))
    violations = output_of(outcome).violations
    assert [text.partition(":")[0] for text in violations] == ["Guardrail 'short'", "Guardrail 'kind'"]
    assert actor.logged("output_guardrail_violation") == [{"violations": violations}]
    assert actor.steps() == ["guardrail-kind", "model-1", "guardrail-kind-output"]


def test_memories_are_found_after_the_answer_bounded_and_new(model_server: ModelServer) -> None:
    found = {"memories": ["likes tea", "has a dog", "has a dog", "x" * 900, *map(str, range(20))]}
    model_server.play(
        Rule(turns=(gives(found),), system="worth remembering"),
        Rule(turns=(says("hello"),)),
    )
    spec = AgentSpec(prompt="I have a dog", memories=("likes tea",), auto_memory=True)
    actor, outcome = ask(model_server, spec)
    memories = output_of(outcome).memories
    assert memories[:2] == ("has a dog", "x" * 500)
    assert len(memories) == 10
    assert actor.steps() == ["model-1", "memory-1"]


def test_memories_that_cannot_be_had_do_not_fail_the_run(model_server: ModelServer) -> None:
    model_server.play(
        Rule(turns=(says("not JSON"),), system="worth remembering"), Rule(turns=(says("hello"),))
    )
    actor, outcome = ask(model_server, AgentSpec(prompt="hi", auto_memory=True))
    assert output_of(outcome).memories == ()
    assert [event.event for event in actor.told(NodeLogged)] == ["memories_failed"]
