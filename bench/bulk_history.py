"""A log of any length, filled as fast as the store takes it: events that verify, and their summary rows.

One finished execution is told by the code that hosts run (``bench.history``); every copy of it has an id and
hashes of its own, so `heliograph verify` finds nothing wrong with it. On PostgreSQL rows go in by COPY.
Read models that follow the log are left to their reader.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from bench.history import one_life
from projections import execution_summary
from projections.store import ReadStore
from runtime import codec
from runtime.event_log import EventLog
from runtime.ids import Micros

BATCH_EXECUTIONS = 5_000

_ID = "00000000-0000-7000-8000-000000000000"
_PREV = b"0" * 64

Row = tuple[Any, ...]

_EVENT_COLUMNS = "originator_id, originator_version, topic, state, notification_id"
_ROW_COLUMNS = execution_summary.UPSERT[execution_summary.UPSERT.index("(") + 1 :].partition(")")[0]


class _Template(NamedTuple):
    """An event's bytes with ``_ID`` and, from the second one, ``_PREV`` where each copy has its own."""

    version: int
    topic: str
    data: bytes


class Filler:
    """Adds executions behind those it added before; ids rise, ``span`` microseconds for every execution."""

    def __init__(self, env: Mapping[str, str], begin: Micros, span: int) -> None:
        self._log = EventLog.open(env)
        self._store = ReadStore.over(self._log)
        self._begin = begin
        self._span = span
        told, state = one_life()
        named = [msgspec.structs.replace(event, originator_id=_ID) for event in told]
        self._templates = [
            _Template(event.originator_version, event.TOPIC, codec.encode(event, _PREV.decode() if n else ""))
            for n, event in enumerate(named)
        ]
        self._row = execution_summary.row(msgspec.structs.replace(state, execution_id=_ID), 0)
        names = [name.strip() for name in _ROW_COLUMNS.split(",")]
        self._id_at, self._position_at = names.index("execution_id"), names.index("position")
        self.executions = 0
        self.position = self._log.max_position()

    @property
    def events(self) -> int:
        return self.executions * len(self._templates)

    def close(self) -> None:
        self._log.close()

    def execution_id(self, number: int) -> str:
        """The id of the ``number``th execution: a UUIDv7 of its time."""
        at = (self._begin + number * self._span) // 1_000
        digits = f"{at:012x}"
        return f"{digits[:8]}-{digits[8:]}-7{number % 4096:03x}-8000-{number:012x}"

    def fill(self, events: int) -> None:
        """Go on until so many events were added in all, with nobody appending meanwhile. Blocking."""
        self.position = self._log.max_position()
        while self.events < events:
            left = (events - self.events + len(self._templates) - 1) // len(self._templates)
            self._add(min(BATCH_EXECUTIONS, left))

    def settle(self) -> None:
        """Bring the store's statistics up to what was added, as its own upkeep does in time."""
        if self._store.dialect == "postgres":
            with self._plain_connection() as connection:
                connection.execute("VACUUM (ANALYZE) stored_events, executions")
        else:
            self._store.execute("ANALYZE")

    def _add(self, count: int) -> None:
        ids = [self.execution_id(number) for number in range(self.executions, self.executions + count)]
        events = list(self._events(ids))
        rows = list(self._rows(ids))
        if self._store.dialect == "postgres":
            self._copy(events, rows)
        else:
            marks = ", ".join("?" * 5)
            with self._store.transaction() as transaction:
                transaction.executemany(
                    f"INSERT INTO stored_events ({_EVENT_COLUMNS}) VALUES ({marks})", events
                )
                transaction.executemany(execution_summary.UPSERT, rows)
        self.executions += count
        self.position += len(events)

    def _events(self, ids: list[str]) -> Iterator[Row]:
        positions = itertools.count(self.position + 1)
        for execution_id in ids:
            name, prev = execution_id.encode(), b""
            for version, topic, template in self._templates:
                data = template.replace(_PREV, prev).replace(_ID.encode(), name)
                prev = hashlib.sha256(topic.encode() + data).hexdigest().encode()
                yield execution_id, version, topic, data, next(positions)

    def _rows(self, ids: list[str]) -> Iterator[Row]:
        each = len(self._templates)
        for number, execution_id in enumerate(ids, 1):
            row = list(self._row)
            row[self._id_at], row[self._position_at] = execution_id, self.position + number * each
            yield tuple(row)

    def _copy(self, events: list[Row], rows: list[Row]) -> None:
        with self._plain_connection() as connection, connection.transaction():
            cursor = connection.cursor()
            for table, columns, values in (
                ("stored_events", _EVENT_COLUMNS, events),
                ("executions", _ROW_COLUMNS, rows),
            ):
                with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                    for value in values:
                        copy.write_row(value)
            last = self.position + len(events)
            cursor.execute("SELECT setval('stored_events_notification_id_seq', %s)", (last,))

    def _plain_connection(self) -> Any:
        """COPY and VACUUM have no place in the dialect of the read store."""
        return cast("Any", self._log.factory).datastore.get_connection()
