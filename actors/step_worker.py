"""The process that runs users' functions: one batch of calls at a time, one call at a time.

    idle --run--> running call k of n --> ... --> replied --> idle
                     |        |
                     |        +-- split: calls up to k-1 are reported, those after k handed back
                     +-- interrupt: the running call is asked to stop (flag; a coroutine is cancelled)

``run`` holds one thread; ``interrupt``, ``split`` and ``snapshot`` come in on another (Ray concurrency
group ``control``), which is why a user's function never runs on the main thread. Every batch carries a
number, so that a late control call can't hit the batch after the one it was meant for. Nothing here
survives the process: after a crash the pool repeats what was not reported.
"""

import os
import resource
import socket
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import ray

from actors import step_call
from actors.crash_report import leave_last_words
from actors.object_cache import HeldValues
from actors.step_call import MIB, BatchReply, BlobStore, StepCall, StepOutcome, WorkerAddress, WorkerLimits
from actors.step_capture import StepCapture
from actors.step_context import StepContext
from actors.step_execution import AsyncSteps, execute, format_stack
from runtime.events import StepError

NOT_FOR_FUNCTIONS = (
    "HELIOGRAPH_MODEL_KEY",
    "HELIOGRAPH_SECRET_KEY",
    "HELIOGRAPH_STORE",
    "HELIOGRAPH_WEBHOOK_SECRETS",
)
"""Taken out of a worker's environment, so that a function that prints or passes on its environment gives
none away. No wall against malice: a worker runs as the server's user."""


class StepWorker:
    """Runs batches of ``StepCall``; a plain class, so that it works without Ray.

    ``own_process``: nothing else lives in this process, so its descriptors and memory may be bounded for
    good. ``holds``: large values may be asked for after a reply (``object_cache``); by default if the process
    is its own. ``blobs``: given in tests; else opened from ``limits.blob_url`` when first needed.
    """

    def __init__(
        self,
        limits: bytes,
        *,
        own_process: bool = True,
        holds: bool | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        self._limits = msgspec.json.decode(limits, type=WorkerLimits)
        self._blobs = blobs
        holds = own_process if holds is None else holds
        self._values = HeldValues(self._limits.object_cache_bytes_max if holds else 0)
        self._coroutines = AsyncSteps()
        self._capture = StepCapture(self._limits.log_bytes_max, own_process=own_process)
        host, pid = socket.gethostname(), os.getpid()
        self._where = f"{host}/{pid}"
        self._address = WorkerAddress(where=self._where, host=host, pid=pid)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._batch = 0
        self._calls: tuple[StepCall, ...] = ()
        self._begun = 0
        self._outcomes: list[StepOutcome] = []
        self._context: StepContext | None = None
        self._interrupted = 0
        self._thread = 0
        self._threads_before = threading.active_count()
        if own_process:
            for name in NOT_FOR_FUNCTIONS:
                os.environ.pop(name, None)
            os.environ.update(self._limits.devices)
            allow_memory(self._limits.memory_max_mb)
            self._address = msgspec.structs.replace(self._address, stderr_path=leave_last_words())
        self._capture.install()

    def ready(self) -> bytes:
        """Where this worker is, once it can take calls."""
        return step_call.encode(self._address)

    def run(self, batch: int, calls: bytes, objects: Mapping[str, Any] | None = None) -> bytes:
        """Run the calls one after another and report those that no ``split`` has reported.

        ``objects``: Ray's references of large values the calls mention, by hash.
        """
        self._values.begin(objects or {})
        with self._lock:
            self._batch = batch
            self._calls = step_call.decode_calls(calls)
            self._outcomes = []
            self._thread = threading.get_ident()
        done = 0
        while (call := self._next(done)) is not None:
            outcome = self._run_one(call)
            done += 1
            with self._lock:
                self._outcomes.append(outcome)
        with self._lock:
            self._batch = 0
            held = self._values.end()
            reply = BatchReply(outcomes=tuple(self._outcomes), retire=self._retirement(), held=held)
            self._outcomes = []
        return step_call.encode(reply)

    def hand_over(self, sha256: str) -> bytes:
        """A value that a reply has told of; Ray keeps the answer for its next readers."""
        return self._values.hand_over(sha256)

    def _next(self, done: int) -> StepCall | None:
        with self._lock:
            self._context = None
            self._begun = done
            if done >= len(self._calls):
                return None
            self._begun += 1
            call = self._calls[done]
            self._context = StepContext(call, self._open_blobs, self._values)
            if self._interrupted == self._batch:  # the request to stop was faster than the batch
                self._context.cancel()
            return call

    def _run_one(self, call: StepCall) -> StepOutcome:
        context = self._context
        if context is None:
            raise RuntimeError("a call is run only after _next has made its context")
        self._capture.begin()
        try:
            if call.chunk is not None:
                # Imported late: most workers never need it, and it brings templates and expressions along.
                from actors.chunk_run import run_chunk

                outcome = run_chunk(call, call.chunk, context, self._coroutines, self._open_blobs)
            else:
                outcome = execute(
                    call, context, self._coroutines, self._open_blobs, self._limits.output_bytes_max
                )
        finally:
            logs = self._capture.end()
        return msgspec.structs.replace(outcome, logs=logs, where=self._where)

    def interrupt(self, batch: int) -> None:
        """Ask the running call of ``batch`` to stop; without effect when that batch has ended."""
        with self._lock:
            self._interrupted = batch
            if batch == self._batch and self._context is not None:
                self._context.cancel()
                self._coroutines.cancel()

    def split(self, batch: int) -> bytes:
        """Report what of ``batch`` is done and give up what has not begun; the running call goes on.

        The reply to ``run`` then holds the running call's outcome alone.
        """
        with self._lock:
            if batch != self._batch:
                return step_call.encode(BatchReply())
            done = tuple(self._outcomes)
            self._outcomes = []
            # Only cut off behind: `run` counts from the start of the tuple.
            self._calls = self._calls[: self._begun]
            return step_call.encode(BatchReply(outcomes=done, split=True))

    def snapshot(self, batch: int) -> bytes:
        """What the running call has written so far and where it stands, for a call about to be killed."""
        with self._lock:
            if batch != self._batch:
                return step_call.encode(StepOutcome())
            thread = self._thread
        frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]  # the only way
        stopped = StepError(type="", message="", traceback=format_stack(frame) if frame else "")
        logs = self._capture.so_far()
        return step_call.encode(StepOutcome(error=stopped, logs=logs, where=self._where, started=True))

    def lifeline(self) -> None:
        """Return only when the worker closes, so that whoever waits learns at once that it died."""
        self._closing.wait()

    def close(self) -> None:
        """Give the process back as it was (the Ray actor is killed instead)."""
        self._closing.set()
        self._capture.uninstall()
        self._coroutines.close()

    def _open_blobs(self) -> BlobStore:
        if self._blobs is None:
            # Imported late: most steps never need it, and it brings a file-system library along.
            from runtime.blob_store import BlobStore as Store

            self._blobs = Store(self._limits.blob_url)
        return self._blobs

    def _retirement(self) -> str:
        resident = resident_mb()
        if resident > self._limits.resident_max_mb:
            return f"{resident} MiB of memory were left in use"
        threads = threading.active_count() - self._threads_before
        if threads > self._limits.threads_left_max:
            return f"{threads} threads were left running"
        return ""


def resident_mb() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") // MIB


def allow_memory(more_mb: int) -> tuple[int, int]:
    """Let the process allocate ``more_mb`` MiB from here on; returns the limits as they were.

    Only the soft limit moves, so that it can be put back. Counted is private writable memory: files
    and Ray's shared object store are free.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", "rb") as statm:
        data_pages = int(statm.read().split()[5])
    limit = data_pages * os.sysconf("SC_PAGESIZE") + more_mb * MIB
    hard = before[1]
    resource.setrlimit(
        resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )
    return before


@contextmanager
def memory_allowed(more_mb: int) -> Generator[None]:
    """As ``allow_memory``, for one step in a process that Ray will use for something else."""
    before = allow_memory(more_mb)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


# Two control threads: one is held by `lifeline`.
StepWorkerActor: Any = cast(Any, ray.remote)(concurrency_groups={"control": 2})(StepWorker)
