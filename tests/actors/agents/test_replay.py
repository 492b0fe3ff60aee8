"""Killed at every step boundary, a run goes on behind its records: each answered call is made once."""

from __future__ import annotations

from typing import Any

import pytest

from actors.agents.home import AgentSettings
from runtime.agent_spec import AgentOutput, AgentSpec, PythonTool
from runtime.events import MessageRecorded, StepStarted
from tests.actors.agents.loop_household import Home, Tools, output_of, run, run_until_killed
from tests.model_server.script import Reply, Rule, ToolUse, says
from tests.model_server.server import ModelServer

TOOL = PythonTool(function="tests:unused", name="add")


def settings_for(server: ModelServer, **options: Any) -> AgentSettings:
    return AgentSettings(model="test-model", model_url=server.url, **options)


def test_a_text_answer_is_recorded_told_and_returned(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("Hello there, you.", deltas=3),)))
    actor, outcome = run(AgentSpec(prompt="hi"), settings_for(model_server))
    output = output_of(outcome)
    assert output.output == "Hello there, you."
    assert output.messages == (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello there, you."},
    )
    assert (output.turns, output.stop_reason, output.model) == (0, "completed", "test-model")
    assert actor.steps() == ["model-1"]
    assert "".join(text for _, _, text in actor.deltas) == "Hello there, you."
    assert next(offset for _, offset, _ in actor.deltas) == 0
    assert actor.state.model_calls == 1
    assert actor.state.input_tokens > 0


def test_tool_calls_of_one_answer_are_all_recorded_before_the_next_model_call(
    model_server: ModelServer,
) -> None:
    model_server.play(two_sums())
    tools = Tools({"add": add})
    actor, outcome = run(AgentSpec(prompt="sum", tools=(TOOL,)), settings_for(model_server), tools)
    output = output_of(outcome)
    assert output.output == "3\n7"
    assert output.turns == 1
    assert actor.steps() == ["model-1", "tool-one", "tool-two", "model-2"]
    assert [call[2] for call in tools.calls if call[0] == "add"] == [
        "exec-1:agent:tool-one",
        "exec-1:agent:tool-two",
    ]
    kinds = [type(event).__name__ for event in actor.events]
    assert kinds.index("StepStarted", kinds.index("MessageRecorded")) < len(kinds)
    last_tool = max(
        n for n, e in enumerate(actor.events) if isinstance(e, MessageRecorded) and e.role == "tool"
    )
    second = next(n for n, e in enumerate(actor.events) if isinstance(e, StepStarted) and e.step == "model-2")
    assert last_tool < second


def two_sums() -> Rule:
    both = Reply(
        text="Let me see.",
        calls=(ToolUse("add", {"a": 1, "b": 2}, id="one"), ToolUse("add", {"a": 3, "b": 4}, id="two")),
    )
    return Rule(turns=(both, says("{results}")))


def test_killed_at_every_event_each_answered_call_is_made_once(model_server: ModelServer) -> None:
    """Every prefix of the log is a crash; the rest of the run must not ask again for what stands in it."""
    spec = AgentSpec(prompt="sum", tools=(TOOL,))
    model_server.play(two_sums())
    whole = run_until_killed(spec, settings_for(model_server), Tools({"add": add}), (), 1_000, Home())
    assert whole[1] is not None
    expected = output_of(whole[1])
    for cut in range(4, len(whole[0]) + 1):
        model_server.journal.clear()
        home = Home()
        tools = Tools({"add": add})
        history, outcome = run_until_killed(spec, settings_for(model_server), tools, (), cut, home)
        if outcome is None:
            history, outcome = run_until_killed(spec, settings_for(model_server), tools, history, 1_000, home)
        assert outcome is not None
        assert output_of(outcome) == expected
        recorded = [event.step for event in history if isinstance(event, MessageRecorded)]
        assert sorted(recorded) == ["model-1", "model-2", "tool-one", "tool-two"]
        assert called_after_answer(history, model_server) == []


def add(a: int, b: int) -> int:
    return a + b


def long_result(a: int, b: int) -> str:
    return "x" * 20_000


def called_after_answer(history: list[Any], server: ModelServer) -> list[str]:
    """Keys asked for more often than the log knows of tries: calls made for an answer that stood there."""
    tries: dict[str, int] = {}
    for event in history:
        if isinstance(event, StepStarted) and event.kind == "model":
            tries[f"exec-1:agent:{event.step}"] = 1
        elif type(event).__name__ == "StepRetried" and event.step.startswith("model"):
            tries[f"exec-1:agent:{event.step}"] += 1
    asked: dict[str, int] = {}
    for exchange in server.journal.exchanges:
        asked[exchange.idempotency_key] = asked.get(exchange.idempotency_key, 0) + 1
    return [key for key, count in asked.items() if count > tries[key]]


def test_a_finished_log_is_replayed_without_any_call(model_server: ModelServer) -> None:
    spec = AgentSpec(prompt="sum", tools=(TOOL,))
    model_server.play(two_sums())
    history, first = run_until_killed(
        spec, settings_for(model_server), Tools({"add": add}), (), 1_000, Home()
    )
    model_server.journal.clear()
    tools = Tools({"add": add})
    again, second = run_until_killed(spec, settings_for(model_server), tools, history, 1_000, Home())
    assert first is not None
    assert second is not None
    assert output_of(first) == output_of(second)
    assert again == history
    assert [name for name, _, _ in tools.calls if name == "add"] == []
    assert model_server.journal.exchanges == []


def test_large_answers_stand_in_the_blob_store_and_are_read_back(model_server: ModelServer) -> None:
    long = "word " * 4_000
    model_server.play(Rule(turns=(Reply(text=long, calls=(ToolUse("add", {"a": 1, "b": 2}),)), says("done"))))
    spec = AgentSpec(prompt="p", tools=(TOOL,))
    home = Home()
    tools = Tools({"add": long_result})
    history, outcome = run_until_killed(spec, settings_for(model_server), tools, (), 1_000, home)
    assert outcome is not None
    assert outcome.output_ref is not None
    again = run_until_killed(spec, settings_for(model_server), tools, history, 1_000, home)[1]
    assert again is not None
    assert again.output_ref == outcome.output_ref
    recorded = [e for e in history if isinstance(e, MessageRecorded) and e.content_ref is not None]
    assert [event.role for event in recorded] == ["assistant", "tool"]


@pytest.mark.parametrize("name", ["", "offline"])
def test_the_offline_model_says_so_in_every_answer(name: str) -> None:
    actor, outcome = run(AgentSpec(prompt="hi", model=name), AgentSettings(model="offline"))
    output: AgentOutput = output_of(outcome)
    assert output.model == "offline"
    assert str(output.output).startswith("[offline model] ")
    assert actor.state.cost == 0
    assert actor.state.cost_known


def test_an_answer_with_thinking_is_replayed_whole(model_server: ModelServer) -> None:
    first_answer = Reply(text="Well.", thinking="hm", calls=(ToolUse("add", {"a": 1, "b": 1}, id="one"),))
    model_server.play(Rule(turns=(first_answer, says("{results}"))))
    spec, home = AgentSpec(prompt="sum", tools=(TOOL,)), Home()
    tools = Tools({"add": add})
    whole, first = run_until_killed(spec, settings_for(model_server), tools, (), 1_000, home)
    requests = [exchange.body["messages"] for exchange in model_server.journal.exchanges]
    answered = next(n for n, event in enumerate(whole) if isinstance(event, MessageRecorded))
    model_server.journal.clear()
    _, second = run_until_killed(spec, settings_for(model_server), tools, whole[: answered + 2], 1_000, home)
    assert first is not None
    assert second is not None
    assert output_of(second) == output_of(first)
    assert [exchange.body["messages"] for exchange in model_server.journal.exchanges] == requests[1:]


def test_the_offline_model_uses_tools_and_answers_by_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    def look() -> str:
        return "seen"

    tools = Tools({"look": look})
    spec = AgentSpec(
        prompt="hi", tools=(TOOL,), output_schema=schema, reasoning_effort="high", temperature=1.0
    )
    _, outcome = run(spec, AgentSettings(model="offline"), tools)
    output = output_of(outcome)
    assert list(output.output) == ["n"]
    assert output.turns == 1
    assert [name for name, _, _ in tools.calls if name == "look"] == ["look"]


def test_another_request_than_the_recorded_one_still_takes_its_answer(
    model_server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an update of the program: what was paid for counts, and the log says that it differs."""
    model_server.play(two_sums())
    settings, home = settings_for(model_server), Home()
    spec = AgentSpec(prompt="sum", tools=(TOOL,))
    history, first = run_until_killed(spec, settings, Tools({"add": add}), (), 1_000, home)
    model_server.journal.clear()
    changed = AgentSpec(prompt="sum", tools=(TOOL,), system="Now with a system prompt.")
    _, second = run_until_killed(changed, settings, Tools({"add": add}), history, 1_000, home)
    assert first is not None
    assert second is not None
    assert output_of(second).output == output_of(first).output
    assert model_server.journal.exchanges == []
    assert capsys.readouterr().out.count("differs from the recorded one") == 1
