"""The log and the read models as partitioned Parquet files, taken up again where the last export ended.

    events/date=2026-11-21/part-0000000001-0000050000.parquet    every event, ``data`` byte for byte
    executions/part-...parquet    the summary of each execution those events touched, as it stood then
    nodes/part-...parquet         every attempt of every node of those executions
    export.json                   the position the export reached, written last

A row of ``executions`` or ``nodes`` is written again by a later export when something happened since; the row
with the highest ``exported_to`` counts. What a crash left behind lies beyond the position in ``export.json``,
and the next export removes it before it begins. Nothing but one chunk is held in memory.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast, get_args

import fsspec
import msgspec
import pyarrow
import pyarrow.parquet

from projections import execution_summary, node_timeline
from projections.execution_summary import ExecutionRow
from projections.node_timeline import AttemptRow
from projections.store import ReadStore
from runtime.event_log import EventLog, Recorded
from runtime.ids import SECOND, Position

CHUNK_EVENTS = 50_000
"""Events of one part; they are held in memory at a time."""

PAGE_EVENTS = 5_000
MANIFEST = "export.json"

pa: Any = pyarrow
pq: Any = pyarrow.parquet
"""The library ships no types."""

_TIMES = frozenset(
    {"created_at", "started_at", "ended_at", "updated_at", "deadline_at", "wake_at", "retry_at"}
    | {"cancel_requested_at"}
)
"""Columns that hold microseconds since the epoch, UTC; timestamps in the files."""

_EVENTS = pa.schema(
    [
        ("position", pa.int64()),
        ("originator_id", pa.string()),
        ("originator_version", pa.int64()),
        ("topic", pa.string()),
        ("recorded_at", pa.timestamp("us", "UTC")),
        ("actor", pa.string()),
        ("causation_id", pa.string()),
        ("correlation_id", pa.string()),
        ("node_id", pa.string()),
        ("data", pa.string()),
    ]
)


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


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every stored event says about itself."""

    at: int
    by: str = "system"
    cause: str = ""
    corr: str = ""
    node_id: str = ""


_head = msgspec.json.Decoder(_Head).decode


class ParquetExport:
    """One folder (local, or any fsspec URL) that holds an export of one log.

    ``catch_up``: brings the tracked read models to the end of the log.
    """

    def __init__(self, url: str, log: EventLog, store: ReadStore, catch_up: Callable[[], None]) -> None:
        self._fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
        self._root = path.rstrip("/")
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
            # The name sorts by position, and is the same when a crash makes this export repeat it.
            name = f"part-{events[0].position:012d}-{last:012d}.parquet"
            self._catch_up()
            self._write_events(events, name)
            # Read behind the events: a row may be newer than its part, never older.
            touched = list(dict.fromkeys(one.originator_id for one in events if ":" not in one.originator_id))
            rows = execution_summary.get_many(self._store, touched)
            self._write_rows("executions", ExecutionRow, rows.values(), last, name)
            attempts = (row for one in rows for row in node_timeline.attempts(self._store, one))
            self._write_rows("nodes", AttemptRow, attempts, last, name)
            manifest = Manifest(last, manifest.log or self._first_hash())
            self._commit(manifest)
            yield Part(last, len(events))

    # --- the folder -----------------------------------------------------------------------------------

    def _open(self) -> Manifest:
        path = posixpath.join(self._root, MANIFEST)
        if not self._fs.exists(path):
            if self._fs.exists(self._root) and self._fs.ls(self._root):
                raise ExportRefused(f"{self._root} is not empty and holds no export; name a new folder")
            return Manifest(0, self._first_hash())
        try:
            manifest = msgspec.json.decode(self._fs.cat_file(path), type=Manifest)
        except msgspec.DecodeError as error:
            raise ExportRefused(f"{path} can't be read: {error}") from None
        if manifest.log != self._first_hash():
            raise ExportRefused(f"{self._root} holds the export of another log; name a new folder")
        return manifest

    def _first_hash(self) -> str:
        first = self._log.feed(Position(0), 1)
        return first[0].hash() if first else ""

    def _remove_beyond(self, position: int) -> None:
        """What an interrupted export wrote and never counted."""
        for path in self._fs.find(self._root):
            name = posixpath.basename(path)
            if name.startswith("part-") and int(name.split("-")[1]) > position:
                self._fs.rm_file(path)

    def _commit(self, manifest: Manifest) -> None:
        # Moved into its place, so that a reader finds the old one or the new one.
        path = posixpath.join(self._root, MANIFEST)
        self._fs.pipe_file(path + ".new", msgspec.json.encode(manifest))
        self._fs.mv(path + ".new", path)

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

    def _write_events(self, events: Sequence[Recorded], name: str) -> None:
        by_date: dict[str, list[dict[str, object]]] = {}
        for one in events:
            head = _head(one.data)
            date = datetime.fromtimestamp(head.at // SECOND, UTC).date().isoformat()
            by_date.setdefault(date, []).append(
                {
                    "position": one.position,
                    "originator_id": one.originator_id,
                    "originator_version": one.originator_version,
                    "topic": one.topic,
                    "recorded_at": head.at,
                    "actor": head.by,
                    "causation_id": head.cause,
                    "correlation_id": head.corr,
                    "node_id": head.node_id or None,
                    "data": one.data.decode(),
                }
            )
        for date, rows in by_date.items():
            self._write(f"events/date={date}", name, pa.Table.from_pylist(rows, _EVENTS))

    def _write_rows(
        self, folder: str, kind: type[msgspec.Struct], rows: Iterable[msgspec.Struct], to: int, name: str
    ) -> None:
        schema = _schema_of(kind)
        found = [{**msgspec.structs.asdict(row), "exported_to": to} for row in rows]
        if found:
            self._write(folder, name, pa.Table.from_pylist(found, schema))

    def _write(self, folder: str, name: str, table: Any) -> None:
        path = posixpath.join(self._root, folder)
        self._fs.makedirs(path, exist_ok=True)
        with self._fs.open(posixpath.join(path, name), "wb") as file:
            pq.write_table(table, file, compression="zstd")


def read_events(url: str) -> Iterator[Recorded]:
    """The exported events in the order of the log, as ``verify`` takes them. Raises: ExportRefused."""
    fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    path = posixpath.join(root.rstrip("/"), MANIFEST)
    if not fs.exists(path):
        raise ExportRefused(f"{url} holds no finished export")
    until = msgspec.json.decode(fs.cat_file(path), type=Manifest).position
    parts: dict[str, list[str]] = {}
    for file in fs.glob(posixpath.join(root.rstrip("/"), "events", "date=*", "part-*.parquet")):
        parts.setdefault(posixpath.basename(file), []).append(file)
    # A part that spans midnight lies in two folders; its name sorts it among the others.
    for name in sorted(parts):
        rows: list[dict[str, Any]] = []
        for file in parts[name]:
            with fs.open(file, "rb") as opened:
                columns = ["position", "originator_id", "originator_version", "topic", "data"]
                rows += pq.read_table(opened, columns=columns).to_pylist()
        for row in sorted(rows, key=lambda row: row["position"]):
            if row["position"] <= until:
                yield Recorded(
                    Position(row["position"]),
                    row["originator_id"],
                    row["originator_version"],
                    row["topic"],
                    row["data"].encode(),
                )


_TYPES: dict[str, Any] = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}


def _schema_of(kind: type[msgspec.Struct]) -> Any:
    fields: list[tuple[str, Any]] = []
    for field in msgspec.structs.fields(kind):
        [name] = {kind.__name__ for kind in get_args(field.type) or (field.type,)} - {"NoneType"}
        fields.append((field.name, pa.timestamp("us", "UTC") if field.name in _TIMES else _TYPES[name]))
    return pa.schema([*fields, ("exported_to", pa.int64())])
