"""Queues as the table of executions shows them: who holds a slot, who waits, what started lately.

Nothing is counted apart: a queue exists as long as an execution of it is open, or started within the window
of its rate.
"""

from typing import NamedTuple

from projections.store import Reader, Row
from runtime.ids import FlowId, HostName, Micros, TenantId
from runtime.queues import CONCURRENCY_MAX, Holder, QueueId, QueueUse, Turn

WAITING_ELSEWHERE_MAX = 10
"""Of the executions that wait with other hosts, as many as are told."""

LIST_MAX = 500

_QUEUE = "tenant = ? AND flow_id = ? AND queue_key = ? AND queue_key <> ''"
_OPEN = f"{_QUEUE} AND ended_at IS NULL"


class QueueRow(NamedTuple):
    """One queue with open executions; ``queue_key`` is empty for those that wait for a place alone.

    ``oldest_at``: when the first that waits was created.
    """

    tenant: TenantId
    flow_id: FlowId
    queue_key: str
    running: int
    waiting: int
    oldest_at: Micros | None


def use(
    store: Reader, queue: QueueId, host: HostName, since: Micros, starts_max: int, *, holders: bool
) -> QueueUse:
    held: list[Row] = []
    if holders:
        held = store.query(
            f"SELECT execution_id, queue_slot FROM executions WHERE {_OPEN}"
            " AND started_at IS NOT NULL LIMIT ?",
            (*queue, CONCURRENCY_MAX),
        )
    starts = latest_starts(store, queue, since, starts_max) if starts_max else []
    waiting = store.query(
        "SELECT CASE WHEN parent_id = '' THEN 1 ELSE 0 END, -priority, created_at, execution_id"
        f" FROM executions WHERE {_OPEN} AND started_at IS NULL AND owner <> ?"
        " ORDER BY 1, 2, 3, 4 LIMIT ?",
        (*queue, host, WAITING_ELSEWHERE_MAX),
    )
    return QueueUse(
        tuple(Holder(*values) for values in held),
        tuple(starts),
        tuple(Turn(*values) for values in waiting),
    )


def latest_starts(store: Reader, queue: QueueId, since: Micros, limit: int) -> list[tuple[str, Micros]]:
    """Executions of ``queue`` that started behind ``since``, and when: the latest ``limit``, in order."""
    found = store.query(
        f"SELECT execution_id, started_at FROM executions WHERE {_QUEUE} AND started_at > ?"
        " ORDER BY started_at DESC LIMIT ?",
        (*queue, since, limit),
    )
    return [(values[0], Micros(values[1])) for values in reversed(found)]


def listing(store: Reader, tenant: str | None, flow_id: str | None, limit: int) -> list[QueueRow]:
    """Queues with open executions and flows with executions that wait, those that wait longest first.

    ``tenant`` and ``flow_id`` None: all of them.
    """
    chosen = ""
    params: list[object] = []
    for column, value in (("tenant", tenant), ("flow_id", flow_id)):
        if value is not None:
            chosen += f" AND {column} = ?"
            params.append(value)
    found = store.query(
        "SELECT tenant, flow_id, queue_key, COUNT(started_at), COUNT(*) - COUNT(started_at),"
        " MIN(CASE WHEN started_at IS NULL THEN created_at END) AS oldest_at FROM executions"
        f" WHERE ended_at IS NULL{chosen} AND (queue_key <> '' OR started_at IS NULL)"
        " GROUP BY tenant, flow_id, queue_key"
        " ORDER BY CASE WHEN MIN(CASE WHEN started_at IS NULL THEN created_at END) IS NULL THEN 1 ELSE 0 END,"
        " oldest_at, tenant, flow_id, queue_key LIMIT ?",
        (*params, max(1, min(limit, LIST_MAX))),
    )
    return [QueueRow(*values) for values in found]


def place_of(store: Reader, queue: QueueId, turn: Turn) -> tuple[int, int]:
    """How many executions of ``queue`` run, and how many wait and come before ``turn``."""
    [(running,)] = store.query(
        f"SELECT COUNT(*) FROM executions WHERE {_OPEN} AND started_at IS NOT NULL", queue
    )
    [(ahead,)] = store.query(
        f"SELECT COUNT(*) FROM executions WHERE {_OPEN} AND started_at IS NULL"
        " AND (CASE WHEN parent_id = '' THEN 1 ELSE 0 END, -priority, created_at, execution_id)"
        " < (?, ?, ?, ?)",
        (*queue, *turn),
    )
    return running, ahead
