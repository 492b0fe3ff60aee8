"""A chunk of a wide map in the process that works on it: item after item, their results stored as one part.

    each item:   tried --> done
                   |  ^
                   v  | its back-off passed, behind the chunk's other items
                 retried --> failed for good: null in the results, one line in the errors

What an item does is its own affair, as in a step: whatever it raises is its outcome. An item that takes
longer than its time is asked to stop; one that goes on makes its host end the process, find out which item
it was, and give the others to another worker. A chunk that has worked long enough hands the rest back.
"""

import functools
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from actors import step_call
from actors.step_call import BlobStore, ChunkCall, ChunkReport, StepCall, StepOutcome
from actors.step_context import StepContext
from actors.step_execution import AsyncSteps, describe, encode_result, execute
from actors.step_values import step_error
from runtime.datasets import ItemFailure, write_failures, write_lines
from runtime.events import BlobRef, StepError
from runtime.graph import compile_each
from runtime.ids import SECOND, Micros
from runtime.plan import CallFunction, Output, Step
from runtime.values import marker

RESULTS_BYTES_MAX = 32 * 1024 * 1024
"""Results of one chunk held in memory; at this size it ends, and the rest is handed back."""

ITEM_OUTPUT_BYTES_MAX = 1024 * 1024
"""A larger output stands in the part as the marker of a blob of its own."""

TRACEBACKS_MAX = 10
"""Failed items of a chunk whose traceback is kept."""

WATCH_SECONDS = 0.05
_NULL = b"null"


def run_chunk(
    call: StepCall,
    chunk: ChunkCall,
    context: StepContext,
    coroutines: AsyncSteps,
    blobs: Callable[[], BlobStore],
) -> StepOutcome:
    """Work on the chunk until it is done, or has to stop; the output is a ``ChunkReport``.

    An error means that nothing of the chunk can be used: it is our fault, or the storage's.
    """
    began = time.perf_counter_ns()
    try:
        run = _ChunkRun(call, chunk, context, coroutines, blobs)
        with run.watched():
            run.work()
        report = run.report((time.perf_counter_ns() - began) / 1e6)
    except Exception as error:  # noqa: BLE001 - whatever it is, the host must hear of it
        return StepOutcome(error=describe(error), started=True)
    micros = (time.perf_counter_ns() - began) // 1000
    output = msgspec.Raw(step_call.encode(report))
    return StepOutcome(output=output, started=True, duration_micros=micros)


class _ItemContext(StepContext):
    """An item's own: cancelled with its chunk, or by its timeout."""

    def __init__(self, call: StepCall, blobs: Callable[[], BlobStore], chunk: StepContext) -> None:
        super().__init__(call, blobs, chunk.cache)
        self._chunk = chunk
        self.is_late = False

    def is_cancelled(self) -> bool:
        return super().is_cancelled() or self._chunk.is_cancelled()


class _ChunkRun:
    def __init__(
        self,
        call: StepCall,
        chunk: ChunkCall,
        context: StepContext,
        coroutines: AsyncSteps,
        blobs: Callable[[], BlobStore],
    ) -> None:
        self._call = call
        self._chunk = chunk
        self._context = context
        self._coroutines = coroutines
        self._blobs = blobs
        self._step: Step = _compiled(bytes(chunk.document))
        self._scope = _scope(chunk, blobs)
        self._lines: list[bytes] = []
        self._errors: dict[int, StepError] = {}
        self._bytes = 0
        self._due: list[tuple[int, int, int]] = []
        """Items to be tried again: when (microseconds), which, and the tries made so far."""
        self._running: tuple[float, _ItemContext] | None = None

    @contextmanager
    def watched(self) -> Generator[None]:
        """Keep the time of the items, if they have one: a thread that wakes now and then."""
        if self._step.timeout_seconds is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(WATCH_SECONDS):
            running = self._running
            if running is not None and time.monotonic() > running[0] and not running[1].is_late:
                running[1].is_late = True
                running[1].cancel()
                self._coroutines.cancel()

    def work(self) -> None:
        chunk = self._chunk
        stop_at = time.monotonic() + chunk.stop_after_seconds if chunk.stop_after_seconds else None
        for place in range(len(chunk.items)):
            if not self._goes_on(stop_at if place else None):
                break
            self._lines.append(_NULL)
            self._try(place, chunk.tries + 1)
        while self._due and self._goes_on(None):
            at, place, tries = min(self._due)
            self._due.remove((at, place, tries))
            # Short waits: a cancellation must not have to sit the back-off out.
            while (left := at / SECOND - time.monotonic()) > 0 and not self._context.is_cancelled():
                time.sleep(min(left, WATCH_SECONDS))
            self._try(place, tries + 1)

    def _goes_on(self, stop_at: float | None) -> bool:
        if self._context.is_cancelled() or self._bytes > RESULTS_BYTES_MAX:
            return False
        if self._chunk.fail_fast and any(place not in self._waiting() for place in self._errors):
            return False
        return stop_at is None or time.monotonic() < stop_at

    def _waiting(self) -> set[int]:
        return {place for _, place, _ in self._due}

    def _try(self, place: int, tries: int) -> None:
        outcome = self._outcome(place, tries)
        if outcome.error is None:
            line = _line(outcome)
            self._lines[place] = line
            self._bytes += len(line)
            self._errors.pop(place, None)
            return
        error = outcome.error
        if error.traceback and len(self._errors) >= TRACEBACKS_MAX:
            error = msgspec.structs.replace(error, traceback="")
        self._errors[place] = error
        now = Micros(int(time.monotonic() * SECOND))
        retry_at = self._step.retry.retry_at(now, tries, error.type, 0.5)
        if retry_at is not None:
            self._due.append((retry_at, place, tries))

    def _outcome(self, place: int, tries: int) -> StepOutcome:
        index = self._chunk.first + place
        key = f"{self._call.key}:{index}:{tries}"
        try:
            scope = {
                **self._scope,
                "item": msgspec.json.decode(self._chunk.items[place]),
                "index": index,
                "execution": {**self._scope["execution"], "key": key, "attempt": tries},
            }
            action = self._step.act(scope)
            if isinstance(action, Output):
                return StepOutcome(output=msgspec.Raw(encode_result(action.value)))
        except Exception as error:  # noqa: BLE001 - templates and expressions may raise anything
            return StepOutcome(error=step_error(error))
        if not isinstance(action, CallFunction):
            message = f"a worker can't do {type(action).__name__}"
            return StepOutcome(error=StepError(type="InvalidAction", message=message))
        return self._call_function(action, index, key)

    def _call_function(self, action: CallFunction, index: int, key: str) -> StepOutcome:
        call = self._call
        item_call = StepCall(
            execution_id=call.execution_id,
            node_id=call.node_id,
            attempt=call.attempt,
            key=key,
            function=action.function,
            arguments=action.arguments,
            index=index,
            files=call.files,
        )
        context = _ItemContext(item_call, self._blobs, self._context)
        seconds = self._step.timeout_seconds
        if seconds is not None:
            self._running = (time.monotonic() + seconds, context)
        try:
            outcome = execute(item_call, context, self._coroutines, self._blobs, ITEM_OUTPUT_BYTES_MAX)
        finally:
            self._running = None
        if context.is_late:
            message = f"{action.function} took longer than {seconds:g} s"
            trace = outcome.error.traceback if outcome.error else ""
            return StepOutcome(error=StepError(type="TimeoutError", message=message, traceback=trace))
        return outcome

    def report(self, duration_ms: float) -> ChunkReport:
        """Store the results, and say what became of the items that were begun."""
        items = len(self._lines)
        errors = {place: self._errors[place] for place in sorted(self._errors)}
        results: BlobRef | None = None
        failed: BlobRef | None = None
        if len(errors) < items:
            results = write_lines(self._blobs(), self._lines)
        if errors:
            failed = write_failures(
                self._blobs(),
                (
                    ItemFailure(index=self._chunk.first + place, error=error, item=self._chunk.items[place])
                    for place, error in errors.items()
                ),
            )
        first = next(iter(errors), None)
        return ChunkReport(
            items=items,
            failed=len(errors),
            results=results,
            errors=failed,
            duration_ms=round(duration_ms, 3),
            first_failed=-1 if first is None else self._chunk.first + first,
            first_error=None if first is None else errors[first],
        )


def _line(outcome: StepOutcome) -> bytes:
    if outcome.output_ref is not None:
        return msgspec.json.encode(marker(outcome.output_ref))
    return (
        bytes(outcome.output)
        if isinstance(outcome.output, msgspec.Raw)
        else msgspec.json.encode(outcome.output)
    )


@functools.lru_cache(maxsize=64)
def _compiled(document: bytes) -> Step:
    return compile_each(msgspec.json.decode(document))


def _scope(chunk: ChunkCall, blobs: Callable[[], BlobStore]) -> Mapping[str, Any]:
    if chunk.scope_ref is None:
        return msgspec.json.decode(chunk.scope)
    known = _LAST_SCOPE.get(chunk.scope_ref.sha256)
    if known is None:
        known = msgspec.json.decode(blobs().get_bytes(chunk.scope_ref))
        _LAST_SCOPE.clear()
        _LAST_SCOPE[chunk.scope_ref.sha256] = known
    return known


_LAST_SCOPE: dict[str, Mapping[str, Any]] = {}
"""The large scope read last, by its hash: one chunk of a map is followed by others of the same."""
