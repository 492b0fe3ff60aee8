"""Inline read model: the outbox of callback deliveries."""

import msgspec

from projections.store import Reader, Row
from runtime.callbacks import CallbackState
from runtime.ids import Micros

LIST_MAX = 1_000
"""Rows of one page."""


class CallbackRow(msgspec.Struct, frozen=True):
    """``due_at``: when the next attempt is due, None when there is none; microseconds, UTC."""

    execution_id: str
    tenant: str
    url: str
    source: str
    status: str
    attempts: int
    scheduled_at: int
    updated_at: int
    due_at: int | None
    last_error: str
    last_status_code: int
    version: int


CREATE = (
    """
    CREATE TABLE IF NOT EXISTS callbacks (
        execution_id TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        url TEXT NOT NULL,
        source TEXT NOT NULL,
        status TEXT NOT NULL,
        attempts BIGINT NOT NULL,
        scheduled_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        due_at BIGINT,
        last_error TEXT NOT NULL,
        last_status_code BIGINT NOT NULL,
        version BIGINT NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS callbacks_due ON callbacks (due_at) WHERE due_at IS NOT NULL",
)

_COLUMNS = CallbackRow.__struct_fields__
UPSERT = (
    f"INSERT INTO callbacks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    " ON CONFLICT (execution_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM callbacks"


def row(state: CallbackState, position: int) -> Row:
    """Values in the order of ``CallbackRow``."""
    return (
        state.execution_id,
        state.tenant,
        state.url,
        state.source,
        state.status,
        state.attempts,
        state.scheduled_at,
        state.updated_at,
        state.due_at,
        state.last_error.replace("\x00", "\ufffd"),  # PostgreSQL's text can't hold NUL
        state.last_status_code,
        state.version,
    )


def get(store: Reader, execution_id: str) -> CallbackRow | None:
    found = store.query(f"{_SELECT} WHERE execution_id = ?", (execution_id,))
    return CallbackRow(*found[0]) if found else None


def due(store: Reader, now: Micros, limit: int) -> list[CallbackRow]:
    """Pending deliveries whose next attempt is due, the most overdue first."""
    where = " WHERE due_at <= ? AND due_at IS NOT NULL ORDER BY due_at, execution_id LIMIT ?"
    return [CallbackRow(*found) for found in store.query(_SELECT + where, (now, min(limit, LIST_MAX)))]


def next_due(store: Reader) -> Micros | None:
    earliest = store.query("SELECT MIN(due_at) FROM callbacks WHERE due_at IS NOT NULL")[0][0]
    return None if earliest is None else Micros(earliest)
