"""What the server says about flows and executions, as Python. Unknown fields are left out.

Times are aware datetimes in UTC. A view is a moment's answer: it never changes, and a later one is asked for.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from runtime.events import EVENT_TYPES, TERMINAL_EVENTS, Event
from runtime.state import TERMINAL

BATCH_ENDED = TERMINAL | {"archived"}
"""``archived``: a batch whose executions have left the log."""

TERMINAL_TYPES = frozenset(kind.TOPIC for kind in TERMINAL_EVENTS)
"""Event types after which nothing follows in an execution."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PublishedFlow(msgspec.Struct, frozen=True, kw_only=True):
    """``changed`` is false when this very content was the latest version already."""

    flow_id: str
    version: str
    name: str = ""
    tenant: str = ""
    changed: bool = True
    enabled: bool = True


class ErrorInfo(msgspec.Struct, frozen=True):
    """Why it failed. ``type`` is the error's class name, e.g. ``TimeoutError``."""

    type: str
    message: str


class ItemCounts(msgspec.Struct, frozen=True):
    done: int
    total: int


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was touched. ``error`` is the latest attempt's, as ``type: message``.

    ``missing``: what no machine of the cluster has, while the node can't be placed for it.
    """

    node_id: str
    status: str
    attempt: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    where: str = ""
    error: str | None = None
    wakes_at: datetime | None = None
    waits_for: str | None = None
    child_id: str | None = None
    items: ItemCounts | None = None
    missing: tuple[str, ...] = ()

    @property
    def duration(self) -> timedelta | None:
        """From the first attempt's start to the end; None until then."""
        return self.ended_at - self.started_at if self.started_at and self.ended_at else None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An execution as it stood when it was asked for. ``nodes`` are empty in lists."""

    execution_id: str
    flow_id: str
    flow_version: str
    status: str
    tenant: str = ""
    source: str = ""
    progress: float = 0.0
    current_node: str | None = None
    completed_nodes: int = 0
    total_nodes: int = 0
    retry_count: int = 0
    parent_id: str | None = None
    correlation_id: str = ""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    version: int = 0
    position: int = 0
    failed_node: str | None = None
    error: ErrorInfo | None = None
    input: Any = None
    output: Any = None
    nodes: tuple[NodeInfo, ...] = ()

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def duration(self) -> timedelta | None:
        """From its start to its end; None until then."""
        return self.ended_at - self.started_at if self.started_at and self.ended_at else None


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One recorded event. ``position`` is its place in the whole log: ``events(after=position)`` goes on.

    ``data`` holds the event's own fields as stored; those that have their default are left out.
    """

    position: int
    stream: str
    version: int
    type: str
    at: datetime
    by: str = "system"
    cause: str = ""
    correlation_id: str = ""
    data: dict[str, Any] = {}

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_TYPES

    @cached_property
    def event(self) -> Event | None:
        """The event as a class of `runtime.events`, for ``match``; None for a type this version lacks."""
        kind = EVENT_TYPES.get(self.type)
        if kind is None:
            return None
        since = self.at - _EPOCH
        micros = since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
        head = {"id": self.stream, "v": self.version, "at": micros, "by": self.by, "cause": self.cause}
        try:
            return msgspec.convert({**self.data, **head, "corr": self.correlation_id}, kind)
        except msgspec.ValidationError:
            return None  # of an older or newer server; type and data say what it is


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Items. ``total`` and ``queued`` None: how many there are is not known before the source's end."""

    total: int | None = None
    queued: int | None = None
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def done(self) -> int:
        """Those that will not change any more."""
        return self.completed + self.failed + self.cancelled


class BatchSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it stood when it was asked for. It completes when every item has ended, failed ones too.

    ``rate``: items a second.
    """

    batch_id: str
    name: str = ""
    flow_id: str
    flow_version: str
    status: str
    counts: BatchCounts
    rate: float | None = None
    seconds_left: float | None = None
    concurrency: int = 0
    source: str = ""
    error: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in BATCH_ENDED


class ItemResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one input; ``index`` is its place among them. ``error`` None: it completed."""

    index: int
    output: Any = None
    error: ErrorInfo | None = None


class FailedItem(msgspec.Struct, frozen=True, kw_only=True):
    """An input that failed, and why."""

    index: int
    input: Any
    error: ErrorInfo


class GraphNode(msgspec.Struct, frozen=True):
    id: str
    name: str
    kind: str
    needs: tuple[str, ...] = ()


class Graph(msgspec.Struct, frozen=True):
    """Nodes in graph order; each names those it needs."""

    nodes: tuple[GraphNode, ...]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What a message to an execution did: its status before and after."""

    execution_id: str
    previous_status: str
    status: str
    version: int
