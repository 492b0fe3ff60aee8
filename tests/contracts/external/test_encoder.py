"""The streams' encoder by itself: numbers, text held back, text begun anew, progress after a resume."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.external.stream import ExternalEncoder, Work, task_ending, task_opening
from gateway.dialects.external.wire import Step
from gateway.happenings import (
    Happening,
    Logged,
    Message,
    RunEnded,
    RunMessage,
    StepBegan,
    StepEnded,
    TextDelta,
)
from gateway.run_stream import Cursor
from runtime.events import ToolCall

STEPS = (Step(1, "flows", "a", {"x": 1}), Step(2, "flows", "b", {}))


def encoder(work: Work, after: int = 0) -> ExternalEncoder:
    return ExternalEncoder(work, task_opening(work), task_ending(work), progress=True, after=after)


def planned() -> Work:
    return Work(task_id="t", shown_id="external-task-1", steps=STEPS, total=3, final="result")


def answering(**fields: Any) -> Work:
    return Work(task_id="t", shown_id="external-task-1", steps=(), total=1, **fields)


def read(
    encoder: ExternalEncoder, number: int, happening: Happening
) -> list[tuple[int, str, dict[str, Any]]]:
    read: list[tuple[int, str, dict[str, Any]]] = []
    for each in encoder.encode((number, happening)):
        first, second, *_ = each.decode().split("\n")
        body = msgspec.json.decode(second.removeprefix("data: "))
        read.append((int(first.removeprefix("id: ")), body["event"], body["data"]))
    return read


def number(position: int, slot: int = 0) -> int:
    return Cursor(position, 0, slot).number


def began(node: str, place: int) -> StepBegan:
    return StepBegan(at=0, node_id=node, name=node, kind="flow", number=place, total=3)


def ended(node: str, place: int) -> StepEnded:
    return StepEnded(
        at=0,
        node_id=node,
        name=node,
        kind="flow",
        number=place,
        total=3,
        ended=place,
        success=True,
        result="r",
    )


def test_frames_of_one_happening_are_numbered_on_and_resumed_within() -> None:
    told = read(encoder(planned()), number(5), ended("step_1", 1))
    assert [(each[0], each[1]) for each in told] == [
        (number(5), "step_complete"),
        (number(5) + 1, "task_progress"),
    ]
    assert read(encoder(planned(), after=number(5)), number(5), ended("step_1", 1)) == told[1:]


def test_progress_does_not_fall_on_a_resumed_stream() -> None:
    """It knows nothing of the steps before, but the number of the one that begins."""
    fresh, resumed = encoder(planned()), encoder(planned(), after=number(5))
    read(fresh, number(5), ended("step_1", 1))
    told = read(fresh, number(6), began("step_2", 2))
    assert told[0][2]["progress"] == 33
    assert read(resumed, number(6), began("step_2", 2)) == told


def test_the_end_tells_progress_result_and_end() -> None:
    told = read(encoder(planned()), number(9), RunEnded(at=0, status="completed", answer="words"))
    assert [(name, data.get("progress")) for _, name, data in told] == [
        ("task_progress", 100),
        ("final_result", None),
        ("completed", None),
    ]
    assert told[1][2]["finalResult"] == "words"
    for status, end in (("failed", "error"), ("timed_out", "error"), ("cancelled", "cancelled")):
        happening = msgspec.convert({"type": "RunEnded", "at": 0, "status": status}, RunEnded)
        assert [name for _, name, _ in read(encoder(planned()), number(9), happening)] == [end]


def said(text: str, **fields: Any) -> Message:
    message = RunMessage(role="assistant", content=text, **fields)
    return Message(at=0, node_id="answer", step="model-1", message=message)


def test_an_agents_words_before_a_tool_call_are_not_its_result() -> None:
    work = answering()
    before = said("Let me see.", tool_calls=(ToolCall(tool_call_id="c", name="add", arguments={}),))
    assert read(encoder(work), number(3), before) == []
    [chunk] = read(encoder(work), number(4), said("Five."))
    assert chunk[1:] == ("final_result_chunk", {"chunk": "Five."})


def test_tool_calls_keep_their_numbers_on_a_resumed_stream() -> None:
    def call(step: str) -> Logged:
        return Logged(at=0, event="tool_call", detail={"step": step, "tool": "add"}, tool_input={"a": 1})

    fresh, resumed = encoder(answering()), encoder(answering(tools=("tool-a", "tool-b")), after=number(3))
    read(fresh, number(3), call("tool-a"))
    told = read(fresh, number(4), call("tool-b"))
    assert told[0][2] == {"step": 3, "mcpName": "tools", "actionName": "add", "input": {"a": 1}}
    assert read(resumed, number(4), call("tool-b")) == told


def test_text_that_is_made_anew_is_announced() -> None:
    told = encoder(answering(final="answer"))
    retried = Logged(at=0, event="retrying", detail={"step": "model-1", "error": "cut off"})
    assert read(told, number(3), retried) == []
    read(told, number(4), TextDelta(at=0, node_id="answer", step="model-1", text="Fi"))
    assert [name for _, name, _ in read(told, number(5), retried)] == ["final_result_reset"]
    assert read(told, number(6), retried) == []
