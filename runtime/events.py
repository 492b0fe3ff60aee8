"""Every event that can be recorded, and the table of their stored names.

Invariants: a released event is never edited. To change one, raise its ``class_version`` and add the
step to ``UPCASTS``; the old shape stays readable for ever (``tests/replay`` holds one stored history a
released version). Stored names are declared here, so classes and files may move.

Events are msgspec structs, not dataclasses: encoding one costs 0.3 us instead of the library's 36 us
(trigger, transcode and save), which is what lets a host write 10,000 events a second.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec

Json = Any
"""A JSON value: what went through, or will go through, the event log."""


class BlobRef(msgspec.Struct, frozen=True, kw_only=True):
    """Claim check: a payload kept in the blob store. ``size`` in bytes; ``sha256`` in hex."""

    sha256: str
    size: int
    media_type: str = "application/json"


class StepError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a step failed. ``type`` is what retry policies match on, e.g. ``TimeoutError``."""

    type: str
    message: str
    traceback: str = ""


class StepLogs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What user code printed or logged during one attempt; each text bounded, ``dropped`` in bytes."""

    stdout: str = ""
    stderr: str = ""
    records: tuple[str, ...] = ()
    dropped: int = 0


class ItemOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one item of a map ended: an output (or a reference to a large one), or an error."""

    index: int
    output: Json = None
    output_ref: BlobRef | None = None
    error: StepError | None = None


class ChunkResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A finished run of items of a wide map: ``first`` to ``first + items - 1``, counted in its source.

    ``results``: a part, one line an item (null for a failed one); ``errors``: one line a failed item. Both
    JSON Lines in the blob store. ``duration_ms``: of working on them, without waiting.
    """

    first: int
    items: int
    failed: int = 0
    results: BlobRef | None = None
    errors: BlobRef | None = None
    duration_ms: float = 0.0


class FileDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file as nodes see it (ability contract 3.1). ``size`` in bytes."""

    file_id: str
    name: str
    content_type: str
    size: int
    sha256: str
    uri: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool a model asks for. ``tool_call_id`` is the model's own, and names the step that answers it."""

    tool_call_id: str
    name: str
    arguments: Json = None


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recorded fact. ``originator_version`` counts from 1 without gaps in each stream.

    ``at``: microseconds since the epoch, UTC. ``by``: the API key id that caused it, or ``system``.
    ``cause``: causation id (a request id, or ``v<n>`` for the event of the same stream that led to it).
    ``corr``: correlation id; empty means the originator id itself.
    """

    TOPIC: ClassVar[str] = ""
    class_version: ClassVar[int] = 1

    originator_id: str = msgspec.field(name="id")
    originator_version: int = msgspec.field(name="v")
    at: int
    by: str = "system"
    cause: str = ""
    corr: str = ""


# --- the execution's life -------------------------------------------------------------------------


class Queued(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Accepted and durable; ``owner`` is the host that holds it. Always version 1.

    ``subject``: the resource it is a run of, e.g. ``workflow:<id>``; empty when it stands alone.
    ``queue_key``: its queue among those of its tenant and flow; empty without one.
    """

    TOPIC = "execution.queued"
    tenant: str
    flow_id: str
    flow_version: str
    source: str
    input: Json = None
    input_ref: BlobRef | None = None
    total_nodes: int
    owner: str
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


class Recovered(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``owner`` took the execution over; from here on the former owner's appends conflict."""

    TOPIC = "execution.recovered"
    owner: str


class Started(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Admitted: the first nodes may be scheduled. ``queue_slot``: what it holds of its queue to its end."""

    TOPIC = "execution.started"
    queue_slot: int | None = None


class Paused(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.paused"


class Resumed(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.resumed"


class CancellationRequested(Event, frozen=True, kw_only=True, omit_defaults=True):
    """From here on cancelled is the only possible end (gateway rule G7)."""

    TOPIC = "execution.cancellation_requested"
    previous_status: str
    reason: str = ""


class Cancelled(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.cancelled"


class Completed(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.completed"
    output: Json = None
    output_ref: BlobRef | None = None


class Failed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``node_id`` is empty when the flow itself failed (e.g. its output expression)."""

    TOPIC = "execution.failed"
    error: StepError
    node_id: str = ""


class TimedOut(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.timed_out"
    timeout_seconds: float


# --- nodes ----------------------------------------------------------------------------------------


class NodeStarted(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``attempt`` counts from 1. ``where`` names the worker once one was chosen, else the host."""

    TOPIC = "execution.node_started"
    node_id: str
    attempt: int = 1
    where: str = ""


class NodeWaiting(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The node holds no resources until its timer fires, its signal or its child's end arrives.

    Exactly one of ``signal``, ``child_id`` is set, or neither for a plain timer; ``until`` is the
    timer (and the time-out of a signal). ``child_flow``: ``id``, or ``id@version``.
    """

    TOPIC = "execution.node_waiting"
    node_id: str
    attempt: int = 1
    until: int | None = None
    signal: str = ""
    child_id: str = ""
    child_flow: str = ""
    child_input: Json = None
    on_timeout: Literal["fail", "continue"] = "fail"


class NodeProgressed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A batch of finished map items; ``total`` is the number of items of the map."""

    TOPIC = "execution.node_progressed"
    node_id: str
    attempt: int = 1
    total: int = 0
    items: tuple[ItemOutcome, ...] = ()


class ChunksRecorded(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Finished chunks of a wide map; none of their items runs again. The first one tells the source.

    ``total``: items of the whole source, where that is known. ``source``: its fingerprint; one that has
    another must not be continued. ``done`` and ``failed`` count all items recorded so far, these included;
    ``rate``: items per second lately, 0 when it is too early to say.
    """

    TOPIC = "execution.chunks_recorded"
    node_id: str
    attempt: int = 1
    total: int | None = None
    source: str = ""
    chunks: tuple[ChunkResult, ...] = ()
    done: int = 0
    failed: int = 0
    rate: float = 0.0


class NodeCompleted(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``skips`` are nodes a branch decided against."""

    TOPIC = "execution.node_completed"
    node_id: str
    attempt: int = 1
    output: Json = None
    output_ref: BlobRef | None = None
    skips: tuple[str, ...] = ()
    logs: StepLogs | None = None
    where: str = ""


class NodeFailed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``retry_at``: when the next attempt is due; none when the failure is final."""

    TOPIC = "execution.node_failed"
    node_id: str
    error: StepError
    attempt: int = 1
    retry_at: int | None = None
    logs: StepLogs | None = None
    where: str = ""


class NodeSkipped(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "execution.node_skipped"
    node_id: str
    reason: Literal["condition", "branch", "predecessors"]


class TimerFired(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The timer of a waiting node (set by ``NodeWaiting.until``) came due."""

    TOPIC = "execution.timer_fired"
    node_id: str


class SignalReceived(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``signal_id`` makes a repeated delivery harmless."""

    TOPIC = "execution.signal_received"
    signal_id: str
    name: str
    payload: Json = None


# --- steps: what one attempt of an agent node does, call by call --------------------------------------


class StepStarted(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A call to a model or a tool begins. ``step`` names it within its node: the same after a crash.

    ``request_hash``: SHA-256 hex of the whole request, secrets left out; ``request`` is the part worth
    showing (a tool's arguments, a model call's counts), bounded. ``purpose``: empty for the conversation
    itself, else what the call serves, e.g. ``compaction``. ``child_id``: the execution a flow tool starts.
    """

    TOPIC = "execution.step_started"
    node_id: str
    attempt: int = 1
    step: str
    kind: Literal["model", "tool"]
    name: str
    request_hash: str = ""
    request: Json = None
    purpose: str = ""
    child_id: str = ""


class StepRetried(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The call is made again: it failed, or a crash took its answer. Text it produced so far is void.

    ``tries`` counts the tries made so far; ``retry_at`` is when the next is due.
    """

    TOPIC = "execution.step_retried"
    node_id: str
    attempt: int = 1
    step: str
    tries: int
    error: StepError
    retry_at: int


class MessageRecorded(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A step's answer, once and for good: a replay takes it from here. Deltas were only on the live feed.

    ``content``: the text (or a tool's result); ``content_ref`` instead when it is large. ``raw``: the
    answer as the model library needs it back, when that is more than the rest says. ``name``: the tool
    that answered. ``duration_ms``: from the last try's beginning.
    """

    TOPIC = "execution.message_recorded"
    node_id: str
    attempt: int = 1
    step: str
    role: Literal["assistant", "tool"]
    content: Json = None
    content_ref: BlobRef | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_error: bool = False
    purpose: str = ""
    raw: Json = None
    raw_ref: BlobRef | None = None
    duration_ms: float = 0.0


class UsageRecorded(Event, frozen=True, kw_only=True, omit_defaults=True):
    """What one model call took. ``cost`` in US dollars; 0 and ``cost_known`` false without a price."""

    TOPIC = "execution.usage_recorded"
    node_id: str
    attempt: int = 1
    step: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: float = 0.0
    cost_known: bool = False
    purpose: str = ""
    duration_ms: float = 0.0


class NodeLogged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something else worth telling about a running node, e.g. ``compaction_start``. An open set."""

    TOPIC = "execution.node_logged"
    node_id: str
    attempt: int = 1
    event: str
    detail: Json = None


UNSCHEDULABLE = "unschedulable"
"""Logged when no node of the cluster can ever hold a step; ``detail``: ``{"missing": [text, ...]}``."""

SCHEDULABLE = "schedulable"
"""Logged when one can after all."""


def missing_of(event: NodeLogged) -> tuple[str, ...]:
    """What an ``UNSCHEDULABLE`` event says is missing; nothing of any other."""
    detail: Any = event.detail if event.event == UNSCHEDULABLE else {}
    return tuple(str(text) for text in detail.get("missing", ()))


# --- callbacks: a stream of their own, so that nothing follows an execution's terminal event --------


class CallbackScheduled(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "callback.scheduled"
    execution_id: str
    tenant: str
    url: str
    source: str
    due_at: int


class CallbackFailed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt failed. ``status_code`` is 0 when no answer came. ``retry_at`` none = given up."""

    TOPIC = "callback.failed"
    attempt: int
    error: str
    status_code: int = 0
    retry_at: int | None = None


class CallbackDelivered(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "callback.delivered"
    attempt: int
    status_code: int


# --- administration -------------------------------------------------------------------------------


class FlowPublished(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A new latest version. ``definition`` is the checked document as plain JSON."""

    TOPIC = "flow.published"
    tenant: str
    flow_id: str
    flow_version: str
    definition: Json


class FlowDisabled(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "flow.disabled"


class FlowEnabled(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "flow.enabled"


class ApiKeyCreated(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``key_hash``: SHA-256 hex of the secret, which is shown once and never stored."""

    TOPIC = "api_key.created"
    key_id: str
    key_hash: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    requests_per_minute: int | None = None
    open_streams_max: int | None = None
    unfinished_executions_max: int | None = None
    expires_at: int | None = None


class ApiKeyRevoked(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "api_key.revoked"


# --- resources: what the agent contracts keep between runs --------------------------------------------


class ResourceCreated(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An agent, a workflow, a task, ... of a tenant. ``document``: its fields, without any secret."""

    TOPIC = "resource.created"
    tenant: str
    kind: str
    resource_id: str
    document: dict[str, Json]


class ResourceChanged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """``changes``: fields that got new values; the others stay."""

    TOPIC = "resource.changed"
    changes: dict[str, Json]


class ResourceDeleted(Event, frozen=True, kw_only=True, omit_defaults=True):
    TOPIC = "resource.deleted"


EVENT_TYPES: dict[str, type[Event]] = {
    cls.TOPIC: cls
    for cls in (
        Queued,
        Recovered,
        Started,
        Paused,
        Resumed,
        CancellationRequested,
        Cancelled,
        Completed,
        Failed,
        TimedOut,
        NodeStarted,
        NodeWaiting,
        NodeProgressed,
        ChunksRecorded,
        NodeCompleted,
        NodeFailed,
        NodeSkipped,
        TimerFired,
        SignalReceived,
        StepStarted,
        StepRetried,
        MessageRecorded,
        UsageRecorded,
        NodeLogged,
        CallbackScheduled,
        CallbackFailed,
        CallbackDelivered,
        FlowPublished,
        FlowDisabled,
        FlowEnabled,
        ApiKeyCreated,
        ApiKeyRevoked,
        ResourceCreated,
        ResourceChanged,
        ResourceDeleted,
    )
}
"""Stored name to class: the one table every process that reads the log loads."""

TERMINAL_EVENTS = (Completed, Failed, Cancelled, TimedOut)
"""Exactly one of these ends an execution's stream."""

UPCASTS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""(stored name, class version) to the step that lifts its fields to the next class version."""
