"""The lanes of a wide map whose items workers do: a chunk a call, the rest of a chunk offered again.

A chunk whose process died or hung is halved until the item is alone that did it: that one has failed, as
often as its retries allow. Storage or workers that are away for a moment are waited for.
"""

import asyncio
from collections import deque
from contextlib import suppress

import msgspec

from actors import step_call
from actors.chunk_sizes import ChunkSizes, pace_of
from actors.chunk_source import Piece
from actors.patience import until_available
from actors.performer import BLOB_SECONDS_MAX, OUTPUT_BYTES_MAX
from actors.step_call import ChunkCall, ChunkReport, StepCall
from actors.wide_work import WideWork
from runtime import datasets
from runtime.events import BlobRef, ChunkResult, StepError
from runtime.ids import SECOND, ExecutionId, Micros
from runtime.plan import Resources

CHUNK_BYTES_MAX = 4 * 1024 * 1024
"""Items of one chunk, on their way to a worker; one item alone may be larger."""

OVERTIME = 2.0
"""A chunk that takes so many times as long as it should hands its rest back."""

LOOK_SECONDS = 0.5
"""How often a lane without work looks whether there is some, or a pause has ended."""

TIMEOUT_MARGIN_SECONDS = 5.0
CRASH = "WorkerCrashed"
CRASHES_MAX = 200
"""Processes one attempt may lose before its map fails: it is not one item that does it."""

AWAY = frozenset({"Unavailable", "WorkerUnavailable"})
AWAY_TRIES_MAX = 6
AWAY_SECONDS = 0.5


class WideChunks:
    def __init__(self, work: WideWork) -> None:
        self._work = work
        each = work.action.each
        self._resources: Resources | None = each.resources or work.equipment.task_resources
        lanes = work.action.concurrency
        # More calls than the pool's workers can take would only make other executions wait behind them.
        self._lanes = lanes if self._resources else min(lanes, work.equipment.lanes)
        self._sizes = ChunkSizes(work.action.chunk_items, work.action.chunk_seconds, self._lanes)
        self._left: deque[Piece] = deque()
        self._busy = 0
        self._news = asyncio.Event()
        self._common = ChunkCall(first=0, items=(), document=msgspec.Raw(b""))
        self._away = 0
        self._crashes = 0

    @property
    def is_complete(self) -> bool:
        """Every item of the source is done."""
        return self._work.source.is_at_end and not (self._left or self._busy)

    @property
    def _recorded(self) -> int:
        known = self._work.book.known
        return len(known.recorded) if known else 0

    async def run(self) -> None:
        """Until all is done, or the map pauses. Raises: Stopped; what reading the source raises."""
        self._common = await self._in_common()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._lanes):
                group.create_task(self._lane())

    async def _in_common(self) -> ChunkCall:
        """What all chunks have alike; a large scope goes by reference."""
        work = self._work
        scope = step_call.encode(work.scope())
        common = ChunkCall(
            first=0,
            items=(),
            document=msgspec.Raw(step_call.encode(work.action.document)),
            scope=msgspec.Raw(scope),
            fail_fast=work.action.on_error == "fail",
        )
        if len(scope) <= OUTPUT_BYTES_MAX:
            return common
        ref = await until_available(
            lambda: asyncio.to_thread(work.equipment.blobs.put_bytes, scope), "write a blob", BLOB_SECONDS_MAX
        )
        return msgspec.structs.replace(common, scope=msgspec.Raw(b"{}"), scope_ref=ref)

    async def _lane(self) -> None:
        while True:
            if self._work.is_paused or (self._work.source.is_at_end and not self._left):
                if not self._busy:
                    return
                with suppress(TimeoutError):  # others may hand back items yet; a pause may end
                    await asyncio.wait_for(self._news.wait(), LOOK_SECONDS)
                continue
            self._busy += 1
            try:
                piece = await self._next()
                if piece is not None:
                    await self._do(piece)
            finally:
                self._busy -= 1
                self._news.set()
                self._news = asyncio.Event()

    async def _next(self) -> Piece | None:
        source = self._work.source
        size = self._sizes.next(self._recorded, source.left)
        if self._left:
            piece = self._left.popleft()
            if len(piece.items) > size:
                self._left.appendleft(Piece(piece.first + size, piece.items[size:], piece.tries))
            return Piece(piece.first, piece.items[:size], piece.tries)
        return await source.take(size, CHUNK_BYTES_MAX)

    async def _do(self, piece: Piece) -> None:
        equipment = self._work.equipment
        tell = equipment.teller() if self._resources and equipment.teller else None
        outcome = await equipment.workers.call(self._call(piece), tell)
        if outcome.error is not None:
            await self._failed(piece, outcome.error)
            return
        report = msgspec.convert(outcome.output, ChunkReport)
        self._sizes.note(report.items, report.duration_ms)
        self._away = 0
        if report.items < len(piece.items):
            rest = Piece(piece.first + report.items, piece.items[report.items :], piece.tries)
            self._left.append(rest)
        if report.items:
            chunk = ChunkResult(
                first=piece.first,
                items=report.items,
                failed=report.failed,
                results=report.results,
                errors=report.errors,
                duration_ms=report.duration_ms,
            )
            self._work.done(chunk, report.first_failed, report.first_error)

    def _call(self, piece: Piece) -> StepCall:
        work = self._work
        action = work.action
        budget = 0.0
        if action.chunk_items is None:
            budget = action.chunk_seconds * pace_of(self._recorded) * OVERTIME
        timeout = action.each.timeout_seconds
        if timeout is not None:
            # The worker keeps the time of each item; this is for one that won't stop when it is asked to.
            most = timeout * len(piece.items)
            timeout = (min(most, budget + timeout) if budget else most) + TIMEOUT_MARGIN_SECONDS
        return StepCall(
            execution_id=ExecutionId(work.actor.state.execution_id),
            node_id=work.step.node_id,
            attempt=work.attempt,
            key=work.actor.idempotency_key(work.step.node_id, work.attempt),
            function="#map",
            arguments={},
            timeout_seconds=timeout,
            resources=self._resources,
            files=work.actor.state.files,
            code=work.actor.plan.code,
            chunk=msgspec.structs.replace(
                self._common,
                first=piece.first,
                items=tuple(piece.items),
                tries=piece.tries,
                stop_after_seconds=budget,
            ),
        )

    async def _failed(self, piece: Piece, error: StepError) -> None:
        """Nothing of the chunk was kept: try again what may be, and find out which item it was."""
        if error.type in AWAY:
            self._away += 1
            if self._away > AWAY_TRIES_MAX:
                self._work.fail(error)
            await asyncio.sleep(AWAY_SECONDS * 2**self._away)
            self._left.append(piece)
            return
        if error.type not in (CRASH, "TimeoutError"):
            self._work.fail(error)
        self._crashes += error.type == CRASH
        if self._crashes > CRASHES_MAX:
            message = f"{self._crashes} worker processes died; the last one: {error.message}"
            self._work.fail(msgspec.structs.replace(error, message=message))
        half = len(piece.items) // 2
        if half:
            self._left.append(Piece(piece.first, piece.items[:half], piece.tries))
            self._left.append(Piece(piece.first + half, piece.items[half:], piece.tries))
            return
        tries = piece.tries + 1
        retry = self._work.action.each.retry
        retry_at = retry.retry_at(Micros(0), tries, error.type, self._work.actor.draw())
        if retry_at is not None:
            await asyncio.sleep(retry_at / SECOND)
            self._left.append(Piece(piece.first, piece.items, tries))
            return
        failure = datasets.ItemFailure(index=piece.first, error=error, item=piece.items[0])
        errors: BlobRef = await until_available(
            lambda: asyncio.to_thread(datasets.write_failures, self._work.equipment.blobs, [failure]),
            "write a blob",
            BLOB_SECONDS_MAX,
        )
        self._work.done(ChunkResult(first=piece.first, items=1, failed=1, errors=errors), piece.first, error)
