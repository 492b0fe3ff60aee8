"""An agent run as people see it: a fold of the execution's recorded events, in no contract's wording.

``RunFold`` turns each event into what happened (`happenings`) and keeps the sum; `RunView` is a picture of
that sum. Streams and status views share it, so they can't contradict each other. Pure: whoever reads the log
puts large payloads in place first (`whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec
from msgspec.structs import replace

from gateway.happenings import (
    Happening,
    Logged,
    Message,
    Progress,
    RunEnded,
    RunMessage,
    RunStarted,
    RunUsage,
    StepBegan,
    StepEnded,
    UsageTotal,
)
from runtime import events
from runtime.agent_spec import AgentOutput
from runtime.events import BlobRef, Event, Json, StepError
from runtime.plan import Step

RunStatus = Literal["queued", "running", "completed", "failed", "cancelled", "timed_out"]

HAPPENINGS_MAX = 4
"""Of one event; the numbers of frames rely on it."""

CONVERSATION = ""
"""The ``purpose`` of a step that belongs to the conversation itself."""

LOADED_BYTES_MAX = 8 * 1024 * 1024
"""A payload larger than this appears as its size."""

_RETRIED_LIMIT = "RateLimited"
_AGENT_KINDS = frozenset({"agent", "chat_model"})


# --- the sum ------------------------------------------------------------------------------------------


class StepRun(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the run. ``success`` None while it runs; ``ended_at`` None too."""

    node_id: str
    name: str
    kind: str
    number: int
    started_at: int
    ended_at: int | None = None
    success: bool | None = None
    skipped: bool = False
    result: Json = None
    error: StepError | None = None


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """One run after its event ``version``. Times in microseconds, UTC.

    ``messages`` begin with the user's prompt and hold this run only. ``current_turn``: tool rounds done.
    ``conversation``: what the next run takes as ``history``; None unless the run completed with one.
    """

    execution_id: str
    version: int
    position: int
    status: RunStatus
    prompt: str = ""
    input: Json = None
    logs: tuple[Logged, ...] = ()
    messages: tuple[RunMessage, ...] = ()
    current_turn: int = 0
    usage: RunUsage | None = None
    progress: Progress | None = None
    steps: tuple[StepRun, ...] = ()
    total_steps: int = 0
    answer: Json = None
    output: Json = None
    error: StepError | None = None
    failed_node: str = ""
    stop_reason: str = ""
    violations: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    diff_ref: Json = None
    model: str = ""
    conversation: tuple[Json, ...] | None = None
    created_at: int = 0
    started_at: int | None = None
    ended_at: int | None = None


def fold_run(history: Sequence[tuple[int, Event]], steps: Mapping[Any, Step] | None = None) -> RunView:
    """The view of a whole history of (position, event), large payloads put in place (`whole`).

    ``steps``: those of the flow's plan, for names and kinds.
    """
    fold = RunFold(steps)
    for position, event in history:
        fold.apply(position, event)
    return fold.view()


def agent_output(value: Json) -> AgentOutput | None:
    """``value`` as an agent node's output; None when it is something else."""
    if not isinstance(value, dict) or "output" not in value or "messages" not in value:
        return None
    try:
        return msgspec.convert(cast("dict[str, Json]", value), AgentOutput)
    except msgspec.ValidationError:
        return None  # an object of the user's own that happens to have these keys


def whole(event: Event, get: Callable[[BlobRef], bytes]) -> Event:
    """The event with its referenced payload in place; one past ``LOADED_BYTES_MAX`` becomes its size."""
    match event:
        case events.Queued(input_ref=BlobRef() as ref):
            return replace(event, input=_loaded(ref, get), input_ref=None)
        case events.MessageRecorded():
            if event.content_ref is not None:
                event = replace(event, content=_loaded(event.content_ref, get), content_ref=None)
            if event.raw_ref is not None:
                event = replace(event, raw=_loaded(event.raw_ref, get), raw_ref=None)
            return event
        case (
            events.NodeCompleted(output_ref=BlobRef() as ref) | events.Completed(output_ref=BlobRef() as ref)
        ):
            return replace(event, output=_loaded(ref, get), output_ref=None)
        case _:
            return event


def _loaded(ref: BlobRef, get: Callable[[BlobRef], bytes]) -> Json:
    if ref.size > LOADED_BYTES_MAX:
        return {"truncated": True, "size": ref.size}
    return msgspec.json.decode(get(ref))


class RunFold:
    """Mutable; belongs to one reader. ``steps`` as in `fold_run`."""

    def __init__(self, steps: Mapping[Any, Step] | None = None) -> None:
        self._steps = steps or {}
        self._numbers = {str(node_id): number for number, node_id in enumerate(self._steps, 1)}
        self._view = RunView(execution_id="", version=0, position=0, status="queued")
        self._logs: list[Logged] = []
        self._messages: list[RunMessage] = []
        self._runs: dict[str, StepRun] = {}
        self._rounds: dict[str, set[str]] = {}
        self._ended = 0

    @property
    def version(self) -> int:
        return self._view.version

    @property
    def is_ended(self) -> bool:
        """Also from the moment a cancel was accepted: nothing else can come of it (gateway rule G7)."""
        return self._view.ended_at is not None

    def view(self) -> RunView:
        return replace(
            self._view,
            logs=tuple(self._logs),
            messages=tuple(self._messages),
            steps=tuple(self._runs.values()),
        )

    def apply(self, position: int, event: Event) -> list[Happening]:
        """What the event means, at most ``HAPPENINGS_MAX`` things; nothing once the run has ended."""
        self._view = replace(self._view, version=event.originator_version, position=position)
        if self.is_ended:
            return []
        told = self._happenings(event)
        self._logs += [each for each in told if isinstance(each, Logged)]
        return told

    def _happenings(self, event: Event) -> list[Happening]:
        match event:
            case events.Queued():
                return self._queued(event)
            case events.Started():
                self._set(status="running", started_at=event.at)
                prompt = self._view.prompt
                return [
                    RunStarted(at=event.at, prompt=prompt, input=self._view.input),
                    self._log(event, "prompt_received", prompt=prompt),
                ]
            case events.NodeStarted() | events.NodeCompleted() | events.NodeFailed() | events.NodeSkipped():
                return self._node(event)
            case (
                events.StepStarted()
                | events.StepRetried()
                | events.MessageRecorded()
                | events.UsageRecorded()
            ):
                return self._step(event)
            case events.NodeLogged():
                return self._logged(event)
            case (
                events.Completed()
                | events.Failed()
                | events.TimedOut()
                | events.Cancelled()
                | events.CancellationRequested()
            ):
                return self._end(event)
            case _:
                return []

    def _set(self, **changes: Any) -> None:
        self._view = replace(self._view, **changes)

    def _log(self, event: Event, name: str, **detail: Json) -> Logged:
        return Logged(at=event.at, event=name, detail=detail, current_turn=self._view.current_turn)

    def _queued(self, event: events.Queued) -> list[Happening]:
        given: Any = event.input
        prompt = cast("dict[str, Json]", given).get("prompt") if isinstance(given, dict) else None
        text = prompt if isinstance(prompt, str) else ""
        self._set(
            execution_id=event.originator_id,
            created_at=event.at,
            input=given,
            prompt=text,
            total_steps=event.total_nodes,
        )
        if text:
            self._messages.append(RunMessage(role="user", content=text))
        return []

    # --- nodes --------------------------------------------------------------------------------------------

    def _node(
        self, event: events.NodeStarted | events.NodeCompleted | events.NodeFailed | events.NodeSkipped
    ) -> list[Happening]:
        node_id = event.node_id
        run = self._runs.get(node_id)
        if run is None:
            run = self._run(node_id, event.at)
        match event:
            case events.NodeStarted():
                if event.attempt > 1 or node_id in self._runs:
                    return []
                self._runs[node_id] = run
                return [
                    StepBegan(
                        at=event.at,
                        node_id=node_id,
                        name=run.name,
                        kind=run.kind,
                        number=run.number,
                        total=self._view.total_steps,
                    )
                ]
            case events.NodeFailed(retry_at=int() as due):
                return [self._retried(event, event.error, due, node=node_id)]
            case events.NodeFailed():
                ended = replace(run, success=False, error=event.error)
            case events.NodeSkipped():
                ended = replace(run, success=True, skipped=True)
            case events.NodeCompleted():
                answered = agent_output(event.output) if run.kind in _AGENT_KINDS or not run.kind else None
                result = event.output if answered is None else answered.output
                ended = replace(run, success=True, result=result)
        self._runs[node_id] = ended = replace(ended, ended_at=event.at)
        self._ended += 1
        return [
            StepEnded(
                at=event.at,
                node_id=node_id,
                name=ended.name,
                kind=ended.kind,
                number=ended.number,
                total=self._view.total_steps,
                ended=self._ended,
                success=bool(ended.success),
                skipped=ended.skipped,
                result=ended.result,
                error=ended.error,
            )
        ]

    def _run(self, node_id: str, at: int) -> StepRun:
        step = self._steps.get(node_id)
        number = self._numbers.get(node_id, len(self._runs) + 1)
        if step is None:
            return StepRun(node_id=node_id, name=node_id, kind="", number=number, started_at=at)
        return StepRun(node_id=node_id, name=step.name, kind=step.kind, number=number, started_at=at)

    def _retried(self, event: Event, error: StepError, due: int, **where: Json) -> Logged:
        name = "rate_limited" if error.type == _RETRIED_LIMIT else "retrying"
        seconds = max(0.0, round((due - event.at) / 1_000_000, 3))
        return self._log(
            event, name, error=error.message, error_type=error.type, retry_in_seconds=seconds, **where
        )

    # --- steps --------------------------------------------------------------------------------------------

    def _step(
        self, event: events.StepStarted | events.StepRetried | events.MessageRecorded | events.UsageRecorded
    ) -> list[Happening]:
        match event:
            case events.StepStarted(kind="model"):
                if event.purpose == CONVERSATION and self._rounds.pop(event.node_id, None):
                    # Answers that took no call of their own.
                    self._set(current_turn=self._view.current_turn + 1)
                return [
                    self._log(event, "model_call", model=event.name, step=event.step, purpose=event.purpose)
                ]
            case events.StepStarted():
                call = self._log(event, "tool_call", tool=event.name, step=event.step)
                return [replace(call, tool_input=event.request)]
            case events.StepRetried():
                where = {"node": event.node_id, "step": event.step, "tries": event.tries}
                return [self._retried(event, event.error, event.retry_at, **where)]
            case events.MessageRecorded():
                return self._message(event)
            case events.UsageRecorded():
                return [self._usage(event)]

    def _message(self, event: events.MessageRecorded) -> list[Happening]:
        message = RunMessage(
            role=event.role,
            content=event.content,
            tool_calls=event.tool_calls,
            tool_call_id=event.tool_call_id,
            name=event.name,
            is_error=event.is_error,
            raw=event.raw,
        )
        if event.purpose != CONVERSATION:
            return [self._log(event, "model_response", step=event.step, purpose=event.purpose)]
        self._messages.append(message)
        told = Message(at=event.at, node_id=event.node_id, step=event.step, message=message)
        if event.role == "tool":
            asked = self._rounds.get(event.node_id, set())
            if event.tool_call_id in asked:
                asked.discard(event.tool_call_id)
                if not asked:
                    self._set(current_turn=self._view.current_turn + 1)
            result = self._log(
                event,
                "tool_result",
                tool=event.name,
                step=event.step,
                is_error=event.is_error,
                duration_ms=event.duration_ms,
            )
            return [replace(result, tool_output=event.content), told]
        self._rounds[event.node_id] = {call.tool_call_id for call in event.tool_calls}
        calls = [call.name for call in event.tool_calls]
        response = self._log(
            event, "model_response", step=event.step, tool_calls=calls, duration_ms=event.duration_ms
        )
        return [told, response]

    def _usage(self, event: events.UsageRecorded) -> UsageTotal:
        known = self._view.usage or RunUsage()
        usage = RunUsage(
            input_tokens=known.input_tokens + event.input_tokens,
            output_tokens=known.output_tokens + event.output_tokens,
            cache_read_tokens=known.cache_read_tokens + event.cache_read_tokens,
            cache_write_tokens=known.cache_write_tokens + event.cache_write_tokens,
            model_calls=known.model_calls + 1,
            cost=known.cost + event.cost,
            cost_known=known.cost_known and event.cost_known,
        )
        self._set(usage=usage)
        return UsageTotal(at=event.at, usage=usage, current_turn=self._view.current_turn)

    def _logged(self, event: events.NodeLogged) -> list[Happening]:
        given: Any = event.detail
        detail: dict[str, Json] = (
            cast("dict[str, Json]", given) if isinstance(given, dict) else {"value": given}
        )
        if event.event == "todos":
            progress = Progress(
                at=event.at,
                todos=tuple(detail.get("todos") or ()),
                current_step=detail.get("current_step"),
                percent_complete=float(detail.get("percent_complete") or 0.0),
            )
            self._set(progress=progress)
            return [progress]
        if event.event == "max_turns_reached":
            return []  # said once, as the last log before the end
        return [self._log(event, event.event, **detail)]

    # --- the end ------------------------------------------------------------------------------------------

    def _end(
        self,
        event: events.Completed
        | events.Failed
        | events.TimedOut
        | events.Cancelled
        | events.CancellationRequested,
    ) -> list[Happening]:
        self._set(ended_at=event.at)
        match event:
            case events.Completed():
                return self._completed(event)
            case events.Failed():
                self._set(status="failed", error=event.error, failed_node=event.node_id)
                error = event.error
            case events.TimedOut():
                error = StepError(
                    type="TimeoutError", message=f"not finished within {event.timeout_seconds:g} s"
                )
                self._set(status="timed_out", error=error)
            case events.Cancelled() | events.CancellationRequested():
                self._set(status="cancelled")
                return [self._log(event, "halted"), self._run_ended(event.at)]
        log = self._log(
            event, "error", error=error.message, error_type=error.type, node=self._view.failed_node
        )
        return [log, self._run_ended(event.at)]

    def _completed(self, event: events.Completed) -> list[Happening]:
        self._set(status="completed", output=event.output, answer=event.output)
        answered = agent_output(event.output)
        if answered is not None:
            self._set(
                answer=answered.output,
                current_turn=max(self._view.current_turn, answered.turns),
                stop_reason=answered.stop_reason if answered.stop_reason != "completed" else "",
                violations=answered.violations,
                memories=answered.memories,
                diff_ref=answered.diff_ref,
                model=answered.model,
                conversation=answered.messages or None,
            )
        name = "max_turns_reached" if self._view.stop_reason == "max_turns" else "completed"
        return [self._log(event, name), self._run_ended(event.at)]

    def _run_ended(self, at: int) -> RunEnded:
        view = self._view
        return RunEnded(
            at=at,
            status=cast("Any", view.status),
            answer=view.answer,
            output=view.output,
            error=view.error,
            failed_node=view.failed_node,
            stop_reason=view.stop_reason,
            current_turn=view.current_turn,
        )
