"""Events and read models as files of Parquet: what an export and an archive are made of.

    events/date=2026-11-21/part-0000000001-0000050000.parquet    events, ``data`` byte for byte
    executions/part-...parquet    summaries of executions
    nodes/part-...parquet         attempts of their nodes

A part is the files of one name; its events of several days lie in several folders.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast, get_args

import fsspec
import msgspec
import pyarrow
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from projections import node_timeline
from projections.execution_summary import ExecutionRow
from projections.node_timeline import AttemptRow
from projections.store import ReadStore
from runtime.event_log import Recorded
from runtime.ids import SECOND, Position

FOLDERS = ("events", "executions", "nodes")

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


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every stored event says about itself."""

    at: int
    by: str = "system"
    cause: str = ""
    corr: str = ""
    node_id: str = ""


_head = msgspec.json.Decoder(_Head).decode


class Folder:
    """A local folder, or any fsspec URL, that holds parts."""

    def __init__(self, url: str) -> None:
        self.fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
        self.root = path.rstrip("/")

    def path(self, *names: str) -> str:
        return posixpath.join(self.root, *names)

    def is_new(self) -> bool:
        """Nothing is there yet."""
        return not (self.fs.exists(self.root) and self.fs.ls(self.root))

    def put(self, name: str, content: bytes) -> None:
        """Write a small file; a reader finds the old one or the new one."""
        path = self.path(name)
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        self.fs.pipe_file(path + ".new", content)
        self._make_durable(path + ".new")
        self.fs.mv(path + ".new", path)
        self._make_durable(path)

    def files(self, folder: str) -> list[str]:
        """Paths of the files below ``folder``."""
        path = self.path(folder)
        return sorted(self.fs.find(path)) if self.fs.exists(path) else []

    def write_events(self, events: Sequence[Recorded], name: str) -> list[str]:
        """The events of a part; ``name`` as ``part_name`` gives it. Returns its files below the root."""
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
        return [f"events/date={date}/{name}" for date in by_date]

    def write_rows(
        self, store: ReadStore, rows: Sequence[ExecutionRow], name: str, exported_to: Position
    ) -> None:
        """Summaries of executions, and the attempts of their nodes as ``store`` has them."""
        self._write_rows("executions", ExecutionRow, rows, exported_to, name)
        attempts = (row for one in rows for row in node_timeline.attempts(store, one.execution_id))
        self._write_rows("nodes", AttemptRow, attempts, exported_to, name)

    def read_events(self, files: Iterable[str]) -> list[Recorded]:
        """The events in these files, in the order of the log."""
        rows: list[dict[str, Any]] = []
        for file in files:
            with self.fs.open(file, "rb") as opened:
                columns = ["position", "originator_id", "originator_version", "topic", "data"]
                rows += pq.read_table(opened, columns=columns).to_pylist()
        return [
            Recorded(
                Position(row["position"]),
                row["originator_id"],
                row["originator_version"],
                row["topic"],
                row["data"].encode(),
            )
            for row in sorted(rows, key=lambda row: row["position"])
        ]

    def _write_rows(
        self, folder: str, kind: type[msgspec.Struct], rows: Iterable[msgspec.Struct], to: int, name: str
    ) -> None:
        schema = _schema_of(kind)
        found = [{**msgspec.structs.asdict(row), "exported_to": to} for row in rows]
        if found:
            self._write(folder, name, pa.Table.from_pylist(found, schema))

    def _write(self, folder: str, name: str, table: Any) -> None:
        path = self.path(folder)
        self.fs.makedirs(path, exist_ok=True)
        with self.fs.open(posixpath.join(path, name), "wb") as file:
            pq.write_table(table, file, compression="zstd")
        self._make_durable(posixpath.join(path, name))

    def _make_durable(self, path: str) -> None:
        """A file, and the folders that name it, on the disk; an object store's answer means as much."""
        if not isinstance(self.fs, LocalFileSystem):
            return
        while path.startswith(self.root) and path != "/":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            path = posixpath.dirname(path)


def part_name(first: Position, last: Position) -> str:
    """Sorts by position, and is the same when the same events are written again."""
    return f"part-{first:012d}-{last:012d}.parquet"


_TYPES: dict[str, Any] = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}


def _schema_of(kind: type[msgspec.Struct]) -> Any:
    fields: list[tuple[str, Any]] = []
    for field in msgspec.structs.fields(kind):
        [name] = {kind.__name__ for kind in get_args(field.type) or (field.type,)} - {"NoneType"}
        fields.append((field.name, pa.timestamp("us", "UTC") if field.name in _TIMES else _TYPES[name]))
    return pa.schema([*fields, ("exported_to", pa.int64())])
