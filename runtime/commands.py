"""Everything an execution can be asked. Imperative; may be refused.

Each carries what the aggregate must not find out by itself: the time (``at``), who asks (``by``), the
causation id (``cause``), and any random draw.
"""

from typing import Literal

import msgspec

from runtime.events import (
    BlobRef,
    ChunkResult,
    FileDescriptor,
    ItemOutcome,
    Json,
    StepError,
    StepLogs,
    ToolCall,
)
from runtime.ids import Micros, NodeId


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    at: Micros
    by: str = "system"
    cause: str = ""


class StartExecution(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """``placement`` empty: what the flow says. ``queue_key``, ``priority``: see ``queue_keys.placed``."""

    execution_id: str
    tenant: str
    flow_id: str
    flow_version: str
    source: str
    input: Json = None
    input_ref: BlobRef | None = None
    correlation_id: str = ""
    timeout_seconds: float | None = None
    parent_id: str = ""
    parent_node: str = ""
    callback_url: str = ""
    debug: bool = False
    files: tuple[FileDescriptor, ...] = ()
    request_key: str = ""
    subject: str = ""
    placement: Literal["", "pooled", "dedicated"] = ""
    owner: str = ""
    queue_key: str = ""
    priority: int = 0


class TakeOver(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Claim the execution for ``owner``; the claim fences every other writer."""

    owner: str


class Admit(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Leave the queue: nodes may start. ``queue_slot``: which of its queue's slots it holds to its end."""

    queue_slot: int | None = None


class StartNode(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    node_id: NodeId
    where: str = ""


class SkipNode(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    node_id: NodeId
    reason: Literal["condition", "branch", "predecessors"]


class RecordWaiting(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The node waits: for ``until``, for ``signal``, or for the child execution ``child_id``."""

    node_id: NodeId
    attempt: int
    until: Micros | None = None
    signal: str = ""
    child_id: str = ""
    child_flow: str = ""
    child_input: Json = None
    on_timeout: Literal["fail", "continue"] = "fail"


class RecordProgress(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    node_id: NodeId
    attempt: int
    total: int
    items: tuple[ItemOutcome, ...]


class RecordChunks(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Chunks of a wide map that are done (fields as in ``events.ChunksRecorded``)."""

    node_id: NodeId
    attempt: int
    source: str
    total: int | None = None
    chunks: tuple[ChunkResult, ...] = ()


class RecordCompleted(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    node_id: NodeId
    attempt: int
    output: Json = None
    output_ref: BlobRef | None = None
    skips: tuple[NodeId, ...] = ()
    logs: StepLogs | None = None
    where: str = ""


class RecordFailed(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """``draw``: random number in [0, 1) for the back-off's jitter."""

    node_id: NodeId
    attempt: int
    error: StepError
    draw: float
    logs: StepLogs | None = None
    where: str = ""


class FireTimer(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The timer of a waiting node is due (ignored when the node no longer waits)."""

    node_id: NodeId
    draw: float = 0.5


class Signal(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    signal_id: str
    name: str
    payload: Json = None


class RecordChildEnd(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The child execution a node waits for reached its end; ``error`` is None when it completed."""

    node_id: NodeId
    child_id: str
    output: Json = None
    output_ref: BlobRef | None = None
    error: StepError | None = None
    draw: float = 0.5


class BeginStep(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """A call to a model or a tool is about to be made (fields as in ``events.StepStarted``).

    A step that began before and has no answer is made again, and that is recorded; one that was answered
    records nothing.
    """

    node_id: NodeId
    attempt: int
    step: str
    kind: Literal["model", "tool"]
    name: str
    request_hash: str = ""
    request: Json = None
    purpose: str = ""
    child_id: str = ""


class RetryStep(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The call failed and is made again at ``retry_at``."""

    node_id: NodeId
    attempt: int
    step: str
    error: StepError
    retry_at: Micros


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one model call took (fields as in ``events.UsageRecorded``)."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0
    cost_known: bool = False


class EndStep(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The call was answered (fields as in ``events.MessageRecorded``); ``usage`` for a model's."""

    node_id: NodeId
    attempt: int
    step: str
    role: Literal["assistant", "tool"]
    content: Json = None
    content_ref: BlobRef | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_error: bool = False
    raw: Json = None
    raw_ref: BlobRef | None = None
    duration_ms: float = 0.0
    usage: Usage | None = None


class LogNode(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Something worth telling about a running node."""

    node_id: NodeId
    attempt: int
    event: str
    detail: Json = None


StepNews = BeginStep | RetryStep | EndStep | LogNode | RecordProgress | RecordChunks
"""What a running node tells of itself while it goes on."""


class Pause(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    pass


class Resume(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    pass


class RequestCancel(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    reason: str = ""


class ConfirmCancelled(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Nothing of the execution runs any more (or its grace period ended and it was killed)."""


class Complete(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """All nodes ended and the flow's output was computed."""

    output: Json = None
    output_ref: BlobRef | None = None


class Fail(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The flow itself failed, e.g. its output expression."""

    error: StepError


class TimeOut(Command, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """The execution's deadline passed."""
