"""The model server speaks the protocol: the official client understands every answer it can give."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.model_server import (
    Answer,
    Asked,
    Fault,
    ModelServer,
    ModelServerProcess,
    Reply,
    Rule,
    ToolUse,
    calls,
    endless_tool_loop,
    fails,
    gives,
    says,
    slowly,
    tool_loop,
)
from tests.sandbox import Sandbox

ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


@pytest.fixture
def client(model_server: ModelServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=model_server.url, api_key="sk-test", max_retries=0, timeout=30) as opened:
        yield opened


def ask(client: openai.OpenAI, *contents: str, **options: Any) -> Any:
    """One request; roles take turns, the last is the user's."""
    roles = ["user", "assistant"]
    messages: Any = [
        {"role": roles[(len(contents) - 1 - place) % 2], "content": content}
        for place, content in enumerate(contents)
    ]
    given: dict[str, Any] = {"model": "scripted", "messages": messages, **options}
    return cast("Any", client.chat.completions).create(**given)


def stream(client: openai.OpenAI, prompt: str, **options: Any) -> list[ChatCompletionChunk]:
    with ask(client, prompt, stream=True, stream_options={"include_usage": True}, **options) as chunks:
        return list(chunks)


def joined(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# --- answers --------------------------------------------------------------------------------------------


def test_without_a_script_it_returns_the_prompt_it_was_sent(client: openai.OpenAI) -> None:
    assert ask(client, "Hello there").choices[0].message.content == "Hello there"


def test_a_streamed_text_is_the_same_as_the_whole_one(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(Rule(turns=(says("one two  three\n four"),)))
    chunks = stream(client, "count")
    assert joined(chunks) == ask(client, "count").choices[0].message.content == "one two  three\n four"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_a_text_is_cut_into_as_many_deltas_as_the_script_says(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(slowly("x" * 53, deltas=20, seconds=0.1))
    pieces = [c.choices[0].delta.content for c in stream(client, "go") if c.choices]
    assert len([piece for piece in pieces if piece]) == 20


def test_usage_is_told_with_a_stream_only_to_who_asks(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(Rule(turns=(says("four words for you", cached_tokens=2),)))
    last = stream(client, "three words please")[-1]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (3, 4, 7)
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 2
    with ask(client, "three words please", stream=True) as chunks:
        assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert ask(client, "three words please").usage.total_tokens == 7


def test_usage_can_be_given_by_the_script(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("x", input_tokens=1000, output_tokens=50),)))
    usage = ask(client, "y").usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1000, 50, 1050)


def test_tool_calls_arrive_in_pieces_that_join_to_their_arguments(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(
        Rule(
            turns=(
                Reply(text="Two sums.", calls=(ToolUse("add", {"a": 1, "b": 2}), ToolUse("add", {"a": 3}))),
            )
        )
    )
    chunks = stream(client, "add", tools=[ADD])
    parts = [part for c in chunks if c.choices for part in c.choices[0].delta.tool_calls or []]
    arguments = {0: "", 1: ""}
    for part in parts:
        assert part.function is not None
        arguments[part.index] += part.function.arguments or ""
    assert arguments == {0: '{"a":1,"b":2}', 1: '{"a":3}'}
    assert len(parts) > 4
    ids = [part.id for part in parts if part.id]
    assert len(set(ids)) == 2
    assert model_server.journal.exchanges[0].tool_calls == ids
    assert chunks[-2].choices[0].finish_reason == "tool_calls"


def test_thinking_comes_as_reasoning_content(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("42", thinking="Let me see."),)))
    message = ask(client, "6 x 7?").choices[0].message
    assert message.reasoning_content == "Let me see."
    deltas = [chunk.choices[0].delta for chunk in stream(client, "6 x 7?") if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Let me see."


def test_a_piece_carries_the_moment_of_its_sending(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("", pieces=("{sent_ns} ",) * 3, over_seconds=0.05),)))
    before = time.time_ns()
    stamps = [int(word) for word in joined(stream(client, "go")).split()]
    assert len(set(stamps)) == 3
    moments = [before, *stamps, time.time_ns()]
    assert moments == sorted(moments)


# --- rules ----------------------------------------------------------------------------------------------


def test_a_tool_loop_answers_by_what_the_conversation_holds(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(tool_loop("add", {"a": 1, "b": 2}, "The sum is {results}."))
    for _ in range(2):
        first = ask(client, "1 + 2?", tools=[ADD]).choices[0].message
        [call] = first.tool_calls
        assert (call.function.name, call.function.arguments) == ("add", '{"a":1,"b":2}')
        messages: list[Any] = [
            {"role": "user", "content": "1 + 2?"},
            first.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ]
        answer = client.chat.completions.create(model="scripted", messages=messages)
        assert answer.choices[0].message.content == "The sum is 3."


def test_turns_are_counted_from_the_last_prompt(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("first {turn}"), says("later {turn}"))))
    assert ask(client, "a").choices[0].message.content == "first 0"
    assert ask(client, "a", "b", "c").choices[0].message.content == "first 0"
    answered: list[Any] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ask(client, messages=answered).choices[0].message.content == "later 1"


def test_the_first_rule_that_fits_counts_and_none_is_a_400(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(
        Rule(model="judge", turns=(gives({"ok": False}),)),
        Rule(prompt="weather", turns=(says("rain"),)),
        Rule(system="pirate", turns=(says("Arr"),)),
        Rule(tool="add", turns=(calls("add"),)),
    )
    assert ask(client, "weather?", model="judge").choices[0].message.content == '{"ok":false}'
    assert ask(client, "the weather?").choices[0].message.content == "rain"
    assert ask(client, "hm", tools=[ADD]).choices[0].message.tool_calls[0].function.name == "add"
    pirate: list[Any] = [{"role": "system", "content": "a pirate"}, {"role": "user", "content": "hm"}]
    assert ask(client, messages=pirate).choices[0].message.content == "Arr"
    with pytest.raises(openai.BadRequestError, match="no rule"):
        ask(client, "hm")


def test_a_function_answers_from_the_request(client: openai.OpenAI, model_server: ModelServer) -> None:
    def backwards(asked: Asked) -> Answer | None:
        return says(asked.prompt[::-1]) if asked.model == "mirror" else None

    model_server.play(backwards, Rule(turns=(says("not mirrored"),)))
    assert ask(client, "abc", model="mirror").choices[0].message.content == "cba"
    assert ask(client, "abc").choices[0].message.content == "not mirrored"


# --- what goes wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_a_fault_is_the_error_its_status_means(
    client: openai.OpenAI, model_server: ModelServer, status: int, kind: type[openai.APIStatusError]
) -> None:
    model_server.play(Rule(turns=(Fault(status=status, message="no luck", retry_after=2),)))
    with pytest.raises(kind, match="no luck") as caught:
        ask(client, "go")
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "2"
    [exchange] = model_server.journal.until_settled()
    assert (exchange.outcome, exchange.status) == ("fault", status)


def test_it_fails_as_often_as_told_and_then_answers(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(fails(500, times=2, then=says("at last")),)))
    with client.with_options(max_retries=2) as patient:
        assert ask(patient, "go").choices[0].message.content == "at last"
    assert [e.outcome for e in model_server.journal.until_settled()] == ["fault", "fault", "answered"]
    assert [e.tries for e in model_server.journal.exchanges] == [0, 1, 2]


@pytest.mark.parametrize("cut_after", [0, 2])
def test_a_cut_stream_breaks_the_connection_after_its_last_piece(
    client: openai.OpenAI, model_server: ModelServer, cut_after: int
) -> None:
    model_server.play(Rule(turns=((says("one two three", cut_after=cut_after), says("whole")),)))
    got: list[ChatCompletionChunk] = []
    with (
        pytest.raises(openai.APIConnectionError),
        ask(client, "go", stream=True) as chunks,
    ):
        got.extend(chunks)
    assert joined(got) == "one two "[: cut_after * 4]
    assert joined(stream(client, "go")) == "whole"
    assert [e.outcome for e in model_server.journal.until_settled()] == ["cut", "answered"]


@pytest.mark.parametrize("hang_after", [0, 1])
def test_an_answer_hangs_until_it_is_released(
    client: openai.OpenAI, model_server: ModelServer, hang_after: int
) -> None:
    model_server.play(Rule(turns=(says("one two", hang="gate", hang_after=hang_after),)))
    answers: list[str] = []
    asking = Thread(target=lambda: answers.append(joined(stream(client, "go"))))
    asking.start()
    try:
        [waiting] = model_server.journal.until_hanging("gate")
        assert waiting.outcome == "open"
        assert answers == []
    finally:
        model_server.release("gate")
        asking.join()
    assert answers == ["one two"]
    model_server.journal.until_settled()  # whoever has the last piece may be ahead of the journal
    assert sum(model_server.journal.counted.values()) == 1


def test_an_answer_whose_client_left_is_not_counted(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("one two", hang="gate", hang_after=1),)))

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=model_server.url, api_key="k", max_retries=0) as client:
            asking = asyncio.ensure_future(
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "go"}], stream=True
                )
            )
            chunks = await asking
            await asyncio.to_thread(model_server.journal.until_hanging, "gate")
            await chunks.close()

    asyncio.run(leave())
    [exchange] = model_server.journal.until_settled()
    assert exchange.outcome == "dropped"
    assert model_server.journal.counted == {}


# --- the journal ----------------------------------------------------------------------------------------


def test_the_journal_holds_what_was_sent_and_counts_whole_answers_by_key(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    for key in ("a", "a", "b"):
        ask(client, "hello", extra_headers={"Idempotency-Key": key}, temperature=0.5)
    exchanges = model_server.journal.until_settled()
    assert model_server.journal.counted == {"a": 2, "b": 1}
    assert [each.tries for each in exchanges] == [0, 1, 0]
    assert exchanges[0].body["temperature"] == 0.5
    assert exchanges[0].headers["authorization"] == "Bearer sk-test"
    assert exchanges[0].text == "hello"


def test_it_names_its_models(client: openai.OpenAI, model_server: ModelServer) -> None:
    model_server.play(Rule(model="b", turns=(says(""),)), Rule(model="a", turns=(says(""),)))
    assert [model.id for model in client.models.list()] == ["a", "b"]


def test_as_a_process_it_reads_a_script_and_shows_its_journal(sandbox: Sandbox) -> None:
    folder = sandbox.root / "model-process"
    folder.mkdir()
    process = ModelServerProcess(folder, [Rule(turns=(fails(503, then=says("up {model}")),))])
    try:
        with openai.OpenAI(base_url=process.url, api_key="k", max_retries=1) as client:
            assert joined(stream(client, "go")) == "up scripted"
            process.play(Rule(turns=(says("other", hang="gate"),)))
            process.release("gate")
            assert joined(stream(client, "go")) == "other"
        assert [each.outcome for each in process.exchanges()] == ["fault", "answered", "answered"]
    finally:
        process.close()
        (folder / "model-script.json").unlink()
        folder.rmdir()


# --- with the model library -----------------------------------------------------------------------------


def output_of(server: ModelServer, prompt: str, *tools: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
            model = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))
            return (await Agent(model, tools=tools, **options).run(prompt)).output

    return asyncio.run(run())


def test_the_model_library_runs_a_tool_loop_against_it(model_server: ModelServer) -> None:
    model_server.play(tool_loop("add", {"a": 1, "b": 2}, "The sum is {results}."))

    def add(a: int, b: int) -> int:
        return a + b

    assert output_of(model_server, "1 + 2?", add) == "The sum is 3."
    assert len(model_server.journal.exchanges) == 2


class Verdict(BaseModel):
    ok: bool
    reason: str


def test_the_model_library_gets_structured_output_from_it(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(gives({"ok": False, "reason": "rude"}),)))
    verdict = output_of(model_server, "judge this", output_type=Verdict)
    assert verdict == Verdict(ok=False, reason="rude")


def test_an_endless_loop_goes_on_until_the_caller_ends_it(
    client: openai.OpenAI, model_server: ModelServer
) -> None:
    model_server.play(endless_tool_loop("add", {"a": 1}))
    messages: list[Any] = [{"role": "user", "content": "go"}]
    ids: set[str] = set()
    for _ in range(5):
        message = client.chat.completions.create(model="m", messages=messages).choices[0].message
        assert message.tool_calls
        call = message.tool_calls[0]
        ids.add(call.id)
        messages += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "1"},
        ]
    assert len(ids) == 5
