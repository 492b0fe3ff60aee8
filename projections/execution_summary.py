"""Inline read model: one row for each execution, written in the transaction of every append.

``row`` is pure, so a rebuilt table equals the live one; a status read never lags a write.
"""

from collections.abc import Mapping, Sequence

import msgspec

from projections.store import Reader, Row
from runtime.ids import SECOND, HostName, Micros
from runtime.scheduling import wake_at
from runtime.state import ExecutionState

TABLE = "executions"

SEARCH_MAX = 500
"""Rows of one page of a search."""

IDS_MAX = 500
"""Ids of one ``get_many``; SQLite and PostgreSQL both take this many parameters."""


OWNED_MAX = 10_000
"""Executions of one owner that ``owners`` counts; more look like as many."""


class ExecutionRow(msgspec.Struct, frozen=True):
    """One row of ``executions``, columns in this order. Times in microseconds, UTC.

    ``input``, ``input_ref``, ``output``, ``output_ref`` and ``files`` are JSON text; ``position`` is that of
    the last event.
    ``subject``: the resource it is a run of, or empty. ``cost`` in US dollars.
    ``queue_key``: empty without a queue; ``queue_slot``: what it holds of that queue now.
    ``wake_at``: the next time something is due by itself (a timer, a retry, the deadline).
    """

    execution_id: str
    tenant: str
    source: str
    flow_id: str
    flow_version: str
    placement: str
    parent_id: str
    correlation_id: str
    by: str
    created_at: int
    total_nodes: int
    callback_url: str
    debug: int
    input: str
    input_ref: str | None
    files: str
    deadline_at: int | None
    subject: str
    queue_key: str
    priority: int
    status: str
    progress: float
    current_node: str | None
    completed_nodes: int
    retry_count: int
    owner: str
    started_at: int | None
    ended_at: int | None
    updated_at: int
    cancel_requested_at: int | None
    wake_at: int | None
    version: int
    position: int
    output: str | None
    output_ref: str | None
    error_type: str | None
    error_message: str | None
    failed_node: str | None
    model_calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost: float
    cost_known: int
    queue_slot: int | None


CREATE = (
    """
    CREATE TABLE IF NOT EXISTS executions (
        execution_id TEXT NOT NULL PRIMARY KEY,
        tenant TEXT NOT NULL,
        source TEXT NOT NULL,
        flow_id TEXT NOT NULL,
        flow_version TEXT NOT NULL,
        placement TEXT NOT NULL,
        parent_id TEXT NOT NULL,
        correlation_id TEXT NOT NULL,
        created_by TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        total_nodes BIGINT NOT NULL,
        callback_url TEXT NOT NULL,
        debug BIGINT NOT NULL,
        input TEXT NOT NULL,
        input_ref TEXT,
        files TEXT NOT NULL,
        deadline_at BIGINT,
        subject TEXT NOT NULL,
        queue_key TEXT NOT NULL,
        priority BIGINT NOT NULL,
        status TEXT NOT NULL,
        progress DOUBLE PRECISION NOT NULL,
        current_node TEXT,
        completed_nodes BIGINT NOT NULL,
        retry_count BIGINT NOT NULL,
        owner TEXT NOT NULL,
        started_at BIGINT,
        ended_at BIGINT,
        updated_at BIGINT NOT NULL,
        cancel_requested_at BIGINT,
        wake_at BIGINT,
        version BIGINT NOT NULL,
        position BIGINT NOT NULL,
        output TEXT,
        output_ref TEXT,
        error_type TEXT,
        error_message TEXT,
        failed_node TEXT,
        model_calls BIGINT NOT NULL,
        input_tokens BIGINT NOT NULL,
        output_tokens BIGINT NOT NULL,
        cache_read_tokens BIGINT NOT NULL,
        cache_write_tokens BIGINT NOT NULL,
        cost DOUBLE PRECISION NOT NULL,
        cost_known BIGINT NOT NULL,
        queue_slot BIGINT
    )
    """,
    "CREATE INDEX IF NOT EXISTS executions_by_tenant ON executions (tenant, created_at, execution_id)",
    "CREATE INDEX IF NOT EXISTS executions_by_time ON executions (created_at, execution_id)",
    "CREATE INDEX IF NOT EXISTS executions_open ON executions (owner, execution_id) WHERE ended_at IS NULL",
    "CREATE INDEX IF NOT EXISTS executions_unfinished ON executions (tenant) WHERE ended_at IS NULL",
    "CREATE INDEX IF NOT EXISTS executions_by_subject ON executions (tenant, subject, created_at)"
    " WHERE subject <> ''",
    "CREATE INDEX IF NOT EXISTS executions_due ON executions (owner, wake_at) WHERE wake_at IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS executions_queued"
    " ON executions (tenant, flow_id, queue_key, started_at, owner)"
    " WHERE ended_at IS NULL AND queue_key <> ''",
    "CREATE INDEX IF NOT EXISTS executions_by_start ON executions (tenant, flow_id, queue_key, started_at)"
    " WHERE started_at IS NOT NULL AND queue_key <> ''",
    # Whatever hosts believe: no two open executions hold one slot.
    "CREATE UNIQUE INDEX IF NOT EXISTS executions_queue_slot"
    " ON executions (tenant, flow_id, queue_key, queue_slot) WHERE queue_slot IS NOT NULL",
)

_COLUMNS = tuple("created_by" if name == "by" else name for name in ExecutionRow.__struct_fields__)
_FIRST_MUTABLE = _COLUMNS.index("status")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM executions"

# What never changes after the first event is left out of the update, so that SQLite doesn't touch the
# indexes over it.
UPSERT = (
    f"INSERT INTO executions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    " ON CONFLICT (execution_id) DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[_FIRST_MUTABLE:])
)

# From one owner to the next, and at most ``OWNED_MAX`` of each: asked every few seconds, it may not cost more
# when very many executions wait.
OWNERS = f"""
    WITH RECURSIVE holders (owner) AS (
        SELECT MIN(owner) FROM executions WHERE ended_at IS NULL
        UNION ALL
        SELECT (SELECT MIN(e.owner) FROM executions e WHERE e.ended_at IS NULL AND e.owner > holders.owner)
        FROM holders WHERE holders.owner IS NOT NULL
    )
    SELECT owner, (
        SELECT COUNT(*) FROM (
            SELECT 1 FROM executions e WHERE e.owner = holders.owner AND e.ended_at IS NULL LIMIT {OWNED_MAX}
        ) AS held
    ) FROM holders WHERE owner IS NOT NULL ORDER BY owner
"""

_encode = msgspec.json.Encoder().encode


def row(state: ExecutionState, position: int) -> Row:
    """The values of ``ExecutionRow`` for ``state``, whose last event stands at ``position``."""
    error, timeout = state.error, state.timeout_seconds
    return (
        state.execution_id,
        state.tenant,
        state.source,
        state.flow_id,
        state.flow_version,
        state.placement,
        state.parent_id,
        state.correlation_id,
        state.by,
        state.created_at,
        state.total_nodes,
        state.callback_url,
        1 if state.debug else 0,
        _encode(state.input).decode(),
        None if state.input_ref is None else _encode(state.input_ref).decode(),
        _encode(state.files).decode() if state.files else "[]",
        # As it was accepted with: the state forgets it at the end, and this column is written once.
        None if timeout is None else state.created_at + int(timeout * SECOND),
        state.subject,
        state.queue_key,
        state.priority,
        state.status,
        state.progress,
        state.current_node,
        state.completed_nodes,
        state.retry_count,
        state.owner.partition("/")[0],  # the host's name, without its incarnation
        state.started_at,
        state.ended_at,
        state.updated_at,
        state.cancel_requested_at,
        None if state.ended_at is not None else wake_at(state),
        state.version,
        position,
        _encode(state.output).decode() if state.status == "completed" and state.output_ref is None else None,
        None if state.output_ref is None else _encode(state.output_ref).decode(),
        None if error is None else _text(error.type),
        None if error is None else _text(error.message),
        state.failed_node or None,
        state.model_calls,
        state.input_tokens,
        state.output_tokens,
        state.cache_read_tokens,
        state.cache_write_tokens,
        state.cost,
        1 if state.cost_known else 0,
        None if state.ended_at is not None else state.queue_slot,
    )


def _text(value: str) -> str:
    """PostgreSQL's text can't hold NUL, and what user code says in an error may."""
    return value.replace("\x00", "\ufffd") if "\x00" in value else value


def get(store: Reader, execution_id: str) -> ExecutionRow | None:
    found = store.query(f"{_SELECT} WHERE execution_id = ?", (execution_id,))
    return ExecutionRow(*found[0]) if found else None


def runs_of(
    store: Reader, tenant: str, subject: str, limit: int = SEARCH_MAX, before: int | None = None
) -> list[ExecutionRow]:
    """The runs of a resource (``workflow:<id>``), newest first; ``before``: created earlier than that."""
    older = "" if before is None else " AND created_at < ?"
    params: tuple[object, ...] = (tenant, subject) if before is None else (tenant, subject, before)
    found = store.query(
        # The second condition is the partial index's own.
        f"{_SELECT} WHERE tenant = ? AND subject = ? AND subject <> ''{older}"
        " ORDER BY created_at DESC, execution_id DESC LIMIT ?",
        (*params, max(1, min(limit, SEARCH_MAX))),
    )
    return [ExecutionRow(*values) for values in found]


def open_executions(
    store: Reader, owner: HostName, after: str, limit: int, *, waiting: bool = True
) -> list[str]:
    status = "" if waiting else " AND status <> 'waiting'"
    found = store.query(
        "SELECT execution_id FROM executions WHERE owner = ? AND execution_id > ?"
        f" AND ended_at IS NULL{status} ORDER BY execution_id LIMIT ?",
        (owner, after, limit),
    )
    return [values[0] for values in found]


def owner_of(store: Reader, execution_id: str) -> HostName | None:
    found = store.query("SELECT owner FROM executions WHERE execution_id = ?", (execution_id,))
    return HostName(found[0][0]) if found else None


def is_open(store: Reader, execution_id: str) -> bool:
    sql = "SELECT 1 FROM executions WHERE execution_id = ? AND ended_at IS NULL"
    return bool(store.query(sql, (execution_id,)))


def owners(store: Reader) -> dict[HostName, int]:
    return {HostName(owner): count for owner, count in store.query(OWNERS)}


def due(store: Reader, owner: HostName, now: Micros, limit: int) -> list[str]:
    found = store.query(
        "SELECT execution_id FROM executions WHERE owner = ? AND wake_at <= ? AND wake_at IS NOT NULL"
        " ORDER BY wake_at, execution_id LIMIT ?",
        (owner, now, limit),
    )
    return [values[0] for values in found]


def next_wake(store: Reader, owner: HostName) -> Micros | None:
    found = store.query(
        "SELECT MIN(wake_at) FROM executions WHERE owner = ? AND wake_at IS NOT NULL", (owner,)
    )
    return found[0][0]


def count_unfinished(store: Reader, tenant: str) -> int:
    sql = "SELECT COUNT(*) FROM executions WHERE tenant = ? AND ended_at IS NULL"
    return store.query(sql, (tenant,))[0][0]


def count_children(store: Reader, tenant: str, parents: Sequence[str]) -> int:
    """Executions of those of ``parents`` that have begun and not ended; at most ``IDS_MAX`` parents."""
    marks = ", ".join("?" * len(parents))
    # Over the tenant's unfinished executions, which an index holds and a bound keeps few.
    sql = (
        "SELECT COUNT(*) FROM executions WHERE tenant = ? AND ended_at IS NULL AND started_at IS NOT NULL"
        f" AND parent_id IN ({marks})"
    )
    return store.query(sql, (tenant, *parents))[0][0]


def get_many(store: Reader, ids: Sequence[str]) -> dict[str, ExecutionRow]:
    """The rows of those of ``ids`` that exist, by id. Any number of ids; read in batches of ``IDS_MAX``."""
    rows: dict[str, ExecutionRow] = {}
    for start in range(0, len(ids), IDS_MAX):
        batch = list(ids[start : start + IDS_MAX])
        # Padded to a power of two, so that a handful of statements stay prepared.
        size = 1 << (len(batch) - 1).bit_length()
        batch += [batch[-1]] * (size - len(batch))
        marks = ", ".join("?" * size)
        for found in store.query(f"{_SELECT} WHERE execution_id IN ({marks})", batch):
            rows[found[0]] = ExecutionRow(*found)
    return rows


_FILTERS: Mapping[str, str] = {
    "tenant": "tenant = ?",
    "flow_id": "flow_id = ?",
    "source": "source = ?",
    "status": "status = ?",
    "owner": "owner = ?",
    "parent_id": "parent_id = ?",
    "subject": "subject = ? AND subject <> ''",
    "correlation_id": "correlation_id = ?",
    "created_from": "created_at >= ?",
    "created_until": "created_at < ?",
    "text": "(LOWER(input) LIKE ? ESCAPE '\\' OR LOWER(COALESCE(error_message, '')) LIKE ? ESCAPE '\\'"
    " OR LOWER(execution_id) LIKE ? ESCAPE '\\' OR LOWER(COALESCE(output, '')) LIKE ? ESCAPE '\\')",
}


class Cursor(msgspec.Struct, frozen=True):
    """Where a page ended: the next one holds older executions."""

    created_at: int
    execution_id: str


def search(
    store: Reader, filters: Mapping[str, object], cursor: Cursor | None = None, limit: int = 50
) -> tuple[list[ExecutionRow], Cursor | None]:
    """Newest first; the second value leads to the next page, None at the end.

    ``filters``: any of ``tenant``, ``flow_id``, ``source``, ``status``, ``owner``, ``parent_id``,
    ``correlation_id``, ``created_from`` (inclusive), ``created_until`` (exclusive), ``text`` (part of the
    id, input, output or error, in any case). ``status`` may be a list of statuses.

    Raises: KeyError for a filter that doesn't exist.
    """
    limit = max(1, min(limit, SEARCH_MAX))
    clauses: list[str] = []
    params: list[object] = []
    for name, value in filters.items():
        if name == "status" and isinstance(value, (list, tuple)):
            statuses: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
            clauses.append(f"status IN ({', '.join('?' * len(statuses))})" if statuses else "1 = 0")
            params += statuses
            continue
        clause = _FILTERS[name]
        clauses.append(clause)
        params += [_pattern(str(value))] * clause.count("?") if name == "text" else [value]
    if cursor is not None:
        clauses.append("(created_at, execution_id) < (?, ?)")
        params += [cursor.created_at, cursor.execution_id]
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    # One row more than asked for tells whether there is another page.
    sql = f"{_SELECT}{where} ORDER BY created_at DESC, execution_id DESC LIMIT ?"
    found = [ExecutionRow(*values) for values in store.query(sql, (*params, limit + 1))]
    page = found[:limit]
    after = Cursor(page[-1].created_at, page[-1].execution_id) if len(found) > limit else None
    return page, after


def _pattern(text: str) -> str:
    escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
