"""What the clients of a faulty server saw, and the checker that holds it against the log."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from projections.check import verify_read_models
from projections.runner import PROJECTIONS, Runner
from projections.store import ReadStore
from runtime.event_log import EventLog, Recorded
from runtime.events import TERMINAL_EVENTS
from runtime.ids import Position
from runtime.state import Status
from runtime.verification import Accepted, JournalEntry, Seen, pages, verify
from tests.contracts.ability.wire import Callback

_ENDS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)

_STATUSES: dict[str, Status] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "PROCESSING": "running",
    "COMPLETED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "CANCELED": "cancelled",
}


class Piece(NamedTuple):
    """One event of a stream: its id there, and its data."""

    id: int
    data: Any


class Journal:
    """Written by any number of clients, in the order in which each got its answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[JournalEntry] = []
        self.accepted: dict[str, str] = {}
        self.progress: defaultdict[str, list[float]] = defaultdict(list)
        self.outputs: dict[str, Any] = {}
        self.with_callback: set[str] = set()
        self.records: defaultdict[str, list[Piece]] = defaultdict(list)
        """By execution: the audit API's stream, which is the log's slice."""
        self.pieces: defaultdict[str, list[Piece]] = defaultdict(list)
        """By execution: the contract's stream, and the same once more from its beginning, after the end."""
        self.replays: dict[str, list[Piece]] = {}

    def was_accepted(self, key: str, execution_id: str, *, has_callback: bool) -> None:
        with self._lock:
            self.accepted[execution_id] = key
            self._entries.append(Accepted(execution_id, key))
            if has_callback:
                self.with_callback.add(execution_id)

    def saw(self, execution_id: str, status: str, progress: float | None = None) -> None:
        with self._lock:
            self._entries.append(Seen(execution_id, _STATUSES[status]))
            if progress is not None:
                self.progress[execution_id].append(progress)

    @property
    def entries(self) -> list[JournalEntry]:
        with self._lock:
            return list(self._entries)


def findings(
    journal: Journal,
    log: EventLog,
    callbacks: Iterable[Callback],
) -> list[str]:
    """Every broken promise, in words; nothing when all were kept.

    All clients insisted until their start was accepted, so an execution that none of them knows, and no
    other execution started, was started twice.
    """
    report = verify(pages(log.feed), journal.entries, settled=True)
    found = [f"{one.rule} {one.originator_id} v{one.version}: {one.detail}" for one in report.violations]
    streams = _streams(log)
    parents = {stream: _parent(events[0]) for stream, events in streams.items()}
    strangers = [one for one, parent in parents.items() if not parent and one not in journal.accepted]
    found += [f"started, but no client was told of it: {one}" for one in strangers]
    for execution_id, seen in journal.progress.items():
        if any(after < before for before, after in pairwise(seen)):
            found.append(f"progress of {execution_id} fell: {seen}")
    found += _streams_that_differ(journal, streams)
    found += _callbacks_that_differ(journal, callbacks)
    return found + _rows_that_differ(log)


def _streams(log: EventLog) -> dict[str, list[Recorded]]:
    streams: defaultdict[str, list[Recorded]] = defaultdict(list)
    for recorded in pages(log.feed):
        if ":" not in recorded.originator_id:
            streams[recorded.originator_id].append(recorded)
    return streams


def _parent(first: Recorded) -> str:
    return msgspec.json.decode(first.data).get("parent_id", "")


def _streams_that_differ(journal: Journal, streams: dict[str, list[Recorded]]) -> list[str]:
    found: list[str] = []
    for execution_id, records in journal.records.items():
        heard = [(piece.id, piece.data["version"], piece.data["hash"]) for piece in records]
        logged = [(one.position, one.originator_version, one.hash()) for one in streams.get(execution_id, [])]
        if heard != logged:
            found.append(f"stream of {execution_id}: heard {heard}, the log has {logged}")
    for execution_id, pieces in journal.pieces.items():
        logged = streams.get(execution_id, [])
        if pieces != journal.replays[execution_id]:
            found.append(f"stream of {execution_id}: heard {pieces}, then {journal.replays[execution_id]}")
        ids = [piece.id for piece in pieces]
        # One recorded event may be told in two: the contract counts places, two for each position.
        told = [each // 2 for each in ids]
        positions = [one.position for one in logged]
        if any(after <= before for before, after in pairwise(ids)) or not set(told) <= set(positions):
            found.append(f"ids of {execution_id}'s stream: {ids}, its positions: {positions}")
        if not logged or logged[-1].topic not in _ENDS or told[-1:] != positions[-1:]:
            found.append(f"stream of {execution_id} ended with {told[-1:]}, the log with {positions[-1:]}")
    return found


def _callbacks_that_differ(journal: Journal, callbacks: Iterable[Callback]) -> list[str]:
    bodies: defaultdict[str, set[bytes]] = defaultdict(set)
    for callback in callbacks:
        headers = {name.lower(): value for name, value in callback.headers.items()}
        # A sender that is killed half-way leaves a request without its whole body: no receiver takes that.
        if len(callback.body) == int(headers["content-length"]):
            bodies[headers["webhook-id"]].add(callback.body)
    found = [f"no callback of {one}" for one in sorted(journal.with_callback - bodies.keys())]
    found += [f"a callback nobody asked for: {one}" for one in sorted(bodies.keys() - journal.with_callback)]
    return found + [f"callbacks of {one} differ: {sent}" for one, sent in bodies.items() if len(sent) > 1]


def _rows_that_differ(log: EventLog) -> list[str]:
    store = ReadStore.over(log)
    Runner(log, store).catch_up()
    return [str(difference) for difference in verify_read_models(log, store, PROJECTIONS)]


def last_position(pieces: list[Piece]) -> Position:
    """What a client sends as ``Last-Event-ID`` to go on."""
    return Position(pieces[-1].id if pieces else 0)
