"""What a model's faults become: recorded retries while they may pass, one error when they don't."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from actors.agents import recorded_model
from actors.agents.home import AgentSettings
from actors.agents.service import AgentService
from actors.step_journal import StepJournal
from runtime.agent_spec import AgentSpec, PythonTool
from runtime.events import MessageRecorded, StepRetried
from runtime.plan import CallTool, RunAgent
from tests.actors.agents.loop_household import NODE, Actor, Home, Tools, output_of, run
from tests.model_server.script import Fault, Rule, ToolUse, fails, says
from tests.model_server.server import ModelServer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_model, "BACKOFF_SECONDS", 0.001)


def ask(server: ModelServer, **options: Any) -> tuple[Actor, Any]:
    return run(AgentSpec(prompt="hi"), AgentSettings(model="test-model", model_url=server.url), **options)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_retried_and_the_retry_recorded(model_server: ModelServer, status: int) -> None:
    model_server.play(Rule(turns=(fails(status, times=2, then=says("at last")),)))
    actor, outcome = ask(model_server)
    assert output_of(outcome).output == "at last"
    retries = actor.told(StepRetried)
    assert [retry.tries for retry in retries] == [1, 2]
    assert all(retry.error.message.endswith(f"(HTTP {status})") for retry in retries)
    assert len(model_server.journal.exchanges) == 3
    assert {each.idempotency_key for each in model_server.journal.exchanges} == {"exec-1:agent:model-1"}


def test_retry_after_says_when_up_to_a_bound(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(fails(429, then=says("ok"), retry_after=0.0),)))
    actor, _ = ask(model_server)
    [retry] = actor.told(StepRetried)
    assert retry.retry_at - retry.at <= 2_000  # at once; the test's clock moves a millisecond a look
    assert retry.error.type == "RateLimited"


def test_a_stream_cut_in_the_middle_is_begun_again_at_offset_0(model_server: ModelServer) -> None:
    whole = says("one two three four", deltas=4)
    model_server.play(Rule(turns=((says("one two three four", deltas=4, cut_after=2), whole),)))
    actor, outcome = ask(model_server)
    assert output_of(outcome).output == "one two three four"
    [retry] = actor.told(StepRetried)
    assert retry.error.type == "ModelConnectionError"
    starts = [index for index, (_, offset, _) in enumerate(actor.deltas) if offset == 0]
    assert len(starts) == 2
    assert "".join(text for _, _, text in actor.deltas[starts[1] :]) == "one two three four"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "ModelAuthenticationError"), (403, "ModelAuthenticationError"), (400, "ModelHTTPError")],
)
def test_a_refusal_is_final(model_server: ModelServer, status: int, kind: str) -> None:
    model_server.play(Rule(turns=(Fault(status=status, message="no way"),)))
    actor, outcome = ask(model_server)
    assert outcome.error.type == kind
    assert outcome.error.message == f"test-model: no way (HTTP {status})"
    assert actor.told(StepRetried) == []
    assert len(model_server.journal.exchanges) == 1


def test_a_fault_that_stays_is_the_run_s_after_five_tries(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(Fault(status=429, message="slow down"),)))
    actor, outcome = ask(model_server)
    assert outcome.error.type == "RateLimited"
    assert outcome.error.message == "test-model: slow down (HTTP 429)"
    assert len(model_server.journal.exchanges) == 5
    assert len(actor.told(StepRetried)) == 4


def test_an_endpoint_that_is_not_there_is_a_connection_error() -> None:
    _, outcome = run(
        AgentSpec(prompt="hi"), AgentSettings(model="test-model", model_url="http://127.0.0.1:9/v1")
    )
    assert outcome.error is not None
    assert outcome.error.type == "ModelConnectionError"


def test_the_key_of_the_endpoint_is_cut_out_of_errors(
    model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOGRAPH_MODEL_KEY", "sk-very-secret")
    model_server.play(Rule(turns=(Fault(status=401, message="wrong key sk-very-secret"),)))
    _, outcome = ask(model_server)
    assert "sk-very-secret" not in outcome.error.message
    assert model_server.journal.exchanges[0].headers["authorization"] == "Bearer sk-very-secret"


def test_a_run_over_its_time_ends_with_a_time_out(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("never", hang="gate"),)))
    _, outcome = ask(model_server, timeout_seconds=0.3)
    assert outcome.error.type == "TimeoutError"
    assert outcome.error.message == "the attempt took longer than its 0.3 s"


def test_cancellation_leaves_the_run_and_records_no_answer(model_server: ModelServer) -> None:
    model_server.play(Rule(turns=(says("never", hang="gate"),)))

    async def body() -> Actor:
        actor = Actor()
        settings = AgentSettings(model="test-model", model_url=model_server.url)
        service = AgentService(Home(), settings)
        task = asyncio.create_task(
            service.run(RunAgent(AgentSpec(prompt="hi")), StepJournal(actor, NODE, 1), None)
        )
        await asyncio.to_thread(model_server.journal.until_hanging, "gate")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.close()
        return actor

    assert asyncio.run(body()).told(MessageRecorded) == []


def test_calls_in_flight_are_bounded(model_server: ModelServer) -> None:
    """Of three runs two are in flight; the third is asked for once one of them has its answer."""
    model_server.play(Rule(turns=(says("ok", hang="gate"),)))

    async def body() -> list[Any]:
        settings = AgentSettings(model="test-model", model_url=model_server.url, model_calls_max=2)
        service = AgentService(Home(), settings)
        runs = [
            asyncio.create_task(
                service.run(RunAgent(AgentSpec(prompt=f"p{n}")), StepJournal(Actor(), NODE, 1), 60.0)
            )
            for n in range(3)
        ]
        await asyncio.to_thread(model_server.journal.until_hanging, "gate", 2)
        assert len(model_server.journal.exchanges) == 2
        model_server.release("gate")
        outcomes = await asyncio.gather(*runs)
        await service.close()
        return outcomes

    assert [output_of(outcome).output for outcome in asyncio.run(body())] == ["ok"] * 3


@pytest.mark.parametrize("name", ["", "gpt-4o", "openai:gpt-4o"])
def test_without_an_endpoint_the_run_fails_saying_what_to_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HELIOGRAPH_MODEL_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    _, outcome = run(AgentSpec(prompt="hi", model=name), AgentSettings())
    assert outcome.error is not None
    assert outcome.error.type == "ModelNotConfigured"
    assert "HELIOGRAPH_MODEL" in outcome.error.message


def test_a_provider_whose_library_is_missing_is_named() -> None:
    _, outcome = run(AgentSpec(prompt="hi", model="mistral:large"), AgentSettings())
    assert outcome.error is not None
    assert outcome.error.type == "ModelNotConfigured"
    assert "pydantic-ai-slim[mistral]" in outcome.error.message


def test_a_history_that_is_none_fails_the_run(model_server: ModelServer) -> None:
    spec = AgentSpec(prompt="hi", history=({"role": "stranger", "content": "x"},))
    _, outcome = run(spec, AgentSettings(model="m", model_url=model_server.url))
    assert outcome.error is not None
    assert "stranger" in outcome.error.message


def test_a_tool_node_s_call_is_made_once_and_its_error_fails_the_node() -> None:
    def double(n: int) -> int:
        return 2 * n

    async def body(actor: Actor, tools: Tools) -> Any:
        service = AgentService(Home(), AgentSettings(), tools)
        action = CallTool(tool=PythonTool(function="m:f", name="double"), name="double", arguments={"n": 4})
        outcome = await service.run(action, StepJournal(actor, NODE, 1), 10.0)
        await service.close()
        return outcome

    actor, tools = Actor(), Tools({"double": double})
    assert asyncio.run(body(actor, tools)).output == 8
    assert asyncio.run(body(Actor(actor.events), tools)).output == 8
    assert [name for name, _, _ in tools.calls if name == "double"] == ["double"]


def test_a_cancelled_run_asks_nothing_more_of_the_model_though_its_tool_ignores_the_cancellation(
    model_server: ModelServer,
) -> None:
    model_server.play(Rule(turns=(says("", calls=(ToolUse("dawdle", {}, id="one"),)), says("never asked"))))

    async def story() -> None:
        begun = asyncio.Event()

        async def dawdle() -> str:
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return "all the same"

        settings = AgentSettings(model="test-model", model_url=model_server.url)
        service = AgentService(Home(), settings, Tools({"dawdle": dawdle}))
        action = RunAgent(AgentSpec(prompt="hi", tools=(PythonTool(function="m:dawdle"),)))
        running = asyncio.create_task(service.run(action, StepJournal(Actor(), NODE, 1), 60.0))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await service.close()

    asyncio.run(story())
    assert len(model_server.journal.exchanges) == 1
