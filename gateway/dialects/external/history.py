"""What a task's runs did, step by step (section 5.7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.dialects.external.plan_flow import ANSWER, ASSISTANT, step_of
from gateway.dialects.external.runs import failure_message
from gateway.dialects.external.stream import FIRST_TOOL, TOOLS
from gateway.dialects.external.wire import Step, iso
from gateway.happenings import Logged
from gateway.run_view import RunView, StepRun

Executed = dict[str, Any]


def executed_steps(shown_id: str, view: RunView, steps: Sequence[Step]) -> list[Executed]:
    """One entry for each step that began, in order. ``steps`` empty: an agent answered by itself."""
    entries = list(_planned(view, steps) if steps else _answered(view))
    return [{"executionId": shown_id, **entry} for entry in entries]


def _planned(view: RunView, steps: Sequence[Step]) -> Iterator[Executed]:
    by_number = {step.step: step for step in steps}
    for run in view.steps:
        step = by_number.get(step_of(run.node_id) or 0)
        if step is not None:
            yield _entry(view, step.step, step.mcp, step.action, _Outcome.of_node(run))


def _answered(view: RunView) -> Iterator[Executed]:
    """The answer itself, then the tools called on the way to it."""
    for run in view.steps:
        yield _entry(view, 1, ASSISTANT, ANSWER, _Outcome.of_node(run))
    ends = {str(log.detail.get("step")): log for log in view.logs if log.event == "tool_result"}
    called: dict[str, Logged] = {}
    for log in view.logs:
        if log.event == "tool_call":
            called.setdefault(str(log.detail.get("step")), log)  # a call made again is the same step
    for number, (name, call) in enumerate(called.items(), FIRST_TOOL):
        action = str(call.detail.get("tool"))
        yield _entry(view, number, TOOLS, action, _Outcome.of_call(call, ends.get(name)))


class _Outcome(NamedTuple):
    """``success`` None: still under way."""

    started_at: int
    ended_at: int | None
    success: bool | None
    result: Any
    error: str | None

    @classmethod
    def of_node(cls, run: StepRun) -> _Outcome:
        error = None if run.error is None else run.error.message
        return cls(run.started_at, run.ended_at, run.success, run.result, error)

    @classmethod
    def of_call(cls, call: Logged, end: Logged | None) -> _Outcome:
        if end is None:
            return cls(call.at, None, None, None, None)
        success = not end.detail.get("is_error")
        return cls(call.at, end.at, success, end.tool_output, None if success else _text(end.tool_output))


def _entry(view: RunView, step: int, mcp: str, action: str, outcome: _Outcome) -> Executed:
    if outcome.success is None and view.ended_at is not None:
        # The run ended over it.
        error = "cancelled" if view.status == "cancelled" else failure_message(view)
        outcome = outcome._replace(success=False, ended_at=view.ended_at, error=error)
    return {
        "step": step,
        "mcp": mcp,
        "action": action,
        "success": outcome.success,
        "result": outcome.result if outcome.success else None,
        "error": outcome.error,
        "startedAt": iso(outcome.started_at),
        "executedAt": None if outcome.ended_at is None else iso(outcome.ended_at),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
