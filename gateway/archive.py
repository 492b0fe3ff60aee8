"""Old executions, moved out of the log into Parquet files that keep every promise of the log.

    archive.json                    which log it is of
    parts/part-....json             what a part holds, and whether it has left the log
    events/, executions/, nodes/    see ``parquet_parts``; the folders of an export, so the same questions fit

A part is some whole executions, all their events, their callbacks', and what read models said of them:

    (files) --read back: equal, counted, chains whole--> written --they leave the log--> dropped

After a crash, files without their ``parts/*.json`` are removed, and what a written part holds and the log
still has leaves it. Each execution leaves in one transaction, so a repeated archive does nothing twice. Whole
partitions of a PostgreSQL log are dropped when everything in them is in written parts; everything else leaves
row by row.

One archive of a log runs at a time (a lease in the log). Memory: the events of one part.
"""

from __future__ import annotations

import hashlib
import posixpath
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import msgspec

from gateway.aggregates import change
from gateway.keys import FIRST_TENANT
from gateway.parquet_parts import FOLDERS, Folder, part_name
from projections import execution_summary, retention
from projections.retention import (
    AGE_SECONDS_MIN,
    ARCHIVE,
    EVERYTHING,
    PAGE_EXECUTIONS,
    Candidate,
    Share,
    Span,
)
from projections.store import ReadStore, Transaction
from projections.stores import partitions
from projections.stores.partitions import Content, Partition
from projections.tracked import Projection
from runtime import codec, resources
from runtime.administration import Cause
from runtime.event_log import EventLog, Recorded
from runtime.events import Event, Json
from runtime.ids import SECOND, Micros, resource_stream
from runtime.resources import ResourceState, evolve_resource

PART_EVENTS = 50_000
"""Events of one part, unless one execution has more; they are held in memory at a time."""

DROP_EVENTS = 5_000
"""Events that leave the log in one transaction; appends wait for it."""

PARTITION_SECONDS_MAX = 3_600
"""What counting a partition, or deleting the rows of its executions, may take."""

MANIFEST = "archive.json"


class ArchiveRefused(Exception):
    """Nothing was taken from the log by what was refused; the message says why and what to do."""


class Manifest(msgspec.Struct, frozen=True):
    """``log``: as ``retention.identity`` gives it."""

    log: str
    format: int = 1


class ArchivedPart(msgspec.Struct, frozen=True, kw_only=True):
    """``files``: of events, relative to the archive. ``digest``: SHA-256 over the hashes of its events.

    ``callback_events``: those of the ``events`` that stand in streams of callbacks.
    """

    name: str
    executions: int
    events: int
    callback_events: int
    first_position: int
    last_position: int
    files: list[str]
    digest: str
    is_dropped: bool = False


class Progress(NamedTuple):
    """A part that has left the log; ``partition``: it went with this one."""

    part: ArchivedPart
    partition: str = ""


class Archive:
    """One folder (local, or any fsspec URL) that takes in the old executions of one log."""

    def __init__(
        self,
        url: str,
        log: EventLog,
        store: ReadStore,
        projections: Sequence[Projection],
        catch_up: Callable[[], None],
    ) -> None:
        """``catch_up``: brings the tracked read models, ``projections``, to the end of the log."""
        self._url = url
        self._folder = Folder(url)
        self._log = log
        self._store = store
        self._projections = projections
        self._catch_up = catch_up
        self._holder = uuid.uuid4().hex
        self._recorded_as = ""

    def waiting(self, before: Micros) -> tuple[int, int]:
        """How many executions may go now, and how many events they have; callbacks' not counted."""
        count = events = 0
        after: Candidate | None = None
        while page := retention.candidates(self._store, before, after=after):
            count += len(page)
            events += sum(one.events for one in page)
            after = page[-1]
        return count, events

    def run(self, before: Micros, part_events: int = PART_EVENTS) -> Iterator[Progress]:
        """Archive what ended before ``before``, and say after each part that it has left the log.

        Raises: ArchiveRefused for a cutoff within ``AGE_SECONDS_MIN``, a folder of something else, an archive
        that runs already, or files that were read back otherwise than they were written.
        """
        if before > _now() - AGE_SECONDS_MIN * SECOND:
            raise ArchiveRefused(f"what ended in the last {AGE_SECONDS_MIN} s stays; name a time before that")
        self._keep_lease()
        try:
            self._open()
            self._catch_up()
            for part in self._unfinished():
                self._drop_rows(part, self._read(part))
                yield Progress(self._mark_dropped(part))
            yield from self._drop_partitions(before, part_events)
            for part, recorded in self._parts(before, EVERYTHING, part_events):
                self._drop_rows(part, recorded)
                yield Progress(self._mark_dropped(part))
            self._drop_empty_partitions(before)
        finally:
            retention.give_lease_back(self._store, self._holder)

    def _keep_lease(self) -> None:
        if not retention.take_lease(self._store, self._holder, _now()):
            raise ArchiveRefused("this log is being archived by another process; wait for its end")

    # --- the folder -----------------------------------------------------------------------------------

    def _open(self) -> None:
        folder, identity = self._folder, retention.keep_identity(self._store, self._log)
        if folder.fs.exists(folder.path(MANIFEST)):
            found = msgspec.json.decode(folder.fs.cat_file(folder.path(MANIFEST)), type=Manifest)
            if found.log != identity:
                raise ArchiveRefused(f"{folder.root} holds the archive of another log; name a new folder")
        elif folder.is_new():
            folder.put(MANIFEST, msgspec.json.encode(Manifest(identity)))
        else:
            raise ArchiveRefused(f"{folder.root} is not empty and holds no archive; name a new folder")
        known = {_stem(path) for path in folder.files("parts")}
        for path in (path for name in FOLDERS for path in folder.files(name)):
            if _stem(path) not in known:
                folder.fs.rm_file(path)

    def _unfinished(self) -> list[ArchivedPart]:
        return [part for part in parts_of(self._folder) if not part.is_dropped]

    def _put(self, part: ArchivedPart) -> None:
        self._folder.put(f"parts/{_stem(part.name)}.json", msgspec.json.encode(part))

    def _mark_dropped(self, part: ArchivedPart) -> ArchivedPart:
        dropped = msgspec.structs.replace(part, is_dropped=True)
        self._put(dropped)
        return dropped

    def _read(self, part: ArchivedPart) -> list[Recorded]:
        try:
            return read_part(self._folder, part)
        except ArchiveRefused as fault:
            raise ArchiveRefused(f"{fault}; its executions stay in the log") from None

    # --- writing --------------------------------------------------------------------------------------

    def _parts(
        self, before: Micros, span: Span, part_events: int
    ) -> Iterator[tuple[ArchivedPart, list[Recorded]]]:
        """Write what may go of ``span``, part by part."""
        chosen: list[Candidate] = []
        events = 0
        after: Candidate | None = None
        while page := retention.candidates(self._store, before, span, after):
            for one in page:
                if chosen and events + one.events > part_events:
                    yield self._write(before, chosen)
                    chosen, events = [], 0
                chosen.append(one)
                events += one.events
            after = page[-1]
        if chosen:
            yield self._write(before, chosen)

    def _write(self, before: Micros, chosen: Sequence[Candidate]) -> tuple[ArchivedPart, list[Recorded]]:
        self._keep_lease()
        executions = [one.execution_id for one in chosen]
        recorded = retention.events_of(self._store, executions)
        name = part_name(recorded[0].position, recorded[-1].position)
        files = self._folder.write_events(recorded, name)
        rows = execution_summary.get_many(self._store, executions)
        self._folder.write_rows(self._store, tuple(rows.values()), name, recorded[-1].position)
        part = ArchivedPart(
            name=name,
            executions=len(executions),
            events=len(recorded),
            callback_events=sum(":" in one.originator_id for one in recorded),
            first_position=recorded[0].position,
            last_position=recorded[-1].position,
            files=files,
            digest=_digest(recorded),
        )
        back = self._read(part)
        if back != recorded:
            raise ArchiveRefused(f"{name} was read back otherwise than it was written; nothing left the log")
        _check_chains(back, {one.execution_id: one.events for one in chosen})
        self._remember(before)
        self._put(part)
        return part, back

    def _remember(self, before: Micros) -> None:
        """Record in the log, once a run and before anything leaves, where its old part goes to."""
        if self._recorded_as:
            return
        self._recorded_as = self._holder
        stream = resource_stream(FIRST_TENANT, ARCHIVE, self._recorded_as)
        document: dict[str, Json] = {"url": self._url, "before": before}

        def decide(state: ResourceState | None) -> tuple[Event, ...]:
            cause = Cause(at=_now())
            return resources.create(state, FIRST_TENANT, ARCHIVE, self._recorded_as, document, cause)

        change(self._log, stream, evolve_resource, decide)

    # --- leaving the log ------------------------------------------------------------------------------

    def _wait_for_models(self, position: int) -> None:
        if not retention.has_passed(self._store, self._projections, position):
            self._catch_up()
        if not retention.has_passed(self._store, self._projections, position):
            raise ArchiveRefused("a read model does not get as far as what is to leave; see its metrics")

    def _drop_rows(self, part: ArchivedPart, recorded: Sequence[Recorded]) -> None:
        """Take from the log what it still holds of the part, some executions a transaction."""
        self._wait_for_models(part.last_position)
        by_execution = _by_execution(recorded)
        there = retention.still_there(self._store, list(by_execution))
        for group in _groups(there, by_execution):
            self._keep_lease()
            events = sorted(
                (one for execution in group for one in by_execution[execution]), key=lambda one: one.position
            )
            shares = retention.shares(self._store, self._projections, events)
            with self._store.transaction(exclusive=True) as transaction:
                if retention.events_of(transaction, group) != events:
                    raise ArchiveRefused(
                        f"{part.name} does not hold what the log holds; nothing left the log"
                    )
                retention.drop_rows(transaction, group, self._projections)
                retention.drop_events(transaction, group)
                retention.keep_shares(transaction, shares)
                retention.end_rebuilds(transaction, self._projections)

    def _drop_partitions(self, before: Micros, part_events: int) -> Iterator[Progress]:
        """Partitions of which nothing has to stay: their executions leave with them."""
        if self._store.dialect != "postgres":
            return
        for partition in partitions.partitions(self._store):
            span = Span(partition.first, partition.behind)
            is_old = partition.behind <= partitions.lowest_id(before)
            if not is_old or not retention.all_may_go(self._store, before, span):
                continue
            written: list[ArchivedPart] = []
            shares: list[Share] = []
            for part, recorded in self._parts(before, span, part_events):
                self._wait_for_models(part.last_position)
                shares += retention.shares(self._store, self._projections, recorded)
                written.append(part)
            with self._patient() as transaction:
                held = partitions.content_of(transaction, partition)
            # Nothing in it that belongs to no execution, or came meanwhile.
            is_whole = held.events == sum(part.events - part.callback_events for part in written)
            if written and is_whole and self._drop_partition(partition, span, shares, held):
                yield from (Progress(self._mark_dropped(part), partition.name) for part in written)
                continue
            for part in written:
                self._drop_rows(part, self._read(part))
                yield Progress(self._mark_dropped(part))

    def _drop_partition(
        self, partition: Partition, span: Span, shares: Sequence[Share], held: Content
    ) -> bool:
        self._keep_lease()
        try:
            with self._patient() as transaction:
                retention.drop_span(transaction, span, self._projections)
                if not partitions.drop(transaction, partition, held):
                    raise _Changed
                retention.keep_shares(transaction, shares)
                retention.end_rebuilds(transaction, self._projections)
        except _Changed:
            return False
        return True

    def _drop_empty_partitions(self, before: Micros) -> None:
        if self._store.dialect != "postgres":
            return
        for partition in partitions.partitions(self._store):
            if partition.behind <= partitions.lowest_id(before) and partitions.is_empty(
                self._store, partition
            ):
                with self._store.transaction() as transaction:
                    partitions.drop(transaction, partition, partitions.EMPTY)

    @contextmanager
    def _patient(self) -> Generator[Transaction]:
        """A transaction on PostgreSQL whose statements may go over a whole partition."""
        with self._store.transaction() as transaction:
            transaction.execute(f"SET LOCAL statement_timeout = {PARTITION_SECONDS_MAX * 1_000}")
            yield transaction


class _Changed(Exception):
    """Somebody wrote into a partition that was about to be dropped."""


def parts_of(folder: Folder) -> list[ArchivedPart]:
    """In the order of their first positions."""
    return [
        msgspec.json.decode(folder.fs.cat_file(path), type=ArchivedPart)
        for path in folder.files("parts")
        if path.endswith(".json")
    ]


def read_part(folder: Folder, part: ArchivedPart) -> list[Recorded]:
    """Its events in the order of the log. Raises: ArchiveRefused for others than those that were archived."""
    recorded = folder.read_events(folder.path(file) for file in part.files)
    if len(recorded) != part.events or _digest(recorded) != part.digest:
        raise ArchiveRefused(f"{folder.path(part.name)} does not hold the events that were archived")
    return recorded


def read_archive(url: str, log: str | None = None) -> Iterator[list[Recorded]]:
    """The events of each part that has left the log, as ``verify`` takes them.

    ``log``: the identity of the log that it must be the archive of. Raises: ArchiveRefused.
    """
    folder = Folder(url)
    if not folder.fs.exists(folder.path(MANIFEST)):
        raise ArchiveRefused(f"{url} holds no archive")
    found = msgspec.json.decode(folder.fs.cat_file(folder.path(MANIFEST)), type=Manifest)
    if log is not None and found.log != log:
        raise ArchiveRefused(f"{url} holds the archive of another log")
    for part in parts_of(folder):
        if part.is_dropped:
            yield read_part(folder, part)


def _stem(path: str) -> str:
    return posixpath.basename(path).partition(".")[0]


def _digest(recorded: Sequence[Recorded]) -> str:
    digest = hashlib.sha256()
    for one in recorded:
        digest.update(f"{one.position} {one.originator_id} {one.originator_version} {one.hash()}\n".encode())
    return digest.hexdigest()


def _check_chains(recorded: Sequence[Recorded], events: dict[str, int]) -> None:
    """Every stream whole: versions from 1, each event with the hash of the one before, all there.

    Raises: ArchiveRefused.
    """
    heads: dict[str, tuple[int, str]] = {}
    for one in recorded:
        version, head = heads.get(one.originator_id, (0, ""))
        if one.originator_version != version + 1 or codec.previous_hash(one.data) != head:
            raise ArchiveRefused(
                f"the log's chain of {one.originator_id} is broken at version {one.originator_version};"
                " `heliograph verify` tells more"
            )
        heads[one.originator_id] = (one.originator_version, one.hash())
    for execution, count in events.items():
        if heads.get(execution, (0, ""))[0] != count:
            raise ArchiveRefused(f"the log has not all {count} events of {execution}")


def _by_execution(recorded: Sequence[Recorded]) -> dict[str, list[Recorded]]:
    found: dict[str, list[Recorded]] = {}
    for one in recorded:
        found.setdefault(one.originator_id.rpartition(":")[2], []).append(one)
    return found


def _groups(executions: Sequence[str], events: dict[str, list[Recorded]]) -> Iterator[list[str]]:
    """Runs of executions with about ``DROP_EVENTS`` events each, at most ``PAGE_EXECUTIONS`` of them."""
    total = 0

    def number(execution: str) -> int:
        nonlocal total
        total += max(len(events[execution]), DROP_EVENTS // PAGE_EXECUTIONS)
        return (total - 1) // DROP_EVENTS

    for _, group in groupby(executions, key=number):
        yield list(group)


def _now() -> Micros:
    return Micros(time.time_ns() // 1_000)
