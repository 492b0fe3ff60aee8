"""The lanes of a wide map whose items the host does: child flows, requests, models, tools, files.

An item begins when a lane is free, whichever chunk it will belong to: chunks are runs of finished items that
follow each other, stored together about once a second. One that takes very long holds up nobody but the run
it stands in, and that only for a while: then what is around it is recorded without it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, TypeVar

import msgspec

from actors.chunk_sizes import pace_of
from actors.map_items import MapItems
from actors.patience import until_available
from actors.performer import BLOB_SECONDS_MAX
from actors.step_call import StepOutcome
from actors.step_values import step_error
from actors.wide_work import Stopped, WideWork
from runtime import datasets
from runtime.errors import DomainError
from runtime.events import BlobRef, ChunkResult
from runtime.values import marker

READ_ITEMS = 64
READ_BYTES = 1024 * 1024
"""Items read ahead of the lanes at a time."""

LINE_BYTES_MAX = 1024 * 1024
"""A larger output stands in the results as the marker of a blob of its own."""

HELD_ITEMS_MAX = 5_000
HELD_BYTES_MAX = 16 * 1024 * 1024
"""Finished items that wait to be recorded; at either bound all are recorded, and no item begins before."""

STALE_SECONDS = 5.0
"""A finished item waits no longer than this for those before it."""

CHUNK_ITEMS_MAX = 10_000
LOOK_SECONDS = 0.5
"""How often a paused lane looks whether it may go on."""

T = TypeVar("T")


class _Done(NamedTuple):
    at: float
    milliseconds: float
    line: bytes
    failure: datasets.ItemFailure | None


class WideItems:
    def __init__(self, work: WideWork) -> None:
        self._work = work
        action = work.action
        self._items = MapItems(
            work.actor, work.hands, work.step, work.attempt, action.each, claim_check=False
        )
        self._ahead: deque[tuple[int, msgspec.Raw]] = deque()
        self._reading = asyncio.Lock()
        self._running: set[int] = set()
        self._done: dict[int, _Done] = {}
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._urgent = asyncio.Event()
        self._is_over = False
        self._is_parting = False

    @property
    def is_complete(self) -> bool:
        """Every item of the source is done and recorded."""
        return self._work.source.is_at_end and not (self._ahead or self._running or self._done)

    async def run(self) -> None:
        """Until all is done, or the map pauses. Raises: Stopped; what reading the source raises."""
        self._is_over = self._is_parting = False
        async with asyncio.TaskGroup() as group:
            group.create_task(self._record_now_and_then())
            lanes = [group.create_task(self._lane()) for _ in range(self._work.action.concurrency)]
            await asyncio.wait(lanes)
            self._is_over = True
            self._urgent.set()

    # --- lanes ------------------------------------------------------------------------------------------

    async def _lane(self) -> None:
        try:
            while await self._may_begin():
                taken = await self._next()
                if taken is not None:
                    await self._do(*taken)
                elif not self._ahead and self._work.source.is_at_end:
                    return
        except Exception:  # the map has failed, and what other lanes do will be given up
            self._items.give_up()
            raise

    async def _may_begin(self) -> bool:
        """Wait until an item may begin; False when nothing runs and the map is paused."""
        while not self._is_parting and (self._work.is_paused or not self._room.is_set()):
            if self._work.is_paused and not self._running:
                # All leave with the first one: a resume that comes now finds all lanes again.
                self._is_parting = True
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), LOOK_SECONDS)
            if self._work.is_paused:
                await asyncio.sleep(LOOK_SECONDS)
        return not self._is_parting

    async def _next(self) -> tuple[int, msgspec.Raw] | None:
        if not self._ahead:
            async with self._reading:
                if not self._ahead and not self._work.source.is_at_end:
                    piece = await self._work.source.take(READ_ITEMS, READ_BYTES)
                    if piece is not None:
                        self._ahead.extend(enumerate(piece.items, start=piece.first))
        if self._ahead and not self._work.is_paused:
            return self._ahead.popleft()
        return None

    async def _do(self, index: int, raw: msgspec.Raw) -> None:
        self._running.add(index)
        began = time.monotonic()
        try:
            outcome = await self._items.outcome(index, msgspec.json.decode(raw))
            done = await self._finished(index, raw, outcome, began)
        finally:
            self._running.discard(index)
        self._done[index] = done
        self._held_bytes += len(done.line) + (0 if done.failure is None else len(raw))
        if self._is_full():
            self._room.clear()
            self._urgent.set()
        if done.failure is not None and self._work.action.on_error == "fail":
            error = done.failure.error
            self._work.fail(msgspec.structs.replace(error, message=f"item {index}: {error.message}"))

    def _is_full(self) -> bool:
        return len(self._done) >= HELD_ITEMS_MAX or self._held_bytes >= HELD_BYTES_MAX

    async def _finished(self, index: int, raw: msgspec.Raw, outcome: StepOutcome, began: float) -> _Done:
        error, line = outcome.error, b"null"
        if error is None:
            try:
                line = await self._line(outcome)
            except (DomainError, TypeError, ValueError) as fault:
                error = step_error(fault)
        now = time.monotonic()
        failure = None if error is None else datasets.ItemFailure(index=index, error=error, item=raw)
        return _Done(now, (now - began) * 1_000, line, failure)

    async def _line(self, outcome: StepOutcome) -> bytes:
        ref = outcome.output_ref
        blobs = self._work.equipment.blobs
        if ref is None:
            line = msgspec.json.encode(outcome.output)
            if len(line) <= LINE_BYTES_MAX:
                return line
            ref = await self._stored(lambda: blobs.put_bytes(line))
        elif ref.size <= LINE_BYTES_MAX and ref.media_type == "application/json":
            small = ref
            return await self._stored(lambda: blobs.get_bytes(small))
        return msgspec.json.encode(marker(ref))

    async def _stored(self, work: Callable[[], T]) -> T:
        return await until_available(lambda: asyncio.to_thread(work), "reach the blobs", BLOB_SECONDS_MAX)

    # --- recording --------------------------------------------------------------------------------------

    async def _record_now_and_then(self) -> None:
        while True:
            known = self._work.book.known
            pace = pace_of(len(known.recorded) if known else 0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), self._work.action.chunk_seconds * pace)
            is_last = self._is_over
            self._urgent.clear()
            for first, count in self._runs(everything=is_last or self._is_full()):
                await self._record(first, count)
            self._room.set()
            if is_last:
                return

    def _runs(self, *, everything: bool) -> list[tuple[int, int]]:
        """Runs of finished items that are to be recorded now, as (first, count)."""
        size = self._work.action.chunk_items or CHUNK_ITEMS_MAX
        is_exact = self._work.action.chunk_items is not None
        settled = min(self._running, default=None)
        stale = time.monotonic() - STALE_SECONDS
        chosen: list[tuple[int, int]] = []
        for first, count in _contiguous(sorted(self._done)):
            flush = everything or self._done[first].at < stale
            if not flush and settled is not None and first > settled:
                continue
            for at in range(first, first + count, size):
                piece = min(size, first + count - at)
                if piece == size or flush or not is_exact:
                    chosen.append((at, piece))
        return chosen

    async def _record(self, first: int, count: int) -> None:
        done = [self._done[index] for index in range(first, first + count)]
        failures = [one.failure for one in done if one.failure is not None]
        blobs = self._work.equipment.blobs

        def store() -> tuple[BlobRef | None, BlobRef | None]:
            results = (
                datasets.write_lines(blobs, (one.line for one in done)) if len(failures) < count else None
            )
            return results, datasets.write_failures(blobs, failures) if failures else None

        results, errors = await self._stored(store)
        for index in range(first, first + count):
            gone = self._done.pop(index)
            self._held_bytes -= len(gone.line) + (0 if gone.failure is None else len(gone.failure.item))
        chunk = ChunkResult(
            first=first,
            items=count,
            failed=len(failures),
            results=results,
            errors=errors,
            duration_ms=round(sum(one.milliseconds for one in done), 3),
        )
        try:
            if failures:
                self._work.done(chunk, failures[0].index, failures[0].error)
            else:
                self._work.done(chunk)
        except Stopped:
            self._items.give_up()
            raise


def _contiguous(indexes: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of indexes that follow each other, as (first, count)."""
    first = count = 0
    for index in indexes:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
