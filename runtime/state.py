"""What is known about one execution: the fold of its events. Data only.

Frozen: ``evolve`` returns a new state, so a reader (the writer thread, an inline read model) may keep one
while the actor goes on.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from runtime.chunks import ChunkState
from runtime.events import BlobRef, FileDescriptor, ItemOutcome, Json, MessageRecorded, StepError
from runtime.ids import Micros, NodeId

Status = Literal[
    "queued",
    "running",
    "waiting",
    "paused",
    "cancelling",
    "completed",
    "failed",
    "cancelled",
    "timed_out",
]

TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "timed_out"})

NodeStatus = Literal["running", "waiting", "retrying", "completed", "failed", "skipped"]


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """One call of an agent node. ``answer`` None: it was made, and no answer is recorded.

    ``tries`` counts the calls made so far. ``child_id``: the execution a flow tool started.
    """

    kind: Literal["model", "tool"]
    name: str
    request_hash: str = ""
    purpose: str = ""
    tries: int = 1
    child_id: str = ""
    answer: MessageRecorded | None = None


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """One node that was touched; a node without an entry was not reached yet.

    ``wake_at``: the timer of a waiting node, or when the next attempt of a retrying one is due.
    ``outcomes``: recorded items of a map, by index. ``total``: its number of items once known.
    ``chunks``: what is recorded of a wide map; its list of chunks is dropped when the node completes.
    ``steps``: the calls of an agent node, in the order they began; kept across attempts, so that no
    answered call is made again.
    ``started_version``: the ``NodeStarted`` of the latest attempt; it causes that attempt's outcome.
    ``missing``: what no node of the cluster has, while a running one can't be placed.
    """

    status: NodeStatus
    attempt: int = 1
    started_version: int = 0
    started_at: int = 0
    ended_at: int | None = None
    output: Json = None
    output_ref: BlobRef | None = None
    error: StepError | None = None
    wake_at: Micros | None = None
    signal: str = ""
    child_id: str = ""
    child_flow: str = ""
    child_input: Json = None
    on_timeout: Literal["fail", "continue"] = "fail"
    outcomes: Mapping[int, ItemOutcome] = {}
    total: int = 0
    chunks: ChunkState | None = None
    steps: Mapping[str, StepState] = {}
    missing: tuple[str, ...] = ()


def item_prefix(index: int) -> str:
    """What the steps of one item of a map begin with: their names are unique in the whole node."""
    return f"{index}."


def item_of(step: str) -> int:
    """The index of the item a step belongs to; -1 for one of the node itself."""
    index, dot, _ = step.partition(".")
    return int(index) if dot and index.isdecimal() else -1


class ReceivedSignal(msgspec.Struct, frozen=True):
    signal_id: str
    name: str
    payload: Json


class ExecutionState(msgspec.Struct, frozen=True, kw_only=True):
    """Counts are of nodes; ``completed_nodes`` are those completed or skipped, each once.

    ``active`` nodes hold resources now; ``waiting`` ones hold none. ``progress`` is 0.0-100.0, never
    falls, and is 100.0 only when completed. ``signals`` arrived before a node waited for them.
    ``queue_slot``: held from the start to the end; None without a bound on its queue's concurrency.
    ``cost``: US dollars; ``cost_known`` is false once a model without a price was called.
    """

    execution_id: str
    version: int
    status: Status
    tenant: str
    flow_id: str
    flow_version: str
    source: str
    by: str
    correlation_id: str
    owner: str
    total_nodes: int
    created_at: int
    updated_at: int
    input: Json = None
    input_ref: BlobRef | None = None
    started_at: int | None = None
    ended_at: int | None = None
    deadline_at: Micros | None = None
    timeout_seconds: float | None = None
    placement: Literal["pooled", "dedicated"] = "pooled"
    parent_id: str = ""
    parent_node: str = ""
    callback_url: str = ""
    debug: bool = False
    files: tuple[FileDescriptor, ...] = ()
    request_key: str = ""
    subject: str = ""
    queue_key: str = ""
    priority: int = 0
    queue_slot: int | None = None
    nodes: Mapping[NodeId, NodeState] = {}
    skips: frozenset[NodeId] = frozenset()
    completed_nodes: int = 0
    active_nodes: int = 0
    waiting_nodes: int = 0
    current_node: str | None = None
    progress: float = 0.0
    retry_count: int = 0
    paused: bool = False
    cancel_requested_at: int | None = None
    cancel_cause: str = ""
    signals: tuple[ReceivedSignal, ...] = ()
    signal_ids: frozenset[str] = frozenset()
    output: Json = None
    output_ref: BlobRef | None = None
    error: StepError | None = None
    failed_node: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model_calls: int = 0
    cost: float = 0.0
    cost_known: bool = True

    @property
    def is_closed(self) -> bool:
        return self.status in TERMINAL
