"""The execution aggregate: two pure functions over its state.

``decide`` answers a command with the events it causes, or refuses; ``evolve`` folds one event into the
state. Neither does I/O, reads a clock or draws a number. The shell appends the events, and only then
performs what they promise.

Invariants: versions rise by one; a terminal state never changes; after an accepted cancellation only
``Cancelled`` can follow as the end; an outcome of an attempt that is no longer running changes nothing
(it comes from a worker that was given up, or from a former owner).
"""

from collections.abc import Iterable
from typing import NamedTuple, TypedDict, assert_never

from runtime import chunks, commands, events
from runtime.commands import Command
from runtime.errors import InvalidTransition
from runtime.events import Event, StepError
from runtime.evolution import begin, evolve
from runtime.ids import Micros, NodeId
from runtime.plan import Plan
from runtime.scheduling import is_open_for_nodes
from runtime.state import ExecutionState, NodeState, Status

SIGNALS_MAX = 1_000
"""Signals one execution may receive; one more is refused."""

EVENTS_MAX = 50_000
"""Events of one execution. An execution that reaches the bound fails, saying so."""


class Decision(NamedTuple):
    """``events`` to append, in order (none: nothing to record), and the state after them."""

    events: tuple[Event, ...]
    state: ExecutionState


class _Head(TypedDict):
    originator_id: str
    originator_version: int
    at: int
    by: str
    cause: str
    corr: str


class _Draft:
    """One decision being taken: what was emitted so far, and the state after it."""

    def __init__(self, state: ExecutionState, command: Command) -> None:
        self.state = state
        self.command = command
        self.emitted: list[Event] = []

    def head(self, caused_by: int = 0) -> _Head:
        """The fields every event has. ``caused_by``: version of the event that led here, if known."""
        state, command = self.state, self.command
        return {
            "originator_id": state.execution_id,
            "originator_version": state.version + 1,
            "at": max(command.at, state.updated_at),  # a host's clock may lag the former owner's
            "by": command.by,
            "cause": command.cause or f"v{caused_by or state.version}",
            "corr": state.correlation_id,
        }

    def emit(self, event: Event) -> None:
        self.emitted.append(event)
        self.state = evolve(self.state, event)

    def decision(self) -> Decision:
        return Decision(tuple(self.emitted), self.state)


def start(command: commands.StartExecution, plan: Plan) -> Decision:
    """The first event of a new execution. Its input was checked against the flow before."""
    queued = events.Queued(
        originator_id=command.execution_id,
        originator_version=1,
        at=command.at,
        by=command.by,
        cause=command.cause,
        corr=command.correlation_id,
        tenant=command.tenant,
        flow_id=command.flow_id,
        flow_version=command.flow_version,
        source=command.source,
        input=command.input,
        input_ref=command.input_ref,
        total_nodes=len(plan.steps),
        owner=command.owner,
        timeout_seconds=command.timeout_seconds or plan.timeout_seconds,
        placement=command.placement or plan.placement,
        parent_id=command.parent_id,
        parent_node=command.parent_node,
        callback_url=command.callback_url,
        debug=command.debug,
        files=command.files,
        request_key=command.request_key,
        subject=command.subject,
        queue_key=command.queue_key,
        priority=command.priority,
    )
    return Decision((queued,), begin(queued))


def decide(state: ExecutionState, plan: Plan, command: Command) -> Decision:
    """The events ``command`` causes in ``state``; none when it repeats what is recorded already.

    Raises: InvalidTransition when the state does not allow the command.
    """
    draft = _Draft(state, command)
    match command:
        case commands.StartNode() | commands.SkipNode():
            _schedule(draft, plan, command)
        case (
            commands.RecordCompleted()
            | commands.RecordFailed()
            | commands.RecordWaiting()
            | commands.RecordProgress()
            | commands.RecordChunks()
        ):
            _record_outcome(draft, plan, command)
        case commands.FireTimer() | commands.RecordChildEnd() | commands.Signal():
            _wake(draft, plan, command)
        case commands.BeginStep() | commands.RetryStep() | commands.EndStep() | commands.LogNode():
            _record_step(draft, command)
        case _:
            _change_status(draft, command)
    if draft.state.version >= EVENTS_MAX and not draft.state.is_closed:
        _end_at_bound(draft)
    return draft.decision()


def _end_at_bound(draft: _Draft) -> None:
    if draft.state.cancel_requested_at is not None:
        draft.emit(events.Cancelled(**draft.head()))  # the only end left (gateway rule G7)
        return
    message = f"the execution reached its bound of {EVENTS_MAX} events"
    draft.emit(events.Failed(**draft.head(), error=StepError(type="TooManyEvents", message=message)))


# --- the whole execution ----------------------------------------------------------------------------


def _change_status(draft: _Draft, command: Command) -> None:
    state = draft.state
    if isinstance(command, commands.RequestCancel):
        _request_cancel(draft, command)
        return
    if state.is_closed:
        raise InvalidTransition(f"the execution is already {state.status}")
    match command:
        case commands.TakeOver():
            draft.emit(events.Recovered(**draft.head(), owner=command.owner))
        case commands.Admit():
            if state.started_at is None and state.cancel_requested_at is None:
                draft.emit(events.Started(**draft.head(), queue_slot=command.queue_slot))
        case commands.Pause():
            _require_not_cancelling(state)
            if not state.paused:
                draft.emit(events.Paused(**draft.head()))
        case commands.Resume():
            _require_not_cancelling(state)
            if not state.paused:
                raise InvalidTransition("the execution is not paused")
            draft.emit(events.Resumed(**draft.head()))
        case commands.ConfirmCancelled():
            if state.cancel_requested_at is None:
                raise InvalidTransition("no cancellation was requested")
            draft.emit(events.Cancelled(**draft.head()))
        case commands.Complete():
            _require_not_cancelling(state)
            if state.completed_nodes < state.total_nodes:
                raise InvalidTransition("not all nodes have ended")
            draft.emit(events.Completed(**draft.head(), output=command.output, output_ref=command.output_ref))
        case commands.Fail():
            _require_not_cancelling(state)
            draft.emit(events.Failed(**draft.head(), error=command.error))
        case commands.TimeOut():
            _require_not_cancelling(state)
            draft.emit(events.TimedOut(**draft.head(), timeout_seconds=state.timeout_seconds or 0.0))
        case _:
            raise InvalidTransition(f"an execution does not understand {type(command).__name__}")


def _request_cancel(draft: _Draft, command: commands.RequestCancel) -> None:
    state = draft.state
    if command.cause and command.cause == state.cancel_cause:
        return  # the very request that was accepted, sent again because its answer was lost
    if state.is_closed:
        raise InvalidTransition(f"the execution is already {state.status}")
    if state.cancel_requested_at is not None:
        raise InvalidTransition("a cancellation was already accepted")
    draft.emit(
        events.CancellationRequested(**draft.head(), previous_status=state.status, reason=command.reason)
    )
    if state.active_nodes == 0:
        draft.emit(events.Cancelled(**draft.head()))


def _require_not_cancelling(state: ExecutionState) -> None:
    if state.cancel_requested_at is not None:
        raise InvalidTransition("a cancellation was accepted; cancelled is the only possible end")


# --- nodes ------------------------------------------------------------------------------------------


def _schedule(draft: _Draft, plan: Plan, command: commands.StartNode | commands.SkipNode) -> None:
    state = draft.state
    if not is_open_for_nodes(state):
        raise InvalidTransition(f"no node can start: the execution is {state.status}")
    node = state.nodes.get(command.node_id)
    match command:
        case commands.StartNode():
            if node is not None and node.status != "retrying" and node.status != "running":
                raise InvalidTransition(f"node {command.node_id} is {node.status}")
            # A running node starts again only after a recovery: its outcome was never recorded,
            # so the same attempt, with the same idempotency key, is made once more.
            attempt = _next_attempt(node)
            if node is None or node.status == "retrying":
                draft.emit(
                    events.NodeStarted(
                        **draft.head(),
                        node_id=command.node_id,
                        attempt=attempt,
                        where=command.where,
                    )
                )
        case commands.SkipNode():
            if node is not None:
                raise InvalidTransition(f"node {command.node_id} is {node.status}")
            draft.emit(events.NodeSkipped(**draft.head(), node_id=command.node_id, reason=command.reason))
        case _:
            assert_never(command)


def _next_attempt(node: NodeState | None) -> int:
    if node is None:
        return 1
    return node.attempt + 1 if node.status == "retrying" else node.attempt


def _running(state: ExecutionState, node_id: NodeId, attempt: int) -> NodeState | None:
    """The node while this attempt of it may record something; None when what comes is late."""
    node = state.nodes.get(node_id)
    if state.is_closed or state.cancel_requested_at is not None or node is None:
        return None
    return node if node.status == "running" and node.attempt == attempt else None


def _record_outcome(
    draft: _Draft,
    plan: Plan,
    command: (
        commands.RecordCompleted
        | commands.RecordFailed
        | commands.RecordWaiting
        | commands.RecordProgress
        | commands.RecordChunks
    ),
) -> None:
    node = _running(draft.state, command.node_id, command.attempt)
    if node is None:
        return
    head = draft.head(node.started_version)
    match command:
        case commands.RecordCompleted():
            draft.emit(
                events.NodeCompleted(
                    **head,
                    node_id=command.node_id,
                    attempt=command.attempt,
                    output=command.output,
                    output_ref=command.output_ref,
                    skips=command.skips,
                    logs=command.logs,
                    where=command.where,
                )
            )
        case commands.RecordFailed():
            _fail_node(draft, plan, command.node_id, node, command.error, command.draw, command)
        case commands.RecordWaiting():
            draft.emit(
                events.NodeWaiting(
                    **head,
                    node_id=command.node_id,
                    attempt=command.attempt,
                    until=command.until,
                    signal=command.signal,
                    child_id=command.child_id,
                    child_flow=command.child_flow,
                    child_input=command.child_input,
                    on_timeout=command.on_timeout,
                )
            )
            _deliver_buffered_signal(draft, command)
        case commands.RecordProgress():
            fresh = _news_of(node, command.items)
            if fresh or node.total != command.total:
                draft.emit(
                    events.NodeProgressed(
                        **head,
                        node_id=command.node_id,
                        attempt=command.attempt,
                        total=command.total,
                        items=fresh,
                    )
                )
        case commands.RecordChunks():
            _record_chunks(draft, node, command)
        case _:
            assert_never(command)


def _record_chunks(draft: _Draft, node: NodeState, command: commands.RecordChunks) -> None:
    known = node.chunks or chunks.ChunkState(source=command.source)
    fresh = chunks.news_of(known.recorded, command.chunks)
    if node.chunks is not None and not fresh and command.total in (None, known.total):
        return
    head = draft.head(node.started_version)
    after = chunks.with_chunks(known, head["at"], command.total, fresh)
    draft.emit(
        events.ChunksRecorded(
            **head,
            node_id=command.node_id,
            attempt=command.attempt,
            total=command.total,
            source="" if node.chunks else command.source,
            chunks=fresh,
            done=after.done,
            failed=after.failed,
            rate=chunks.rate(after.marks),
        )
    )


def _news_of(node: NodeState, items: tuple[events.ItemOutcome, ...]) -> tuple[events.ItemOutcome, ...]:
    """A recorded success stands; a recorded failure may be mended by a later attempt of the node."""
    fresh: dict[int, events.ItemOutcome] = {}
    for item in items:
        known = fresh.get(item.index) or node.outcomes.get(item.index)
        if known is None or (known.error is not None and item.error is None):
            fresh[item.index] = item
    return tuple(fresh.values())


def _fail_node(
    draft: _Draft,
    plan: Plan,
    node_id: NodeId,
    node: NodeState,
    error: StepError,
    draw: float,
    detail: commands.RecordFailed | None = None,
) -> None:
    """Record the failure; when no attempt is left, the execution fails with it."""
    now = Micros(draft.command.at)
    retry_at = plan.steps[node_id].retry.retry_at(now, node.attempt, error.type, draw)
    draft.emit(
        events.NodeFailed(
            **draft.head(node.started_version),
            node_id=node_id,
            attempt=node.attempt,
            error=error,
            retry_at=retry_at,
            logs=detail.logs if detail else None,
            where=detail.where if detail else "",
        )
    )
    if retry_at is None:
        draft.emit(events.Failed(**draft.head(), error=error, node_id=node_id))


def _complete_waiting(
    draft: _Draft, node_id: NodeId, output: events.Json, output_ref: events.BlobRef | None = None
) -> None:
    attempt = draft.state.nodes[node_id].attempt
    draft.emit(
        events.NodeCompleted(
            **draft.head(), node_id=node_id, attempt=attempt, output=output, output_ref=output_ref
        )
    )


def _deliver_buffered_signal(draft: _Draft, command: commands.RecordWaiting) -> None:
    for received in draft.state.signals:
        if command.signal and received.name == command.signal:
            _complete_waiting(draft, command.node_id, received.payload)
            return


def _wake(
    draft: _Draft,
    plan: Plan,
    command: commands.FireTimer | commands.RecordChildEnd | commands.Signal,
) -> None:
    if isinstance(command, commands.Signal):
        _receive_signal(draft, command)
        return
    state = draft.state
    node = state.nodes.get(command.node_id)
    if state.is_closed or state.cancel_requested_at is not None or node is None or node.status != "waiting":
        return
    match command:
        case commands.FireTimer():
            if node.wake_at is None or node.wake_at > command.at:
                return
            draft.emit(events.TimerFired(**draft.head(), node_id=command.node_id))
            if node.signal and node.on_timeout == "fail":
                error = StepError(
                    type="SignalTimeout", message=f"signal {node.signal!r} did not arrive in time"
                )
                _fail_node(draft, plan, command.node_id, node, error, command.draw)
            else:
                _complete_waiting(draft, command.node_id, None)
        case commands.RecordChildEnd():
            if node.child_id != command.child_id:
                return
            if command.error is not None:
                _fail_node(draft, plan, command.node_id, node, command.error, command.draw)
                return
            _complete_waiting(draft, command.node_id, command.output, command.output_ref)
        case _:
            assert_never(command)


def _receive_signal(draft: _Draft, command: commands.Signal) -> None:
    state = draft.state
    if command.signal_id in state.signal_ids:
        return
    if state.is_closed or state.cancel_requested_at is not None:
        raise InvalidTransition(f"the execution is already {state.status}")
    if len(state.signal_ids) >= SIGNALS_MAX:
        raise InvalidTransition(f"the execution received its {SIGNALS_MAX} signals")
    waiting = next(
        (
            node_id
            for node_id, node in state.nodes.items()
            if node.status == "waiting" and node.signal == command.name
        ),
        None,
    )
    draft.emit(
        events.SignalReceived(
            **draft.head(),
            signal_id=command.signal_id,
            name=command.name,
            payload=command.payload,
        )
    )
    if waiting is not None:
        _complete_waiting(draft, waiting, command.payload)


# --- the steps of an agent node -----------------------------------------------------------------------

INTERRUPTED = StepError(type="Interrupted", message="its answer was not recorded; the call is made again")


def _record_step(
    draft: _Draft,
    command: commands.BeginStep | commands.RetryStep | commands.EndStep | commands.LogNode,
) -> None:
    node = _running(draft.state, command.node_id, command.attempt)
    if node is None:
        return
    match command:
        case commands.BeginStep():
            _begin_step(draft, node, command)
        case commands.RetryStep():
            _retry_step(draft, node, command, command.error, command.retry_at)
        case commands.EndStep():
            _end_step(draft, node, command)
        case commands.LogNode():
            draft.emit(
                events.NodeLogged(
                    **draft.head(node.started_version),
                    node_id=command.node_id,
                    attempt=command.attempt,
                    event=command.event,
                    detail=command.detail,
                )
            )
        case _:
            assert_never(command)


def _begin_step(draft: _Draft, node: NodeState, command: commands.BeginStep) -> None:
    known = node.steps.get(command.step)
    if known is not None:
        if known.answer is None:
            _retry_step(draft, node, command, INTERRUPTED, command.at)
        return
    draft.emit(
        events.StepStarted(
            **draft.head(node.started_version),
            node_id=command.node_id,
            attempt=command.attempt,
            step=command.step,
            kind=command.kind,
            name=command.name,
            request_hash=command.request_hash,
            request=command.request,
            purpose=command.purpose,
            child_id=command.child_id,
        )
    )


def _retry_step(
    draft: _Draft,
    node: NodeState,
    asked: commands.BeginStep | commands.RetryStep,
    error: StepError,
    retry_at: int,
) -> None:
    known = node.steps.get(asked.step)
    if known is None or known.answer is not None:
        return
    draft.emit(
        events.StepRetried(
            **draft.head(node.started_version),
            node_id=asked.node_id,
            attempt=asked.attempt,
            step=asked.step,
            tries=known.tries,
            error=error,
            retry_at=retry_at,
        )
    )


def _end_step(draft: _Draft, node: NodeState, command: commands.EndStep) -> None:
    known = node.steps.get(command.step)
    if known is None or known.answer is not None:
        return  # the first answer stands
    draft.emit(
        events.MessageRecorded(
            **draft.head(node.started_version),
            node_id=command.node_id,
            attempt=command.attempt,
            step=command.step,
            role=command.role,
            content=command.content,
            content_ref=command.content_ref,
            tool_calls=command.tool_calls,
            tool_call_id=command.tool_call_id,
            name=command.name,
            is_error=command.is_error,
            purpose=known.purpose,
            raw=command.raw,
            raw_ref=command.raw_ref,
            duration_ms=command.duration_ms,
        )
    )
    if command.usage is not None:
        usage = command.usage
        draft.emit(
            events.UsageRecorded(
                **draft.head(node.started_version),
                node_id=command.node_id,
                attempt=command.attempt,
                step=command.step,
                model=usage.model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                cost=usage.cost,
                cost_known=usage.cost_known,
                purpose=known.purpose,
                duration_ms=command.duration_ms,
            )
        )


def fold(history: Iterable[Event]) -> ExecutionState | None:
    """The state after ``history``; None when it is empty.

    Raises: Diverged when the history can't be one of an execution.
    """
    state: ExecutionState | None = None
    for event in history:
        state = begin(event) if state is None else evolve(state, event)
    return state


def contract_status(state_status: Status) -> Status:
    """A cancelling execution shows as cancelled at once, in every view (gateway rule G7)."""
    return "cancelled" if state_status == "cancelling" else state_status
