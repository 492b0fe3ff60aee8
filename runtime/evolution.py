"""``evolve``: fold one event of an execution into its state. Pure, total over the event union.

A history that this code can't have written (a wrong version, an event for an unknown node, anything
after the end) raises ``Diverged``: replay must never paper over it.
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from runtime import chunks, events
from runtime.errors import Diverged
from runtime.events import Event
from runtime.ids import SECOND, Micros, NodeId
from runtime.state import ExecutionState, NodeState, ReceivedSignal, Status, StepState, item_of


def begin(event: Event) -> ExecutionState:
    """The state after the first event of a stream."""
    if not isinstance(event, events.Queued) or event.originator_version != 1:
        raise Diverged(f"{event.originator_id}: a history begins with version 1, execution.queued")
    timeout = event.timeout_seconds
    return ExecutionState(
        execution_id=event.originator_id,
        version=1,
        status="queued",
        tenant=event.tenant,
        flow_id=event.flow_id,
        flow_version=event.flow_version,
        source=event.source,
        by=event.by,
        correlation_id=event.corr,
        input=event.input,
        input_ref=event.input_ref,
        owner=event.owner,
        total_nodes=event.total_nodes,
        created_at=event.at,
        updated_at=event.at,
        deadline_at=None if timeout is None else Micros(event.at + int(timeout * SECOND)),
        timeout_seconds=timeout,
        placement=event.placement,
        parent_id=event.parent_id,
        parent_node=event.parent_node,
        callback_url=event.callback_url,
        debug=event.debug,
        files=event.files,
        request_key=event.request_key,
        subject=event.subject,
        queue_key=event.queue_key,
        priority=event.priority,
    )


def evolve(state: ExecutionState, event: Event) -> ExecutionState:
    """The state after ``event``.

    Raises: Diverged when the event can't follow this state.
    """
    if event.originator_version != state.version + 1:
        raise Diverged(
            f"{state.execution_id}: version {event.originator_version} can't follow {state.version}"
        )
    if state.is_closed:
        raise Diverged(f"{state.execution_id}: {event.TOPIC} can't follow {state.status}")
    match event:
        case (
            events.NodeStarted()
            | events.NodeCompleted()
            | events.NodeFailed()
            | events.NodeSkipped()
            | events.NodeWaiting()
            | events.NodeProgressed()
            | events.ChunksRecorded()
            | events.TimerFired()
        ):
            return _evolve_node(state, event)
        case events.Completed() | events.Failed() | events.TimedOut() | events.Cancelled():
            return _close(state, event)
        case _:
            return _evolve_execution(state, event)


def _evolve_execution(state: ExecutionState, event: Event) -> ExecutionState:
    version, at = event.originator_version, event.at
    match event:
        case events.Started():
            status: Status = "paused" if state.paused else "running"
            return replace(
                state,
                version=version,
                updated_at=at,
                status=status,
                started_at=at,
                queue_slot=event.queue_slot,
            )
        case events.Recovered():
            # What nobody worked on for a while would spoil the rates.
            nodes = _without_marks(state.nodes)
            return replace(state, version=version, updated_at=at, owner=event.owner, nodes=nodes)
        case events.Paused():
            return replace(state, version=version, updated_at=at, paused=True, status="paused")
        case events.Resumed():
            nodes = _without_marks(state.nodes)
            resumed = replace(state, version=version, updated_at=at, paused=False, nodes=nodes)
            return replace(resumed, status=_open_status(resumed))
        case events.CancellationRequested():
            return replace(
                state,
                version=version,
                updated_at=at,
                cancel_requested_at=at,
                cancel_cause=event.cause,
                status="cancelling",
            )
        case events.SignalReceived():
            received = ReceivedSignal(event.signal_id, event.name, event.payload)
            return replace(
                state,
                version=version,
                updated_at=at,
                signals=(*state.signals, received),
                signal_ids=state.signal_ids | {event.signal_id},
            )
        case events.UsageRecorded():
            return replace(
                state,
                version=version,
                updated_at=at,
                input_tokens=state.input_tokens + event.input_tokens,
                output_tokens=state.output_tokens + event.output_tokens,
                cache_read_tokens=state.cache_read_tokens + event.cache_read_tokens,
                cache_write_tokens=state.cache_write_tokens + event.cache_write_tokens,
                model_calls=state.model_calls + 1,
                cost=state.cost + event.cost,
                cost_known=state.cost_known and event.cost_known,
            )
        case events.StepStarted() | events.StepRetried() | events.MessageRecorded():
            return _evolve_step(state, event)
        case events.NodeLogged():
            return replace(state, version=version, updated_at=at, nodes=_told(state, event))
        case _:
            raise Diverged(f"{state.execution_id}: {event.TOPIC} is no event of a running execution")


def _told(state: ExecutionState, event: events.NodeLogged) -> Mapping[NodeId, NodeState]:
    """The nodes after one was said to have no place to run, or to have one after all."""
    node_id = NodeId(event.node_id)
    node = state.nodes.get(node_id)
    if node is None or event.event not in (events.UNSCHEDULABLE, events.SCHEDULABLE):
        return state.nodes
    return {**state.nodes, node_id: replace(node, missing=events.missing_of(event))}


def _evolve_step(
    state: ExecutionState, event: events.StepStarted | events.StepRetried | events.MessageRecorded
) -> ExecutionState:
    node_id = NodeId(event.node_id)
    node = state.nodes.get(node_id)
    if node is None:
        raise Diverged(f"{state.execution_id}: {event.TOPIC} for node {node_id}, which never started")
    if isinstance(event, events.StepStarted):
        step = StepState(
            kind=event.kind,
            name=event.name,
            request_hash=event.request_hash,
            purpose=event.purpose,
            child_id=event.child_id,
        )
    else:
        known = node.steps.get(event.step)
        if known is None:
            raise Diverged(f"{state.execution_id}: {event.TOPIC} for step {event.step}, which never started")
        if isinstance(event, events.StepRetried):
            step = replace(known, tries=event.tries + 1)
        else:
            step = replace(known, answer=event)
    after = replace(node, steps={**node.steps, event.step: step})
    return replace(
        state,
        version=event.originator_version,
        updated_at=event.at,
        nodes={**state.nodes, node_id: after},
    )


_NodeEvent = (
    events.NodeStarted
    | events.NodeCompleted
    | events.NodeFailed
    | events.NodeSkipped
    | events.NodeWaiting
    | events.NodeProgressed
    | events.ChunksRecorded
    | events.TimerFired
)


def _evolve_node(state: ExecutionState, event: _NodeEvent) -> ExecutionState:
    node_id = NodeId(event.node_id)
    before = state.nodes.get(node_id)
    after = _node_after(state, before, event)
    active = state.active_nodes + _is_active(after) - _is_active(before)
    waiting = state.waiting_nodes + _is_waiting(after) - _is_waiting(before)
    completed = state.completed_nodes + _is_done(after) - _is_done(before)
    nodes = {**state.nodes, node_id: after}
    current = state.current_node
    if isinstance(event, events.NodeStarted):
        current = event.node_id
    elif current == event.node_id and after.status not in ("running", "waiting", "retrying"):
        current = _latest_unfinished(nodes)
    # 100.0 belongs to the completed execution alone (executions contract 3.2), so the last node of
    # the flow leaves the progress where it was until the result is recorded.
    progress = state.progress
    if completed < state.total_nodes:
        part = after.chunks.share if after.chunks and after.status == "running" else 0.0
        share = round(100.0 * (completed + part) / state.total_nodes, 2)
        progress = max(progress, min(share, 99.99))  # 29,999 of 30,000 would round up to the end
    skips = state.skips
    signals = state.signals
    if isinstance(event, events.NodeCompleted):
        if event.skips:
            skips = skips | {NodeId(skip) for skip in event.skips}
        if before is not None and before.signal:
            signals = _without_first(signals, before.signal)
    status = state.status
    if status in ("running", "waiting"):
        status = "waiting" if active == 0 and waiting > 0 else "running"
    return replace(
        state,
        version=event.originator_version,
        updated_at=event.at,
        status=status,
        nodes=nodes,
        skips=skips,
        signals=signals,
        active_nodes=active,
        waiting_nodes=waiting,
        completed_nodes=completed,
        current_node=current,
        progress=progress,
        retry_count=state.retry_count
        + int(isinstance(event, events.NodeFailed) and event.retry_at is not None),
    )


def _node_after(state: ExecutionState, before: NodeState | None, event: _NodeEvent) -> NodeState:
    match event:
        case events.NodeStarted():
            return NodeState(
                status="running",
                attempt=event.attempt,
                started_version=event.originator_version,
                started_at=before.started_at if before else event.at,
                outcomes=before.outcomes if before else {},
                chunks=before.chunks if before else None,
                steps=before.steps if before else {},
            )
        case events.NodeSkipped():
            return NodeState(status="skipped", started_at=event.at, ended_at=event.at)
        case _:
            if before is None:
                raise Diverged(
                    f"{state.execution_id}: {event.TOPIC} for node {event.node_id}, which never started"
                )
    match event:
        case events.NodeCompleted():
            return replace(
                before,
                status="completed",
                ended_at=event.at,
                output=event.output,
                output_ref=event.output_ref,
                outcomes={},
                chunks=before.chunks and replace(before.chunks, recorded=(), marks=()),
                steps={},
                wake_at=None,
                error=None,
                missing=(),
            )
        case events.NodeFailed():
            return replace(
                before,
                status="failed" if event.retry_at is None else "retrying",
                ended_at=event.at if event.retry_at is None else None,
                error=event.error,
                wake_at=None if event.retry_at is None else Micros(event.retry_at),
                signal="",
                child_id="",
                missing=(),
            )
        case events.NodeWaiting():
            return replace(
                before,
                status="waiting",
                wake_at=None if event.until is None else Micros(event.until),
                signal=event.signal,
                child_id=event.child_id,
                child_flow=event.child_flow,
                child_input=event.child_input,
                on_timeout=event.on_timeout,
            )
        case events.NodeProgressed():
            fresh = {item.index: item for item in event.items}
            outcomes = {**before.outcomes, **fresh}
            steps = _without_items(before.steps, fresh.__contains__)
            return replace(before, outcomes=outcomes, total=event.total, steps=steps)
        case events.ChunksRecorded():
            known = chunks.after(before.chunks, event)
            if known is None:
                raise Diverged(f"{state.execution_id}: chunks of node {event.node_id} don't fit those before")
            steps = _without_items(before.steps, lambda index: chunks.is_in(event.chunks, index))
            return replace(before, chunks=known, steps=steps)
        case events.TimerFired():
            return replace(before, wake_at=None)


def _without_marks(nodes: Mapping[NodeId, NodeState]) -> Mapping[NodeId, NodeState]:
    if not any(node.chunks and node.chunks.marks for node in nodes.values()):
        return nodes
    return {
        node_id: replace(node, chunks=replace(node.chunks, marks=())) if node.chunks else node
        for node_id, node in nodes.items()
    }


def _without_items(steps: Mapping[str, StepState], is_done: Callable[[int], bool]) -> Mapping[str, StepState]:
    """The steps of items that are not done yet: those of the others are never asked for again."""
    if not steps:
        return steps
    return {name: step for name, step in steps.items() if not is_done(item_of(name))}


def _is_active(node: NodeState | None) -> bool:
    """Running, or waiting for a child: the parent stays in memory, so a lost notice can't strand it."""
    return node is not None and (
        node.status == "running" or (node.status == "waiting" and node.child_id != "")
    )


def _is_waiting(node: NodeState | None) -> bool:
    return node is not None and node.status in ("waiting", "retrying") and node.child_id == ""


def _is_done(node: NodeState | None) -> bool:
    return node is not None and node.status in ("completed", "skipped")


def _latest_unfinished(nodes: Mapping[NodeId, NodeState]) -> str | None:
    open_nodes = [
        (node.started_version, node_id)
        for node_id, node in nodes.items()
        if node.status in ("running", "waiting", "retrying")
    ]
    return max(open_nodes)[1] if open_nodes else None


def _without_first(signals: tuple[ReceivedSignal, ...], name: str) -> tuple[ReceivedSignal, ...]:
    for index, received in enumerate(signals):
        if received.name == name:
            return signals[:index] + signals[index + 1 :]
    return signals


def _open_status(state: ExecutionState) -> Status:
    if state.started_at is None:
        return "queued"
    return "waiting" if state.active_nodes == 0 and state.waiting_nodes > 0 else "running"


def _close(
    state: ExecutionState,
    event: events.Completed | events.Failed | events.TimedOut | events.Cancelled,
) -> ExecutionState:
    version, at = event.originator_version, event.at
    closed = replace(
        state,
        version=version,
        updated_at=at,
        ended_at=at,
        current_node=None,
        active_nodes=0,
        waiting_nodes=0,
        deadline_at=None,
    )
    match event:
        case events.Completed():
            return replace(
                closed,
                status="completed",
                progress=100.0,
                output=event.output,
                output_ref=event.output_ref,
            )
        case events.Failed():
            return replace(closed, status="failed", error=event.error, failed_node=event.node_id)
        case events.TimedOut():
            error = events.StepError(
                type="ExecutionTimeout",
                message=f"Execution timed out after {event.timeout_seconds:g} s",
            )
            return replace(closed, status="timed_out", error=error)
        case events.Cancelled():
            # The end of a cancelled execution is when the cancellation was accepted (G7).
            return replace(closed, status="cancelled", ended_at=state.cancel_requested_at or at)
