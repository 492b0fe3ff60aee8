"""The SQLite store, with points before, within and after each of its transactions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from eventsourcing import sqlite as library
from eventsourcing.persistence import StoredEvent

from projections.stores import sqlite
from tests.faults import crash_points

POINTS = {
    "reader_positions": "projection",
    "idempotency": "idempotency",
    "callback_claims": "claim",
}
"""A table that a transaction names, and what its points are called after it."""


class Writing(sqlite.Writing):
    """Remembers which of ``POINTS`` the transaction is about."""

    point = ""

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self._note(sql)
        return super().query(sql, params)

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        self._note(sql)
        super().execute(sql, params)

    def track(self, name: str, position: int) -> None:
        self.point = "tracking"
        super().track(name, position)

    def _note(self, sql: str) -> None:
        if not sql.startswith(("CREATE", "SELECT")):
            self.point = next((point for table, point in POINTS.items() if table in sql), self.point)


class Datastore(sqlite.Datastore):
    points: crash_points.CrashPoints

    @contextmanager
    def writing(self, *, exclusive: bool = False) -> Generator[Writing]:
        with self.transaction(commit=True) as cursor:
            writing = Writing(cursor, self.tracking)
            yield writing
            self.points.reach(f"{writing.point}.before")
        self.points.reach(f"{writing.point}.after")


class Recorder(sqlite.Recorder):
    @property
    def points(self) -> crash_points.CrashPoints:
        assert isinstance(self.datastore, Datastore)
        return self.datastore.points

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        point = _point(stored_events)
        self.points.reach(f"{point}.before")
        positions = super().insert_events(stored_events, **kwargs)
        self.points.reach(f"{point}.after")
        return positions

    def _insert_events(
        self, c: library.SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int]:
        positions = super()._insert_events(c, stored_events, **kwargs)
        self.points.reach(f"{_point(stored_events)}.within")
        return positions


def _point(stored_events: Sequence[StoredEvent]) -> str:
    kinds = {str(event.originator_id).partition(":")[0] for event in stored_events}
    return "append.callback" if "callback" in kinds else "append.execution"


class Factory(sqlite.Factory):
    application_recorder_class = Recorder

    def _datastore(self) -> Datastore:
        datastore = Datastore(self.env.get(self.SQLITE_DBNAME) or "")
        datastore.points = crash_points.crash_points(self.env[crash_points.KEY])
        return datastore
