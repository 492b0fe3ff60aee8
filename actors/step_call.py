"""What travels between a host and the processes that run users' functions.

Both directions are JSON bytes, not pickles: a worker's answer is data, and never code to its host.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from runtime.datasets import PartStore
from runtime.events import BlobRef, FileDescriptor, Json, StepError, StepLogs
from runtime.ids import ExecutionId, NodeId
from runtime.packages import Code
from runtime.plan import Resources

KIB = 1024
MIB = 1024 * 1024


class ChunkCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run of items of a wide map, which one worker works on in one call (see ``chunk_run``).

    ``first``: index of the first item. ``document``: the map's ``each``. ``scope``: what it can see beside
    the item, or ``scope_ref`` when that is large. ``stop_after_seconds``: no further item begins then, and
    the rest is handed back; 0: never. ``fail_fast``: an item that fails for good ends the chunk. ``tries``:
    made before, in processes that died.
    """

    first: int
    items: tuple[msgspec.Raw, ...]
    document: msgspec.Raw
    scope: msgspec.Raw = msgspec.Raw(b"{}")
    scope_ref: BlobRef | None = None
    stop_after_seconds: float = 0.0
    fail_fast: bool = False
    tries: int = 0


class ChunkReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The output of a ``ChunkCall``: how its first ``items`` items ended; those behind were not begun.

    ``first_error``: of the first item that failed, at ``first_failed`` (its index).
    """

    items: int
    failed: int = 0
    results: BlobRef | None = None
    errors: BlobRef | None = None
    duration_ms: float = 0.0
    first_failed: int = -1
    first_error: StepError | None = None


class StepCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt of one step (or of one item of a map, then ``index`` is set).

    ``function``: ``module:qualname``. ``key``: the stable idempotency key, handed on to the function.
    ``timeout_seconds`` counts from the moment a worker takes the call, importing the module included.
    ``files``: what the function may open by ``artifact://`` URI. Declared ``resources`` make it a Ray
    task instead of a call to a pooled worker. ``code``: its flow's own, to run it in. ``chunk``: many
    items instead of one call; ``function`` then only says what they are.
    """

    execution_id: ExecutionId
    node_id: NodeId
    attempt: int
    key: str
    function: str
    arguments: Mapping[str, Json]
    index: int | None = None
    timeout_seconds: float | None = None
    resources: Resources | None = None
    code: Code | None = None
    files: tuple[FileDescriptor, ...] = ()
    chunk: ChunkCall | None = None


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended: an ``output``, an ``output_ref`` when it was large, or an ``error``.

    ``started`` is False when the function itself was never entered. ``where`` names node and process.
    """

    output: Json = None
    output_ref: BlobRef | None = None
    error: StepError | None = None
    logs: StepLogs | None = None
    where: str = ""
    duration_micros: int = 0
    started: bool = False


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one worker process.

    ``output_bytes_max``: larger outputs go to the blob store. ``log_bytes_max``: kept of each of stdout,
    stderr and log records. ``memory_max_mb``: what user code may allocate before it gets MemoryError.
    ``resident_max_mb``: a worker found larger than this after a batch is replaced.
    ``object_cache_bytes_max``: large values kept in Ray's object store for their next readers.
    ``grace_seconds``: between asking a step to stop and killing its process. ``devices``: environment
    variables that say which GPUs and the like it may use, when that is not for Ray to say.
    """

    output_bytes_max: int = 32 * KIB
    log_bytes_max: int = 32 * KIB
    memory_max_mb: int = 2048
    resident_max_mb: int = 1024
    threads_left_max: int = 32
    grace_seconds: float = 5.0
    blob_url: str = ""
    object_cache_bytes_max: int = 48 * MIB
    devices: Mapping[str, str] = {}


class HeldValue(msgspec.Struct, frozen=True):
    """A large value whose bytes the worker has at hand. ``size`` in bytes."""

    sha256: str
    size: int


class BatchReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcomes in the order of the calls, from the first one not reported before.

    ``split``: the batch was cut after the call that runs now; those behind it will not begin.
    ``retire``: why the worker should be replaced; empty = go on. ``held``: values it can hand over.
    """

    outcomes: tuple[StepOutcome, ...] = ()
    split: bool = False
    retire: str = ""
    held: tuple[HeldValue, ...] = ()


class WorkerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker process is, and the file its last words go to (empty if there is none)."""

    where: str
    host: str = ""
    pid: int = 0
    stderr_path: str = ""


class BlobStore(PartStore, Protocol):
    """The part of the claim-check store that steps need (``runtime.blob_store`` has it)."""

    def put_bytes(self, data: bytes, media_type: str) -> BlobRef: ...

    def get_bytes(self, ref: BlobRef) -> bytes: ...


encode = msgspec.json.Encoder().encode
decode_calls = msgspec.json.Decoder(tuple[StepCall, ...]).decode
decode_reply = msgspec.json.Decoder(BatchReply).decode
decode_outcome = msgspec.json.Decoder(StepOutcome).decode
decode_address = msgspec.json.Decoder(WorkerAddress).decode
