"""The compiled form of a flow: what ``decide`` and the shells need, and nothing else.

A plan is immutable and derived from one published definition (see ``graph.compile_flow``). Steps stand in
graph order: every step comes after those it needs.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import msgspec

from runtime.agent_spec import AgentSpec, ToolSpec
from runtime.events import Json
from runtime.ids import SECOND, FlowId, FlowVersion, Micros, NodeId
from runtime.packages import Code
from runtime.placement import Resources
from runtime.queues import QueueRule

ON_TIMEOUT = Literal["fail", "continue"]
PLACEMENT = Literal["pooled", "dedicated"]

# --- what a step asks its shell to do ---------------------------------------------------------------


class Output(msgspec.Struct, frozen=True):
    """The step is done: it was computed without any effect. ``skips``: nodes a branch decided against."""

    value: Json
    skips: tuple[NodeId, ...] = ()


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Hold nothing until ``delay_seconds`` passed, or ``until``, or ``signal`` arrived (first of them).

    With neither delay nor until, wait for the signal for ever. Without a signal it is a plain timer.
    """

    delay_seconds: float | None = None
    until: Micros | None = None
    signal: str = ""
    on_timeout: ON_TIMEOUT = "fail"


class StartChild(msgspec.Struct, frozen=True):
    """Run another published flow of the same tenant and wait for its end. No ``version``: the latest."""

    flow_id: FlowId
    input: Json
    version: FlowVersion = FlowVersion("")

    @property
    def flow(self) -> str:
        """Both in one text: ``id``, or ``id@version``, as ``NodeWaiting.child_flow`` has it."""
        return f"{self.flow_id}@{self.version}" if self.version else self.flow_id


class CallFunction(msgspec.Struct, frozen=True):
    """Call a Python function (``module:qualname``) in a worker process."""

    function: str
    arguments: Mapping[str, Json]


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``body`` is text or absent; ``json`` wins over it when not None."""

    method: str
    url: str
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    json: Json = None
    body: str | None = None
    fail_on_status: bool = True


class ReadText(msgspec.Struct, frozen=True):
    """Read a text file: an ``artifact://`` URI, or a path below the configured files root."""

    uri: str
    encoding: str = "utf-8"


class MapOver(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``each`` for every item with at most ``concurrency`` in flight; results keep their order.

    The output is ``{"results": [...], "errors": [{"index", "error"}]}``; a failed item's result is null.
    ``on_error`` ``fail``: the first item out of attempts fails the node.
    """

    items: tuple[Json, ...]
    each: "Step"
    concurrency: int = 8
    on_error: Literal["fail", "keep"] = "keep"


SOURCE_FORMAT = Literal["", "jsonl", "csv", "parquet"]


class MapSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where the items of a wide map are read from: exactly one of ``uri`` and ``dataset``.

    ``uri``: a path, an ``artifact://`` or other URL, or a folder pattern (``*``, ``**``). ``format`` empty:
    by the suffix. ``dataset``: another wide map's output (``datasets.Dataset`` as plain JSON), or the marker
    of a stored value (``values``): a table, a file of records, a JSON array.
    ``shard`` ``(i, n)``: only the items with ``index % n == i``; they are counted from 0 again.
    """

    uri: str = ""
    format: SOURCE_FORMAT = ""
    dataset: Json = None
    shard: tuple[int, int] | None = None


class WideMap(msgspec.Struct, frozen=True, kw_only=True):
    """Run ``each`` for every item of a stream, in chunks; the output is a ``datasets.Dataset`` in order.

    ``source``: a ``MapSource``, or the items themselves. ``document``: ``each`` as it is written, for the
    process that evaluates it. ``chunk_items`` None: as many as take ``chunk_seconds``. ``concurrency``:
    chunks in flight for kinds that workers do, items in flight for the others. ``failures_max_share``: of
    all items; more fail the node (``on_error`` ``keep`` only).
    """

    source: "MapSource | tuple[Json, ...]"
    each: "Step"
    document: Mapping[str, Json]
    chunk_items: int | None = None
    chunk_seconds: float = 1.0
    concurrency: int = 8
    on_error: Literal["fail", "keep"] = "keep"
    failures_max_share: float | None = None


class RunAgent(msgspec.Struct, frozen=True):
    """Talk to a model until it has answered, tools included (see ``agent_spec``).

    ``plain``: the step's output is the answer alone, not a whole ``AgentOutput``.
    """

    spec: AgentSpec
    plain: bool = False


class CallTool(msgspec.Struct, frozen=True):
    """Call one tool once, without a model. ``name``: the tool's own name on an MCP server, else empty."""

    tool: ToolSpec
    name: str
    arguments: Mapping[str, Json]
    secrets: Mapping[str, str] = {}


Action = (
    Output
    | Wait
    | StartChild
    | CallFunction
    | HttpRequest
    | ReadText
    | MapOver
    | WideMap
    | RunAgent
    | CallTool
)


class Scope(Protocol):
    """What a step's templates and expressions can see; a plain dict.

    Keys: ``inputs``, ``nodes`` (outputs by node id; a skipped node's is null), ``execution`` (``id``,
    ``flow``, ``attempt``, ``key``: the stable idempotency key of execution, node and attempt), and inside
    a map ``item`` and ``index``.
    """

    def __getitem__(self, key: str, /) -> Any: ...


# --- the plan -----------------------------------------------------------------------------------------


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``attempts`` counts the first one too. ``on``: error types that are retried; empty = all."""

    attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    backoff_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 1.0
    backoff_factor: Annotated[float, msgspec.Meta(ge=1, le=100)] = 2.0
    backoff_max_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    on: tuple[str, ...] = ()

    def retry_at(self, now: Micros, attempt: int, error_type: str, draw: float) -> Micros | None:
        """When the attempt after ``attempt`` is due, or None when there is none.

        ``draw``: a random number in [0, 1) from outside; the delay is spread by ± ``jitter``.
        """
        if attempt >= self.attempts or (self.on and error_type not in self.on):
            return None
        # The exponent is bounded, else a long retry series overflows the float.
        delay = self.backoff_seconds * self.backoff_factor ** min(attempt - 1, 64)
        delay = min(delay, self.backoff_max_seconds) * (1 + self.jitter * (2 * draw - 1))
        return Micros(now + int(delay * SECOND))


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled node. ``act`` is the kind's pure part bound to this node's checked configuration.

    ``reads``: the nodes whose outputs its templates and expressions mention (a subset of ``needs``; inside
    a map those that ``each`` mentions).
    ``streams``: those of ``reads`` whose output, when it is large, stands in the scope as a marker
    (``values``), for it is read as a stream. ``condition``: the compiled ``when``; None = always.
    """

    node_id: NodeId
    name: str
    kind: str
    act: "Act"
    each: "Step | None" = None
    needs: tuple[NodeId, ...] = ()
    dependents: tuple[NodeId, ...] = ()
    reads: tuple[NodeId, ...] = ()
    streams: tuple[NodeId, ...] = ()
    condition: "Evaluate | None" = None
    retry: RetryPolicy = RetryPolicy()
    timeout_seconds: float | None = None
    resources: Resources | None = None


class Act(Protocol):
    def __call__(self, scope: Scope, /) -> Action:
        """The action for this step, given what it can see.

        Raises: any exception of the template or expression; the step then fails with it.
        """
        ...


class Evaluate(Protocol):
    def __call__(self, scope: Scope, /) -> Json: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``steps`` in graph order. ``output`` computes the execution's result; ``output_reads`` as ``reads``."""

    flow_id: FlowId
    flow_version: FlowVersion
    name: str
    steps: Mapping[NodeId, Step]
    output: Evaluate
    output_reads: tuple[NodeId, ...] = ()
    timeout_seconds: float | None = None
    placement: PLACEMENT = "pooled"
    queue: QueueRule | None = None
    resources: Resources | None = None
    code: Code | None = None
