"""The log and the read models as partitioned Parquet files, taken up again where the last export ended.

    events/, executions/, nodes/    see ``parquet_parts``: every event, the summary of each execution that a
                                    part's events touched, as it stood then, and every attempt of its nodes
    export.json                     the position the export reached, written last

A row of ``executions`` or ``nodes`` is written again by a later export when something happened since; the row
with the highest ``exported_to`` counts. What a crash left behind lies beyond the position in ``export.json``,
and the next export removes it before it begins. Nothing but one chunk is held in memory.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from gateway.parquet_parts import FOLDERS, Folder, part_name
from projections import execution_summary, retention
from projections.store import ReadStore
from runtime.event_log import EventLog, Recorded
from runtime.ids import Position

CHUNK_EVENTS = 50_000
"""Events of one part; they are held in memory at a time."""

PAGE_EVENTS = 5_000
MANIFEST = "export.json"


class ExportRefused(Exception):
    """The folder can't take this export; the message says why and what to do."""


class Manifest(msgspec.Struct, frozen=True):
    """``position``: of the last event exported. ``log``: the hash of the log's first event."""

    position: int
    log: str
    format: int = 1


class Part(NamedTuple):
    """``position``: how far the export came; ``events``: how many of them this part added."""

    position: Position
    events: int


class ParquetExport:
    """One folder (local, or any fsspec URL) that holds an export of one log.

    ``catch_up``: brings the tracked read models to the end of the log.
    """

    def __init__(self, url: str, log: EventLog, store: ReadStore, catch_up: Callable[[], None]) -> None:
        self._folder = Folder(url)
        self._log = log
        self._store = store
        self._catch_up = catch_up

    def run(self, chunk_events: int = CHUNK_EVENTS) -> Iterator[Part]:
        """Export what is new by now, and say after each part how far it came.

        Raises: ExportRefused when the folder holds something else, or the export of another log.
        """
        manifest = self._open()
        self._remove_beyond(manifest.position)
        until = self._log.max_position()
        while events := self._chunk(Position(manifest.position), until, chunk_events):
            last = events[-1].position
            name = part_name(events[0].position, last)
            self._catch_up()
            self._folder.write_events(events, name)
            # Read behind the events: a row may be newer than its part, never older.
            touched = list(dict.fromkeys(one.originator_id for one in events if ":" not in one.originator_id))
            rows = execution_summary.get_many(self._store, touched)
            self._folder.write_rows(self._store, tuple(rows.values()), name, last)
            manifest = Manifest(last, manifest.log or self._log_identity())
            self._folder.put(MANIFEST, msgspec.json.encode(manifest))
            yield Part(last, len(events))

    # --- the folder -----------------------------------------------------------------------------------

    def _open(self) -> Manifest:
        folder = self._folder
        path = folder.path(MANIFEST)
        if not folder.fs.exists(path):
            if not folder.is_new():
                raise ExportRefused(f"{folder.root} is not empty and holds no export; name a new folder")
            return Manifest(0, self._log_identity())
        try:
            manifest = msgspec.json.decode(folder.fs.cat_file(path), type=Manifest)
        except msgspec.DecodeError as error:
            raise ExportRefused(f"{path} can't be read: {error}") from None
        if manifest.log != self._log_identity():
            raise ExportRefused(f"{folder.root} holds the export of another log; name a new folder")
        return manifest

    def _log_identity(self) -> str:
        return retention.identity(self._store, self._log)

    def _remove_beyond(self, position: int) -> None:
        """What an interrupted export wrote and never counted."""
        for path in (path for name in FOLDERS for path in self._folder.files(name)):
            if int(posixpath.basename(path).split("-")[1]) > position:
                self._folder.fs.rm_file(path)

    # --- the parts ------------------------------------------------------------------------------------

    def _chunk(self, after: Position, until: Position, size: int) -> list[Recorded]:
        events: list[Recorded] = []
        while len(events) < size and after < until:
            page = self._log.feed(after, min(PAGE_EVENTS, size - len(events)))
            if not page:
                break
            events += page
            after = page[-1].position
        return events


def read_events(url: str) -> Iterator[Recorded]:
    """The exported events in the order of the log, as ``verify`` takes them. Raises: ExportRefused."""
    folder = Folder(url)
    path = folder.path(MANIFEST)
    if not folder.fs.exists(path):
        raise ExportRefused(f"{url} holds no finished export")
    until = msgspec.json.decode(folder.fs.cat_file(path), type=Manifest).position
    parts: dict[str, list[str]] = {}
    for file in folder.files("events"):
        parts.setdefault(posixpath.basename(file), []).append(file)
    # A part that spans midnight lies in two folders; its name sorts it among the others.
    for name in sorted(parts):
        yield from (one for one in folder.read_events(parts[name]) if one.position <= until)
