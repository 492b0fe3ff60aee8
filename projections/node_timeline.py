"""Tracked read model: every attempt of every node, when and where it ran, and how it ended.

One row an attempt; a skipped node has one row with attempt 0. An attempt that was still open when its
execution ended is ``abandoned`` (``cancelled`` in a cancelled execution). Each column is set by one kind of
event, so an upsert needs no read of the row before it.
"""

from collections.abc import Sequence

import msgspec

from projections.store import Reader, Row
from projections.tracked import Projection, Read, Write
from runtime import events

TABLE = "node_timeline"

ROWS_MAX = 10_000
"""Attempts that one query returns."""


class AttemptRow(msgspec.Struct, frozen=True):
    """``ran_at`` names the host or worker. ``retry_at``: when the next attempt is due. Times in Micros."""

    execution_id: str
    node_id: str
    attempt: int
    status: str | None = None
    started_at: int | None = None
    ended_at: int | None = None
    ran_at: str | None = None
    retry_at: int | None = None
    error_type: str | None = None
    error_message: str | None = None


_COLUMNS = AttemptRow.__struct_fields__
_KEY = _COLUMNS[:3]

_CREATE = """
    CREATE TABLE IF NOT EXISTS {table} (
        execution_id TEXT NOT NULL,
        node_id TEXT NOT NULL,
        attempt BIGINT NOT NULL,
        status TEXT NOT NULL,
        started_at BIGINT,
        ended_at BIGINT,
        ran_at TEXT,
        retry_at BIGINT,
        error_type TEXT,
        error_message TEXT,
        PRIMARY KEY (execution_id, node_id, attempt)
    )
"""
_UPSERT = (
    f"INSERT INTO {{table}} AS t ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = COALESCE(excluded.{name}, t.{name})" for name in _COLUMNS[len(_KEY) :])
)
_CLOSE = "UPDATE {table} SET status = ?, ended_at = ? WHERE execution_id = ? AND ended_at IS NULL"

_Row = dict[str, object]


def fold(batch: Sequence[Read], reader: Reader) -> list[Write]:
    rows: dict[tuple[str, str, int], _Row] = {}
    closed: list[Row] = []
    for _, event in batch:
        match event:
            case events.NodeStarted():
                changed = _row(rows, event.originator_id, event.node_id, event.attempt)
                changed.update(status="running", started_at=event.at)
            case events.NodeCompleted():
                changed = _row(rows, event.originator_id, event.node_id, event.attempt)
                changed.update(status="completed", ended_at=event.at)
            case events.NodeWaiting():
                changed = _row(rows, event.originator_id, event.node_id, event.attempt)
                changed["status"] = "waiting"
                continue
            case events.NodeFailed():
                changed = _row(rows, event.originator_id, event.node_id, event.attempt)
                changed.update(
                    status="failed",
                    ended_at=event.at,
                    retry_at=event.retry_at,
                    error_type=_text(event.error.type),
                    error_message=_text(event.error.message),
                )
            case events.NodeSkipped():
                changed = _row(rows, event.originator_id, event.node_id, 0)
                changed.update(status="skipped", started_at=event.at, ended_at=event.at)
                continue
            case events.Cancelled():
                closed.append(("cancelled", event.at, event.originator_id))
                continue
            case events.Failed() | events.TimedOut():
                closed.append(("abandoned", event.at, event.originator_id))
                continue
            case _:
                continue
        if event.where:
            changed["ran_at"] = _text(event.where)
    upserts = [(*key, *map(changed.get, _COLUMNS[len(_KEY) :])) for key, changed in rows.items()]
    # A terminal event is the last of its execution, so closing after all upserts keeps the log's order.
    return [(_UPSERT, upserts), (_CLOSE, closed)]


def _row(rows: dict[tuple[str, str, int], _Row], execution_id: str, node_id: str, attempt: int) -> _Row:
    return rows.setdefault((execution_id, node_id, attempt), {})


def _text(value: str) -> str:
    """PostgreSQL's text can't hold NUL, and what user code says in an error may."""
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


NODE_TIMELINE = Projection(TABLE, 1, _CREATE, _KEY, fold)


def attempts(store: Reader, execution_id: str, limit: int = ROWS_MAX) -> list[AttemptRow]:
    """The attempts of an execution's nodes in order of their start."""
    found = store.query(
        f"SELECT {', '.join(_COLUMNS)} FROM {TABLE} WHERE execution_id = ?"
        " ORDER BY started_at, node_id, attempt LIMIT ?",
        (execution_id, limit),
    )
    return [AttemptRow(*values) for values in found]
