"""What an execution may do next. Pure: returns decisions, the shells carry them out."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from runtime.ids import Micros, NodeId
from runtime.plan import Plan
from runtime.state import ExecutionState, NodeState

SkipReason = Literal["condition", "branch", "predecessors"]

_DONE = ("completed", "skipped")


class Due(NamedTuple):
    """Nodes in graph order: ``start`` may start now, ``skip`` never will (with the reason)."""

    start: tuple[NodeId, ...]
    skip: tuple[tuple[NodeId, SkipReason], ...]


NOTHING = Due((), ())


def is_open_for_nodes(state: ExecutionState) -> bool:
    """Whether any node may start: admitted, neither closed, cancelling nor paused."""
    return (
        state.started_at is not None
        and not state.is_closed
        and state.cancel_requested_at is None
        and not state.paused
    )


def due_nodes(state: ExecutionState, plan: Plan, now: Micros, among: Iterable[NodeId] | None = None) -> Due:
    """Nodes that may start or must be skipped at ``now``, in graph order; no repeats.

    ``among``: look at these only (the dependents of what just ended); None = at the whole plan.
    Join rule: a node is ready when all it needs ended and, if it needs any, at least one completed; a
    node whose predecessors were all skipped is skipped too.
    """
    if not is_open_for_nodes(state):
        return NOTHING
    start: list[NodeId] = []
    skip: list[tuple[NodeId, SkipReason]] = []
    for node_id in plan.steps if among is None else among:
        node = state.nodes.get(node_id)
        if node is not None:
            if node.status == "retrying" and node.wake_at is not None and node.wake_at <= now:
                start.append(node_id)
            continue
        needs = plan.steps[node_id].needs
        if any(not _is_done(state.nodes.get(need)) for need in needs):
            continue
        if node_id in state.skips:
            skip.append((node_id, "branch"))
        elif needs and all(state.nodes[need].status == "skipped" for need in needs):
            skip.append((node_id, "predecessors"))
        else:
            start.append(node_id)
    return Due(tuple(start), tuple(skip)) if start or skip else NOTHING


def _is_done(node: NodeState | None) -> bool:
    return node is not None and node.status in _DONE


def is_finished(state: ExecutionState) -> bool:
    """Every node ended well; only the flow's output is still to be computed."""
    return is_open_for_nodes(state) and state.completed_nodes == state.total_nodes


def due_timers(state: ExecutionState, now: Micros) -> tuple[NodeId, ...]:
    """Waiting nodes whose timer came due, in order of their start."""
    return tuple(
        node_id
        for node_id, node in state.nodes.items()
        if node.status == "waiting" and node.wake_at is not None and node.wake_at <= now
    )


def is_overdue(state: ExecutionState, now: Micros) -> bool:
    """The execution's own deadline passed."""
    return (
        state.deadline_at is not None
        and state.deadline_at <= now
        and not state.is_closed
        and state.cancel_requested_at is None
    )


def wake_at(state: ExecutionState) -> Micros | None:
    """The next time by itself that something is due; None when only a message can move it."""
    if state.is_closed:
        return None
    times: list[Micros] = []
    # After an accepted cancel the deadline moves nothing; reported, it would wake its host for ever.
    if state.deadline_at is not None and state.cancel_requested_at is None:
        times.append(state.deadline_at)
    if is_open_for_nodes(state):
        times += [node.wake_at for node in state.nodes.values() if node.wake_at is not None]
    return min(times, default=None)


def is_idle(state: ExecutionState) -> bool:
    """Nothing runs: the execution may leave memory until its ``wake_at`` or a message."""
    return (
        not state.is_closed
        and state.active_nodes == 0
        and state.started_at is not None
        and (state.waiting_nodes > 0 or state.paused)
    )
