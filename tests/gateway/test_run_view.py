"""The picture of an agent's run, folded from its recorded events."""

from __future__ import annotations

import msgspec

from gateway.happenings import RunMessage, RunUsage
from gateway.run_view import LOADED_BYTES_MAX, RunView, fold_run, whole
from runtime import events
from runtime.agent_spec import AgentOutput
from runtime.events import BlobRef, Json, StepError
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from tests.gateway.run_histories import RATE_LIMITED, RunTeller, tool_call

ANSWERED = msgspec.to_builtins(
    AgentOutput(
        output="It is noon.",
        messages=(
            {"role": "user", "content": "Say something"},
            {"role": "assistant", "content": "It is noon."},
        ),
        turns=1,
        memories=("likes noon",),
        model="gpt-test",
    )
)


def view_of(teller: RunTeller) -> RunView:
    return fold_run(teller.recorded)


def one_tool_round() -> RunTeller:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.answer("model-1", "", [tool_call(1, zone="UTC")])
    teller.tool(tool_call(1, zone="UTC"), {"now": 12})
    teller.call("model-2")
    teller.answer("model-2", "It is noon.")
    return teller


def test_a_run_reads_as_the_contract_tells_it() -> None:
    teller = one_tool_round()
    teller.end(ANSWERED)
    view = view_of(teller)
    assert [log.event for log in view.logs] == [
        "prompt_received",
        "model_call",
        "model_response",
        "tool_call",
        "tool_result",
        "model_call",
        "model_response",
        "completed",
    ]
    assert view.logs[3].tool_input == {"zone": "UTC"}
    assert view.logs[4].tool_output == {"now": 12}
    assert view.messages == (
        RunMessage(role="user", content="Say something"),
        RunMessage(role="assistant", content="", tool_calls=(tool_call(1, zone="UTC"),)),
        RunMessage(role="tool", content={"now": 12}, tool_call_id="call_1", name="clock"),
        RunMessage(role="assistant", content="It is noon."),
    )
    assert view.usage == RunUsage(input_tokens=20, output_tokens=10, model_calls=2, cost=0.5)
    assert (view.status, view.answer, view.current_turn) == ("completed", "It is noon.", 1)
    assert view.conversation == tuple(ANSWERED["messages"])
    assert view.memories == ("likes noon",)


def test_a_tool_round_is_done_when_its_last_result_is() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.answer("model-1", "", [tool_call(1), tool_call(2)])
    teller.tool(tool_call(1), 1)
    assert view_of(teller).current_turn == 0
    teller.tool(tool_call(2), 2)
    assert view_of(teller).current_turn == 1


def test_a_round_whose_calls_took_no_step_counts_once_the_model_goes_on() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.answer("model-1", "", [tool_call(1, name="no such tool")])
    teller.call("model-2")
    assert view_of(teller).current_turn == 1


def test_the_bound_on_turns_is_the_last_log_and_said_once() -> None:
    teller = one_tool_round()
    teller.add(events.NodeLogged, node_id="answer", event="max_turns_reached", detail={"turns": 1})
    teller.end(ANSWERED | {"stop_reason": "max_turns"})
    view = view_of(teller)
    assert [log.event for log in view.logs].count("max_turns_reached") == 1
    assert view.logs[-1].event == "max_turns_reached"
    assert (view.status, view.stop_reason) == ("completed", "max_turns")


def test_a_model_that_asks_to_wait_shows_as_rate_limited_with_the_wait() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.retry("model-1", RATE_LIMITED)
    log = view_of(teller).logs[-1]
    assert log.event == "rate_limited"
    assert log.detail["error"] == RATE_LIMITED.message
    assert log.detail["retry_in_seconds"] == 2.0


def test_a_failed_run_says_why_and_where() -> None:
    error = StepError(type="ModelAuthenticationError", message="refused (HTTP 401)")
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.add(events.NodeFailed, node_id="answer", error=error)
    teller.add(events.Failed, node_id="answer", error=error)
    view = view_of(teller)
    assert (view.status, view.error, view.failed_node) == ("failed", error, "answer")
    assert view.logs[-1].detail == {
        "error": "refused (HTTP 401)",
        "error_type": "ModelAuthenticationError",
        "node": "answer",
    }
    assert view.steps[0].success is False


def test_a_run_out_of_time_is_timed_out() -> None:
    teller = RunTeller()
    teller.begin()
    teller.add(events.TimedOut, timeout_seconds=1.5)
    view = view_of(teller)
    assert view.status == "timed_out"
    assert view.error == StepError(type="TimeoutError", message="not finished within 1.5 s")


def test_an_accepted_cancel_ends_the_run_for_every_view() -> None:
    teller = one_tool_round()
    teller.add(events.CancellationRequested, previous_status="running")
    halted = view_of(teller)
    teller.add(events.Cancelled)
    after = view_of(teller)
    assert halted.status == after.status == "cancelled"
    assert [log.event for log in after.logs].count("halted") == 1
    assert after.ended_at == halted.ended_at


def test_the_plan_a_model_shows_is_the_runs_progress() -> None:
    todos: list[Json] = [{"id": "1", "title": "Look", "status": "completed"}]
    teller = RunTeller()
    teller.begin()
    detail = {"todos": todos, "current_step": "Look", "percent_complete": 0.5}
    teller.add(events.NodeLogged, node_id="answer", event="todos", detail=detail)
    progress = view_of(teller).progress
    assert progress is not None
    assert (progress.todos, progress.current_step, progress.percent_complete) == (tuple(todos), "Look", 0.5)


def test_the_nodes_of_a_plan_are_its_steps_with_the_words_of_the_plan() -> None:
    definition = parse_flow(
        {
            "heliograph": 1,
            "id": "task-1",
            "nodes": [
                {"id": "look", "name": "Look it up", "kind": "template", "template": "x"},
                {"id": "tell", "name": "Tell it", "kind": "agent", "prompt": "{{ nodes.look }}"},
            ],
        }
    )
    teller = RunTeller(total_nodes=2)
    teller.begin("look")
    teller.add(events.NodeCompleted, node_id="look", output={"found": 1})
    teller.add(events.NodeStarted, node_id="tell")
    teller.add(events.NodeFailed, node_id="tell", error=RATE_LIMITED, retry_at=99_000_000)
    teller.add(events.NodeStarted, node_id="tell", attempt=2)
    teller.add(events.NodeCompleted, node_id="tell", attempt=2, output=ANSWERED)
    view = fold_run(teller.recorded, compile_flow(definition).steps)
    shown = [(step.number, step.name, step.kind, step.success, step.result) for step in view.steps]
    assert shown == [
        (1, "Look it up", "template", True, {"found": 1}),
        (2, "Tell it", "agent", True, "It is noon."),
    ]
    assert all(step.ended_at is not None and step.ended_at > step.started_at for step in view.steps)


def test_a_large_payload_is_read_and_a_huge_one_shown_as_its_size() -> None:
    kept = {"abc": b'{"prompt": "from the store"}'}
    teller = RunTeller()
    _, queued = teller.recorded[0]

    def referring(size: int) -> events.Event:
        return msgspec.structs.replace(queued, input=None, input_ref=BlobRef(sha256="abc", size=size))

    read = whole(referring(28), lambda ref: kept[ref.sha256])
    assert fold_run([(1, read)]).prompt == "from the store"
    huge = whole(referring(LOADED_BYTES_MAX + 1), lambda ref: kept[ref.sha256])
    assert fold_run([(1, huge)]).input == {"truncated": True, "size": LOADED_BYTES_MAX + 1}
