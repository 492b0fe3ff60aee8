"""How far batches are, derived from their executions and what those recorded; nothing is counted apart.

    queued      not begun, or ended so lately that its chunk is not recorded yet
    running     its execution has begun and is open
    completed   the item's last execution gave a result
    failed      its last execution, or the item itself, failed
    cancelled   it never ran, for the batch ended before its turn

A batch has rounds; each but the first is over what had failed before it. When its executions have left the
log for an archive, all that is known is that.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

import msgspec

from gateway.batch_documents import MAP_NODE, BatchDocument, RoundDocument
from gateway.keys import FIRST_TENANT
from gateway.map_outcomes import PAGE_EVENTS, MapRun, Round
from gateway.registry import Resource
from projections import execution_summary, resources
from projections.execution_summary import ExecutionRow
from projections.retention import ARCHIVE
from projections.store import ReadStore
from runtime.event_log import EventLog
from runtime.events import ChunksRecorded
from runtime.ids import SECOND, Micros
from runtime.state import TERMINAL

RATE_SECONDS = 20
"""The rate is that of the items recorded in the last so many seconds."""

RATE_RECORDS_MAX = 1_000

ARCHIVED = "archived"
"""The status of a batch whose executions have left the log."""

FOLDS_MAX = 2_000
"""Executions whose chunks are summed in memory; the one not asked for longest goes first."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Items. ``total`` None: how many the source has is not known before its end."""

    total: int | None
    queued: int | None
    running: int
    completed: int
    failed: int
    cancelled: int


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``rate``: items a second, lately or at the end over the last round. ``position``: the last event's."""

    status: str
    counts: Counts
    rate: float | None
    seconds_left: float | None
    started_at: int | None
    ended_at: int | None
    error: str
    position: int

    @property
    def is_closed(self) -> bool:
        return self.status in TERMINAL or self.status == ARCHIVED


class _Sum:
    """What one map has recorded so far."""

    def __init__(self) -> None:
        self.version = 0
        self.total: int | None = None
        self.items = 0
        self.failed = 0
        self.recent: deque[tuple[int, int]] = deque(maxlen=RATE_RECORDS_MAX)

    def read(self, log: EventLog, execution_id: str, version: int) -> None:
        while self.version < version:
            page = log.read(execution_id, self.version, PAGE_EVENTS)
            if not page:
                return
            for recorded in page:
                self.version = recorded.originator_version
                if recorded.topic == ChunksRecorded.TOPIC:
                    event = recorded.event()
                    if isinstance(event, ChunksRecorded):
                        self._add(event)

    def _add(self, event: ChunksRecorded) -> None:
        self.total = event.total if event.total is not None else self.total
        items = sum(chunk.items for chunk in event.chunks)
        self.items += items
        self.failed += sum(chunk.failed for chunk in event.chunks)
        self.recent.append((event.at, items))


class _RoundSum(msgspec.Struct, frozen=True):
    """``items`` None: not known yet."""

    items: int | None
    done: int
    failed: int
    rows: tuple[ExecutionRow, ...]
    is_closed: bool


class Progress:
    """Lives on the event loop, one for a gateway."""

    def __init__(self, log: EventLog, store: ReadStore) -> None:
        self._log = log
        self._store = store
        self._sums: OrderedDict[str, _Sum] = OrderedDict()
        self._turn = asyncio.Lock()

    async def of(self, resource: Resource, document: BatchDocument, now: Micros) -> BatchProgress:
        async with self._turn:  # one thread at a time adds to the sums
            return await asyncio.to_thread(self._of, resource, document, now)

    async def rounds(self, document: BatchDocument) -> list[Round]:
        """For the readers of outcomes."""
        ids = [one for each in document.rounds for one in each.executions]
        rows = await asyncio.to_thread(execution_summary.get_many, self._store, ids)
        return [
            Round(
                tuple(MapRun(one, MAP_NODE) for one in each.executions), each.indexes, _is_closed(each, rows)
            )
            for each in document.rounds
        ]

    def _of(self, resource: Resource, document: BatchDocument, now: Micros) -> BatchProgress:
        ids = [one for each in document.rounds for one in each.executions]
        rows = execution_summary.get_many(self._store, ids)
        if not rows and resource.updated_at < self._archived_before():
            return _archived(document)
        for row in rows.values():
            self._sum(row.execution_id).read(self._log, row.execution_id, row.version)
        rounds = [self._round(each, rows) for each in document.rounds]
        last = rounds[-1]
        parents = [row.execution_id for row in last.rows if row.status not in TERMINAL]
        running = 0
        if parents:
            running = execution_summary.count_children(self._store, resource.tenant, parents)
        status = _status(document.rounds[-1], last)
        counts = _counts(rounds, running)
        rate, left = self._rate(last, counts, status, now)
        started = [row.started_at for one in rounds for row in one.rows if row.started_at is not None]
        ended = [row.ended_at for row in last.rows if row.ended_at is not None]
        return BatchProgress(
            status=status,
            counts=counts,
            rate=rate,
            seconds_left=left,
            started_at=min(started, default=None),
            ended_at=max(ended, default=None) if status in TERMINAL else None,
            error=next((row.error_message or "" for row in last.rows if row.error_type is not None), ""),
            position=max((row.position for row in rows.values()), default=0),
        )

    def _archived_before(self) -> int:
        """What ended before it may have left the log; 0: nothing has."""
        found, _ = resources.listing(self._store, FIRST_TENANT, ARCHIVE, newest_first=True, limit=1)
        return int(json.loads(found[0].document)["before"]) if found else 0

    def _sum(self, execution_id: str) -> _Sum:
        known = self._sums.get(execution_id)
        if known is None:
            known = self._sums[execution_id] = _Sum()
            if len(self._sums) > FOLDS_MAX:
                self._sums.popitem(last=False)
        self._sums.move_to_end(execution_id)
        return known

    def _round(self, one: RoundDocument, rows: Mapping[str, ExecutionRow]) -> _RoundSum:
        found = tuple(rows[each] for each in one.executions if each in rows)
        sums = [self._sum(row.execution_id) for row in found]
        return _RoundSum(
            items=self._items(one),
            done=sum(each.items for each in sums),
            failed=sum(each.failed for each in sums),
            rows=found,
            is_closed=_is_closed(one, rows),
        )

    def _items(self, one: RoundDocument) -> int | None:
        if one.items is not None:
            return one.items
        totals = [self._sums[each].total if each in self._sums else None for each in one.executions]
        known = [total for total in totals if total is not None]
        return sum(known) if len(known) == len(totals) else None

    def _rate(
        self, last: _RoundSum, counts: Counts, status: str, now: Micros
    ) -> tuple[float | None, float | None]:
        began = min((row.started_at for row in last.rows if row.started_at is not None), default=None)
        if began is None or not last.done:
            return None, None
        if status in TERMINAL:
            ended = max(row.ended_at or 0 for row in last.rows)
            return last.done * SECOND / max(1, ended - began), None
        since = max(began, now - RATE_SECONDS * SECOND)
        lately = sum(
            items for row in last.rows for at, items in self._sum(row.execution_id).recent if at > since
        )
        rate = lately * SECOND / max(1, now - since)
        if not rate or counts.queued is None or status != "running":
            return rate, None
        return rate, (counts.queued + counts.running) / rate


def _archived(document: BatchDocument) -> BatchProgress:
    counts = Counts(total=document.rounds[0].items, queued=0, running=0, completed=0, failed=0, cancelled=0)
    return BatchProgress(
        status=ARCHIVED,
        counts=counts,
        rate=None,
        seconds_left=None,
        started_at=None,
        ended_at=None,
        error="its executions were moved to the archive",
        position=1,
    )


def _is_closed(one: RoundDocument, rows: Mapping[str, ExecutionRow]) -> bool:
    return all(each in rows and rows[each].status in TERMINAL for each in one.executions)


def _status(document: RoundDocument, last: _RoundSum) -> str:
    """``queued`` until an execution began; at the end the worst of theirs."""
    statuses = {row.status for row in last.rows}
    if len(last.rows) < len(document.executions) and not statuses - {"queued"}:
        return "queued"
    if last.is_closed:
        return next(each for each in ("failed", "timed_out", "cancelled", "completed") if each in statuses)
    going_on = statuses - TERMINAL
    for each in ("cancelling", "running", "waiting"):
        if each in going_on:
            return "running" if each == "waiting" else each
    return "paused" if "paused" in going_on else "queued"


def _counts(rounds: Sequence[_RoundSum], running: int) -> Counts:
    first, last = rounds[0], rounds[-1]
    total = first.items
    if total is None and first.is_closed:
        total = first.done  # the source was not read to its end; nobody knows what else it has
    left = None if last.items is None else max(0, last.items - last.done)
    failed, cancelled = last.failed, 0
    if last.is_closed:
        if len(rounds) > 1:
            failed += left or 0  # not tried again: as they were
        else:
            cancelled = left or 0
        left = 0
    never_run = 0
    if len(rounds) > 1 and first.items is not None:
        never_run = max(0, first.items - first.done)
    return Counts(
        total=total,
        queued=None if left is None else max(0, left - running),
        running=running if left is None else min(running, left),
        completed=sum(one.done - one.failed for one in rounds),
        failed=failed,
        cancelled=cancelled + never_run,
    )
