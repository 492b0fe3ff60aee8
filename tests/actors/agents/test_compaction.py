"""A conversation that outgrows its model: what stays, what goes, and that calls keep their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart

from actors.agents.compaction import Cut, cuts, size_of
from actors.agents.home import AgentSettings
from actors.agents.messages import history_of, messages_of
from runtime.agent_spec import AgentSpec, PythonTool
from runtime.events import MessageRecorded
from tests.actors.agents.loop_household import Home, Tools, output_of, run, run_until_killed
from tests.model_server.script import Reply, Rule, ToolUse, says
from tests.model_server.server import ModelServer


def conversation(turns: list[list[int]]) -> list[dict[str, Any]]:
    """For each turn its rounds of tools, each of so many calls; then an answer."""
    messages: list[dict[str, Any]] = []
    for turn, rounds in enumerate(turns):
        messages.append({"role": "user", "content": f"prompt {turn}"})
        for number, calls in enumerate(rounds):
            ids = [f"c{turn}-{number}-{call}" for call in range(calls)]
            asked: list[dict[str, Any]] = [
                {"tool_call_id": each, "name": "t", "arguments": {}} for each in ids
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": asked})
            messages += [{"role": "tool", "tool_call_id": each, "name": "t", "content": "r"} for each in ids]
        messages.append({"role": "assistant", "content": f"answer {turn}"})
    return messages


CONVERSATIONS = st.lists(
    st.lists(st.integers(min_value=1, max_value=3), max_size=4), min_size=1, max_size=6
).map(conversation)


@given(CONVERSATIONS)
def test_no_cut_parts_a_call_from_its_result(messages: list[dict[str, Any]]) -> None:
    history = history_of(messages)[:-1]  # the last answer is still to come
    for cut in cuts(history):
        kept = cut.of(history)
        called = {
            part.tool_call_id
            for message in kept
            if isinstance(message, ModelResponse)
            for part in message.parts
            if isinstance(part, ToolCallPart)
        }
        answered = {
            part.tool_call_id
            for message in kept
            if isinstance(message, ModelRequest)
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        }
        assert called == answered
        first = kept[0]
        assert isinstance(first, ModelRequest)
        assert any(isinstance(part, UserPromptPart) for part in first.parts)
        assert messages_of(kept)[0]["role"] == "user"
        last_prompt = [m["content"] for m in messages if m["role"] == "user"][-1]
        assert last_prompt in [m["content"] for m in messages_of(kept)]


@given(CONVERSATIONS)
def test_cuts_go_from_the_smallest_loss_to_the_greatest(messages: list[dict[str, Any]]) -> None:
    history = history_of(messages)
    sizes = [size_of(cut.of(history)) for cut in cuts(history)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size < size_of(history) for size in sizes)


@given(CONVERSATIONS)
def test_a_history_comes_back_as_it_was(messages: list[dict[str, Any]]) -> None:
    assert messages_of(history_of(messages)) == messages


def test_a_cut_keeps_no_result_whose_call_is_gone() -> None:
    messages = [
        *conversation([[1]])[:-1],  # ended by max_turns: the results are the last
        {"role": "user", "content": "go on"},
    ]
    history = history_of(messages)
    assert messages_of(Cut(2, 3).of(history)) == [{"role": "user", "content": "go on"}]


def small_context(folder: Path, server: ModelServer, tokens: int) -> AgentSettings:
    table = folder / "models.yaml"
    table.write_text(f"test-model: {{context_tokens: {tokens}}}\n")
    return AgentSettings(model="test-model", model_url=server.url, models_file=str(table))


def long_history(turns: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        message
        for n in range(turns)
        for message in (
            {"role": "user", "content": f"question {n} " + "x" * 400},
            {"role": "assistant", "content": f"answer {n} " + "y" * 400},
        )
    )


def test_the_oldest_turns_are_dropped_and_that_is_told(model_server: ModelServer, tmp_path: Path) -> None:
    spec = AgentSpec(prompt="now", history=long_history(10))
    actor, outcome = run(spec, small_context(tmp_path, model_server, 1_000), home=Home())
    sent = model_server.journal.exchanges[0].body["messages"]
    assert sent[-1]["content"] == "now"
    assert sent[0]["content"].startswith("question ")
    assert 1 < len(sent) < 21
    assert actor.logged("history_trimmed") == [{"dropped": 21 - len(sent)}]
    assert outcome.output_ref is not None or len(output_of(outcome).messages) == len(sent) + 1


def test_a_history_that_grew_too_long_is_summed_up_once_and_handed_on_so(
    model_server: ModelServer, tmp_path: Path
) -> None:
    model_server.play(
        Rule(turns=(says("They asked ten questions."),), system="Sum up the conversation"),
        Rule(turns=(says("fine"),)),
    )
    settings = small_context(tmp_path, model_server, 1_000)
    spec = AgentSpec(prompt="now", history=long_history(10), compaction="summarise")
    actor, outcome = run(spec, settings)
    asked, answered = model_server.journal.exchanges
    assert "question 0" in asked.body["messages"][-1]["content"] or "[...]" in str(asked.body["messages"])
    assert "They asked ten questions." in str(answered.body["messages"])
    assert actor.steps() == ["compaction-1", "model-1"]
    assert len(actor.logged("compaction_start")) == len(actor.logged("compaction_complete")) == 1
    output = output_of(outcome)
    assert "They asked ten questions." in output.messages[0]["content"]
    assert output.messages[-2:] == (
        {"role": "user", "content": "now"},
        {"role": "assistant", "content": "fine"},
    )
    again, _ = run(AgentSpec(prompt="more", history=output.messages, compaction="summarise"), settings)
    assert again.steps() == ["model-1"]


def test_within_a_turn_the_oldest_rounds_go_and_the_prompt_stays(
    model_server: ModelServer, tmp_path: Path
) -> None:
    rounds = tuple(Reply(calls=(ToolUse("look", {"n": n}, id=f"c{n}"),)) for n in range(6))
    model_server.play(Rule(turns=(*rounds, says("done")), anywhere="the task"))

    def look(n: int) -> str:
        return "z" * 600

    tools = Tools({"look": look})
    spec = AgentSpec(prompt="the task", tools=(PythonTool(function="m:f", name="look"),), max_turns=4)
    run(spec, small_context(tmp_path, model_server, 600), tools)
    last = model_server.journal.exchanges[-1].body["messages"]
    assert last[0]["content"] == "the task"
    assert len(last) < 9
    calls = {call["id"] for m in last for call in m.get("tool_calls") or ()}
    assert calls == {m["tool_call_id"] for m in last if m["role"] == "tool"}


def test_killed_at_every_event_a_summary_is_paid_for_once(model_server: ModelServer, tmp_path: Path) -> None:
    model_server.play(
        Rule(turns=(says("Summary."),), system="Sum up the conversation"), Rule(turns=(says("fine"),))
    )
    settings = small_context(tmp_path, model_server, 1_000)
    spec = AgentSpec(prompt="now", history=long_history(6), compaction="summarise", auto_memory=False)
    whole, outcome = run_until_killed(spec, settings, None, (), 1_000, Home())
    assert outcome is not None
    expected = output_of(outcome)
    for cut in range(4, len(whole) + 1):
        history, outcome = run_until_killed(spec, settings, None, (), cut, Home())
        model_server.journal.clear()
        answered = [event.step for event in history if isinstance(event, MessageRecorded)]
        if outcome is None:
            _, outcome = run_until_killed(spec, settings, None, history, 1_000, Home())
        assert outcome is not None
        assert output_of(outcome) == expected
        asked = {each.idempotency_key.rpartition(":")[2] for each in model_server.journal.exchanges}
        assert asked.isdisjoint(answered)
