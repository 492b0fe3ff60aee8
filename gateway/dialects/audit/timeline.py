"""What happened to each node of an execution, attempt by attempt, read from its events. Pure.

From the log and not from the tracked read model, so that it never lags the status beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.house_api import iso, iso_or_none
from runtime import chunks, events
from runtime.events import Event, StepError, StepLogs
from runtime.ids import NodeId
from runtime.state import ExecutionState

_UNENDED = frozenset({"running", "waiting", "retrying"})


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """``where`` names the worker or host. ``retry_at``: when the next attempt was due."""

    attempt: int
    status: str
    started_at: str
    ended_at: str | None
    where: str
    error: StepError | None
    retry_at: str | None
    logs: StepLogs | None


class Items(msgspec.Struct, frozen=True, kw_only=True):
    """How far a map is. ``rate``: items per second lately; it and the seconds left are told of wide maps.

    ``total`` is null while nobody knows it.
    """

    done: int
    total: int | None
    failed: int = 0
    rate: float | None = None
    seconds_left: float | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """``attempt``, ``where`` and ``error`` are those of the latest attempt; 0 attempts: it was skipped.

    ``items``: of a map, those that ended so far and how many there are. ``missing``: what no machine of the
    cluster has, while the node can't be placed for it.
    """

    node_id: str
    status: str
    attempt: int
    started_at: str | None
    ended_at: str | None
    where: str
    error: str | None
    wakes_at: str | None
    waits_for: str | None
    child_id: str | None
    items: Items | None
    missing: list[str]
    attempts: list[Attempt]


class _Open:
    """An attempt while its events are read."""

    def __init__(self, started: events.NodeStarted) -> None:
        self.number = started.attempt
        self.started_at = started.at
        self.where = started.where
        self.status = "running"
        self.ended_at: int | None = None
        self.error: StepError | None = None
        self.retry_at: int | None = None
        self.logs: StepLogs | None = None

    def end(self, event: events.NodeCompleted | events.NodeFailed) -> None:
        self.status = "completed" if isinstance(event, events.NodeCompleted) else "failed"
        self.ended_at = event.at
        self.where = event.where or self.where
        self.logs = event.logs
        if isinstance(event, events.NodeFailed):
            self.error, self.retry_at = event.error, event.retry_at

    def shown(self, status: str) -> Attempt:
        return Attempt(
            attempt=self.number,
            status=self.status if self.ended_at is not None else status,
            started_at=iso(self.started_at),
            ended_at=iso_or_none(self.ended_at),
            where=self.where,
            error=self.error,
            retry_at=iso_or_none(self.retry_at),
            logs=self.logs,
        )


def timeline(state: ExecutionState, history: Iterable[Event]) -> list[Node]:
    """Nodes in the order in which they were first touched; ``state`` is the fold of ``history``."""
    attempts: dict[str, list[_Open]] = {node_id: [] for node_id in state.nodes}
    progressed: dict[str, dict[int, bool]] = {}
    chunked: dict[str, events.ChunksRecorded] = {}
    for event in history:
        match event:
            case events.NodeStarted():
                attempts[event.node_id].append(_Open(event))
            case events.NodeCompleted() | events.NodeFailed():
                attempts[event.node_id][-1].end(event)
            case events.NodeProgressed():
                known = progressed.setdefault(event.node_id, {})
                known.update({item.index: item.error is not None for item in event.items})
            case events.ChunksRecorded():
                chunked[event.node_id] = event
            case _:
                continue
    return [
        _node(state, node_id, made, _items(state, node_id, progressed.get(node_id), chunked.get(node_id)))
        for node_id, made in attempts.items()
    ]


def _items(
    state: ExecutionState,
    node_id: str,
    items: dict[int, bool] | None,
    latest: events.ChunksRecorded | None,
) -> Items | None:
    node = state.nodes[NodeId(node_id)]
    if node.chunks is not None:
        known = node.chunks
        rate = latest.rate if latest is not None and node.status == "running" and not state.is_closed else 0.0
        return Items(
            done=known.done,
            total=known.total,
            failed=known.failed,
            rate=rate or None,
            seconds_left=chunks.seconds_left(known.total, known.done, rate),
        )
    return None if items is None else Items(done=len(items), total=node.total, failed=sum(items.values()))


def _node(state: ExecutionState, node_id: str, made: list[_Open], items: Items | None) -> Node:
    node = state.nodes[NodeId(node_id)]
    latest = made[-1] if made else None
    # What still ran when the execution ended was given up; its own outcome will never be recorded.
    status = "abandoned" if state.is_closed and node.status in _UNENDED else node.status
    error = latest.error if latest else None
    return Node(
        node_id=node_id,
        status=status,
        attempt=latest.number if latest else 0,
        started_at=iso(node.started_at) if node.started_at else None,
        ended_at=iso_or_none(node.ended_at),
        where=latest.where if latest else "",
        error=f"{error.type}: {error.message}" if error else None,
        wakes_at=None if state.is_closed else iso_or_none(node.wake_at),
        waits_for=node.signal or None,
        child_id=node.child_id or None,
        items=items,
        missing=[] if state.is_closed else list(node.missing),
        attempts=[each.shown(status) for each in made],
    )


NODE_EXAMPLE = {
    "node_id": "greet",
    "status": "completed",
    "attempt": 1,
    "started_at": "2026-01-31T12:00:00.004211Z",
    "ended_at": "2026-01-31T12:00:00.005002Z",
    "where": "host-1",
    "error": None,
    "wakes_at": None,
    "waits_for": None,
    "child_id": None,
    "items": None,
    "missing": [],
    "attempts": [
        {
            "attempt": 1,
            "status": "completed",
            "started_at": "2026-01-31T12:00:00.004211Z",
            "ended_at": "2026-01-31T12:00:00.005002Z",
            "where": "host-1",
            "error": None,
            "retry_at": None,
            "logs": None,
        }
    ],
}
