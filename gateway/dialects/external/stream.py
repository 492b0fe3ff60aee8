"""A run's happenings as the contract's streams (sections 4.3 and 5.5); works with no request behind it.

A frame is ``id: n`` and ``data: {"event": name, "data": {...}}``, without an ``event:`` line. The first ones
have the ids 1 and 2, which no event of a log has; the others those of `gateway.run_stream`.

What is odd: ``final_result_chunk`` tells the text of one node only, the one whose answer is the result. An
agent with tools may say something before it calls one; so its text is held back until it is known to be the
last. When a model call is made again in the middle of its text, ``final_result_reset`` says that the chunks
so far are void; those after it, joined, are the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.dialects.external.plan_flow import ANSWER, ASSISTANT, step_of
from gateway.dialects.external.wire import Step, as_object
from gateway.happenings import (
    Happening,
    Logged,
    Message,
    RunEnded,
    StepBegan,
    StepEnded,
    TextDelta,
)
from gateway.run_stream import Cursor, Numbered
from gateway.sse import frame

FRAMES_EACH = 4
"""Most frames of one happening. Only a run's end, which comes last, makes more than two."""

FIRST_TOOL = 2
"""Number of the first tool call of an agent that answers by itself; the answer is step 1."""

TOOLS = "tools"
"""The MCP of an agent's own calls: their names don't say where a tool comes from."""

DONE = b"data: [DONE]\n\n"

Named = tuple[str, dict[str, Any]]
"""An event's name and data."""

_RETRIES = ("retrying", "rate_limited")

_encode = msgspec.json.Encoder().encode


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The run that is told. ``steps``: the plan's; empty: an agent answers by itself, and its steps are the
    answer (1) and the tools it calls (2, 3, ...). ``final``: the node whose text is the result; empty when
    that text is held back. ``total``: the flow's nodes. ``tools``: the recorded steps of its tool calls, in
    order, as far as a resumed stream begins behind them.
    """

    task_id: str
    shown_id: str
    steps: Sequence[Step]
    total: int
    final: str = ""
    input: str = ""
    tools: Sequence[str] = ()


Ending = Callable[[RunEnded], list[Named]]


class ExternalEncoder:
    """From numbered happenings to frames; ``after`` is the last id the client has.

    ``progress``: tell task_progress too. ``ending``: what the contract says at the end.
    """

    def __init__(
        self, work: Work, opening: Sequence[Named], ending: Ending, *, progress: bool, after: int = 0
    ) -> None:
        self._work = work
        self._opening = opening
        self._ending = ending
        self._progress = progress
        self._after = after
        self._reached = 0
        self._tools = {name: number for number, name in enumerate(work.tools, FIRST_TOOL)}
        self._by_number = {step.step: step for step in work.steps}
        self._is_told = Cursor.of(after).chars > 0

    def opening(self) -> Iterator[bytes]:
        for number, (name, data) in enumerate(self._opening, 1):
            if number > self._after:
                yield _frame(number, name, data)

    def encode(self, numbered: Numbered) -> Iterator[bytes]:
        number, happening = numbered
        for offset, (name, data) in enumerate(self._named(happening)):
            if number + offset > self._after:
                yield _frame(number + offset, name, data)

    def _named(self, happening: Happening) -> list[Named]:
        match happening:
            case StepBegan():
                return self._began(happening)
            case StepEnded():
                return self._ended(happening)
            case TextDelta():
                self._is_told = True
                return [("final_result_chunk", {"chunk": happening.text})]
            case Message():
                return self._message(happening)
            case Logged():
                return self._logged(happening)
            case RunEnded():
                told: list[Named] = []
                if happening.status == "completed":
                    self._reached = 100
                    if self._progress:
                        told.append(self._progressed(None, "completed", "Task completed"))
                    final = {"finalResult": happening.answer, "message": "Task executed successfully"}
                    told.append(("final_result", final))
                return [*told, *self._ending(happening)]
            case _:
                return []

    # --- steps --------------------------------------------------------------------------------------------

    def _began(self, node: StepBegan) -> list[Named]:
        step = self._step(node.node_id)
        what = "result" if step is None else f"{step.mcp}: {step.action}"
        told: list[Named] = []
        if self._progress:
            # A plan's nodes run one after the other; on a resumed stream those before weren't seen here.
            self._reached = max(self._reached, min(99, 100 * (node.number - 1) // max(1, node.total)))
            message = f"Step {node.number} of {node.total}: {what}"
            told.append(self._progressed(node.number, "running", message))
        if step is not None:
            data = {"step": step.step, "mcpName": step.mcp, "actionName": step.action, "input": step.input}
            told.append(("step_start", data))
        return told

    def _ended(self, node: StepEnded) -> list[Named]:
        step = self._step(node.node_id)
        told: list[Named] = []
        if step is not None:
            told.append(_step_end(step.step, node.success, node.result, node.error and node.error.message))
        if self._progress and node.success:
            # The last percent is the run's own end.
            self._reached = max(self._reached, min(99, 100 * node.ended // max(1, node.total)))
            told.append(self._progressed(node.number, "running", f"{node.ended} of {node.total} steps done"))
        return told

    def _step(self, node_id: str) -> Step | None:
        if not self._work.steps:
            return Step(1, ASSISTANT, ANSWER, {"instruction": self._work.input})
        number = step_of(node_id)
        return None if number is None else self._by_number.get(number)

    def _progressed(self, step: int | None, status: str, message: str) -> Named:
        data = {
            "taskId": self._work.task_id,
            "step": self._work.total if step is None else step,
            "totalSteps": self._work.total,
            "progress": self._reached,
            "status": status,
            "message": message,
        }
        return "task_progress", data

    # --- an agent's own work ------------------------------------------------------------------------------

    def _message(self, told: Message) -> list[Named]:
        message = told.message
        is_last = message.role == "assistant" and not message.tool_calls
        if self._work.steps or self._work.final or not is_last:
            return []
        text = message.content if isinstance(message.content, str) else ""
        return [("final_result_chunk", {"chunk": text})] if text else []

    def _logged(self, logged: Logged) -> list[Named]:
        if logged.event in _RETRIES and self._is_told:
            self._is_told = False
            return [("final_result_reset", {"message": "The result is written anew"})]
        if self._work.steps or logged.event not in ("tool_call", "tool_result"):
            return []
        number = self._tools.setdefault(str(logged.detail.get("step")), len(self._tools) + FIRST_TOOL)
        name = str(logged.detail.get("tool"))
        if logged.event == "tool_call":
            data = {"step": number, "mcpName": TOOLS, "actionName": name, "input": logged.tool_input}
            return [("step_start", data)]
        is_error = bool(logged.detail.get("is_error"))
        return [_step_end(number, not is_error, logged.tool_output, _text(logged.tool_output))]


def _step_end(step: int, success: bool, result: Any, error: str | None) -> Named:
    if success:
        return "step_complete", {"step": step, "success": True, "result": result}
    return "step_error", {"step": step, "error": error or "The step failed"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _frame(number: int, name: str, data: Mapping[str, Any]) -> bytes:
    return frame(number, _encode({"event": name, "data": data}))


# --- how the two streams begin and end --------------------------------------------------------------------


def task_opening(work: Work) -> list[Named]:
    data = {"taskId": work.task_id, "status": "connected", "executionId": work.shown_id}
    return [("connection_established", data)]


def task_ending(work: Work) -> Ending:
    def ending(end: RunEnded) -> list[Named]:
        match end.status:
            case "completed":
                done = {"taskId": work.task_id, "success": True, "message": "Task executed successfully"}
                return [("completed", done)]
            case "cancelled":
                return [("cancelled", {"taskId": work.task_id, "executionId": work.shown_id})]
            case _:
                return [_error(work, end)]

    return ending


def agent_opening(work: Work, agent_id: str, agent_name: str, title: str) -> list[Named]:
    connected = {
        "executionId": work.shown_id,
        "agentId": agent_id,
        "agentName": agent_name,
        "input": work.input,
        "status": "connected",
    }
    return [("connection_established", connected), ("task_created", {"taskId": work.task_id, "title": title})]


def agent_ending(work: Work, agent_id: str, began_at: int) -> Ending:
    def ending(end: RunEnded) -> list[Named]:
        run = {"taskId": work.task_id, "agentId": agent_id}
        match end.status:
            case "completed":
                done = {
                    **run,
                    "success": True,
                    "executionTime": (end.at - began_at) // 1000,
                    "result": as_object(end.answer),
                    "status": "completed",
                }
                return [("execution_complete", done)]
            case "cancelled":
                return [("cancelled", {"executionId": work.shown_id, **run, "status": "cancelled"})]
            case _:
                return [_error(work, end)]

    return ending


def _error(work: Work, end: RunEnded) -> Named:
    code = "REQUEST_TIMEOUT" if end.status == "timed_out" else "EXECUTION_FAILED"
    message = end.error.message if end.error is not None else "The execution failed"
    data = {"code": code, "message": message, "taskId": work.task_id, "executionId": work.shown_id}
    return "error", data
