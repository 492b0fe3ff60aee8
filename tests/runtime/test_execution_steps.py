"""The calls of an agent node: each answer is recorded once, a call without one is made again, visibly."""

from typing import Any

import pytest

from runtime import commands, events
from runtime.commands import Command, Usage
from runtime.errors import Diverged
from runtime.events import Event, StepError, ToolCall
from runtime.evolution import evolve
from runtime.plan import RetryPolicy
from runtime.state import StepState
from tests.runtime.scenario import EXECUTION, Scenario, kinds, node, plan_of

CHAIN = plan_of({"a": (), "b": ("a",)}, retry={"a": RetryPolicy(attempts=2, jitter=0.0)})
LIMITED = StepError(type="RateLimited", message="slow down (HTTP 429)")


def begin(scenario: Scenario, step: str = "model-1", attempt: int = 1, **fields: Any) -> list[Event]:
    given = {"kind": "model", "name": "m", **fields}
    return scenario.when(commands.BeginStep, node_id=node("a"), attempt=attempt, step=step, **given)


def end(scenario: Scenario, step: str = "model-1", attempt: int = 1, **fields: Any) -> list[Event]:
    given = {"role": "assistant", "content": "hello", **fields}
    return scenario.when(commands.EndStep, node_id=node("a"), attempt=attempt, step=step, **given)


def retry(scenario: Scenario, step: str = "model-1", attempt: int = 1) -> list[Event]:
    at = scenario.now + 1_000_000
    return scenario.when(
        commands.RetryStep, node_id=node("a"), attempt=attempt, step=step, error=LIMITED, retry_at=at
    )


def steps(scenario: Scenario) -> dict[str, StepState]:
    return dict(scenario.node("a").steps)


def running() -> Scenario:
    return Scenario(CHAIN).started("a")


def test_a_call_is_recorded_before_it_is_made_and_its_answer_after() -> None:
    scenario = running()
    [started] = begin(scenario, request_hash="ab" * 32, request={"messages": 3}, purpose="compaction")
    assert isinstance(started, events.StepStarted)
    assert (started.step, started.kind, started.name, started.attempt) == ("model-1", "model", "m", 1)
    assert (started.request, started.purpose) == ({"messages": 3}, "compaction")
    assert steps(scenario)["model-1"].answer is None

    call = ToolCall(tool_call_id="c1", name="search", arguments={"q": 1})
    [answer] = end(scenario, tool_calls=(call,), raw={"parts": 1}, duration_ms=3.5)

    assert isinstance(answer, events.MessageRecorded)
    assert (answer.content, answer.tool_calls, answer.raw) == ("hello", (call,), {"parts": 1})
    assert answer.purpose == "compaction", "it is that of the call"
    assert steps(scenario)["model-1"].answer == answer


def test_the_events_of_a_call_name_the_start_of_the_attempt_as_their_cause() -> None:
    scenario = running()
    version = scenario.node("a").started_version
    told = [*begin(scenario), *retry(scenario), *end(scenario, usage=Usage(model="m"))]
    assert kinds(told) == ["step_started", "step_retried", "message_recorded", "usage_recorded"]
    assert {event.cause for event in told} == {f"v{version}"}


def test_an_answered_call_is_never_answered_or_made_again() -> None:
    scenario = running()
    begin(scenario)
    end(scenario, content="first", usage=Usage(model="m", input_tokens=5))
    assert begin(scenario) == []
    assert retry(scenario) == []
    assert end(scenario, content="second", usage=Usage(model="m", input_tokens=5)) == []
    answer = steps(scenario)["model-1"].answer
    assert answer is not None
    assert answer.content == "first"
    assert scenario.state.input_tokens == 5, "its usage counts once"


def test_a_call_whose_answer_a_crash_took_is_made_again_and_that_shows() -> None:
    scenario = running()
    begin(scenario)
    scenario.when(commands.TakeOver, owner="host-2")
    [retried] = begin(scenario)
    assert isinstance(retried, events.StepRetried)
    assert (retried.tries, retried.error.type, retried.retry_at) == (1, "Interrupted", scenario.now)
    assert steps(scenario)["model-1"].tries == 2


def test_tries_are_counted_through_failures_and_crashes() -> None:
    scenario = running()
    begin(scenario)
    told = [event for _ in range(3) for event in retry(scenario)] + begin(scenario)
    assert [event.tries for event in told if isinstance(event, events.StepRetried)] == [1, 2, 3, 4]
    assert steps(scenario)["model-1"].tries == 5
    assert isinstance(told[0], events.StepRetried)
    assert (told[0].error, told[0].retry_at) == (LIMITED, scenario.now + 1_000_000)


def test_what_was_never_begun_is_neither_retried_nor_answered() -> None:
    scenario = running()
    assert retry(scenario) == []
    assert end(scenario, usage=Usage(model="m", input_tokens=5)) == []
    assert scenario.state.model_calls == 0


def test_answers_outlive_the_attempt_that_asked_for_them() -> None:
    scenario = running()
    begin(scenario)
    end(scenario, content="paid for")
    begin(scenario, "tool-c1", kind="tool", name="search")
    scenario.when(commands.RecordFailed, node_id=node("a"), attempt=1, error=LIMITED, draw=0.5)
    scenario.after(60).started("a")
    assert scenario.node("a").attempt == 2
    assert begin(scenario, attempt=2) == []
    [retried] = begin(scenario, "tool-c1", attempt=2, kind="tool", name="search")
    assert isinstance(retried, events.StepRetried)


def test_a_completed_node_needs_its_calls_no_more() -> None:
    scenario = running()
    begin(scenario)
    end(scenario)
    scenario.when(commands.RecordCompleted, node_id=node("a"), attempt=1, output="done")
    assert steps(scenario) == {}
    assert begin(scenario, "model-2") == []
    assert end(scenario) == []


LATE: list[tuple[type[Command], dict[str, Any]]] = [
    (commands.BeginStep, {"step": "model-2", "kind": "model", "name": "m"}),
    (commands.RetryStep, {"step": "model-1", "error": LIMITED, "retry_at": 1}),
    (commands.EndStep, {"step": "model-1", "role": "assistant", "content": "late"}),
    (commands.LogNode, {"event": "late"}),
]


@pytest.mark.parametrize(("kind", "fields"), LATE)
@pytest.mark.parametrize("why", ["cancelled", "another attempt", "another node", "retrying"])
def test_a_call_of_work_that_was_given_up_records_nothing(
    why: str, kind: type[Command], fields: dict[str, Any]
) -> None:
    scenario = running()
    begin(scenario)
    target, attempt = node("a"), 1
    match why:
        case "cancelled":
            scenario.when(commands.RequestCancel)
        case "another attempt":
            attempt = 2
        case "another node":
            target = node("b")
        case _:
            scenario.when(commands.RecordFailed, node_id=target, attempt=1, error=LIMITED, draw=0.5)
    assert scenario.when(kind, node_id=target, attempt=attempt, **fields) == []


def test_usage_adds_up_over_calls_and_a_call_without_a_price_marks_the_cost() -> None:
    scenario = running()
    usage = Usage(
        model="m", input_tokens=3, output_tokens=4, cache_read_tokens=2, cache_write_tokens=1, cost=0.5,
        cost_known=True,
    )  # fmt: skip
    for number in (1, 2):
        begin(scenario, f"model-{number}")
        end(scenario, f"model-{number}", usage=usage)
    state = scenario.state
    assert (state.input_tokens, state.output_tokens, state.model_calls) == (6, 8, 2)
    assert (state.cache_read_tokens, state.cache_write_tokens) == (4, 2)
    assert (state.cost, state.cost_known) == (1.0, True)
    begin(scenario, "model-3")
    end(scenario, "model-3", usage=Usage(model="unpriced", input_tokens=1))
    assert (scenario.state.cost, scenario.state.cost_known) == (1.0, False)


def test_a_tool_has_no_usage_and_may_answer_with_an_error() -> None:
    scenario = running()
    begin(scenario, "tool-c1", kind="tool", name="search", child_id="child-1")
    assert steps(scenario)["tool-c1"].child_id == "child-1"
    told = end(scenario, "tool-c1", role="tool", tool_call_id="c1", name="search", is_error=True)
    assert kinds(told) == ["message_recorded"]
    assert scenario.state.model_calls == 0


def test_a_log_entry_stands_among_the_calls() -> None:
    scenario = running()
    [logged] = scenario.when(
        commands.LogNode, node_id=node("a"), attempt=1, event="todos", detail={"percent_complete": 50}
    )
    assert isinstance(logged, events.NodeLogged)
    assert (logged.event, logged.detail) == ("todos", {"percent_complete": 50})


def test_an_answer_without_its_call_can_not_be_replayed() -> None:
    scenario = running()
    head: dict[str, Any] = {
        "originator_id": EXECUTION,
        "originator_version": scenario.state.version + 1,
        "at": scenario.now,
    }
    for event in (
        events.MessageRecorded(**head, node_id="a", step="model-1", role="assistant"),
        events.StepRetried(**head, node_id="a", step="model-1", tries=1, error=LIMITED, retry_at=1),
        events.StepStarted(**head, node_id="nowhere", step="model-1", kind="model", name="m"),
    ):
        with pytest.raises(Diverged, match="which never started"):
            evolve(scenario.state, event)
