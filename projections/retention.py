"""What an archive takes out of a log: which executions may go, and how they leave all tables at once.

An execution may go when it ended before the cutoff and nobody needs it any more: its parent has ended, its
callback is settled, and no other run of its subject (a conversation, a task, a batch) is open or younger.

What holds: an execution's events, its rows and its share of the sums leave in one transaction, so after a
crash it is in the log with all of them, or gone with all of them. Read models that are sums (``counters``)
keep what archived executions gave, in a table of their own, from which a rebuild begins.

``log_notes`` holds the log's identity, which must outlive its first event, and the lease of whoever archives.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from projections.store import Reader, ReadStore, Transaction
from projections.tracked import ARCHIVED, SHADOW, Batch, Projection, Write, create_archived, position_of
from runtime.event_log import EventLog, Recorded
from runtime.ids import SECOND, ExecutionId, Micros, Position, callback_stream

CREATE = (
    "CREATE TABLE IF NOT EXISTS log_notes ("
    "name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, until BIGINT NOT NULL)",
)

ARCHIVE = "archive"
"""Kind of the resources in which archives stand."""

AGE_SECONDS_MIN = 3_600
"""What ended later than that stays: clients repeat requests, and read models are still behind."""

PAGE_EXECUTIONS = 500
"""Executions of one page of candidates; with their callbacks they fit one statement."""

LEASE_SECONDS = 300

_OPEN_PARENT = "EXISTS (SELECT 1 FROM executions p WHERE p.execution_id = e.parent_id AND p.ended_at IS NULL)"
_PENDING_CALLBACK = (
    "EXISTS (SELECT 1 FROM callbacks c WHERE c.execution_id = e.execution_id AND c.due_at IS NOT NULL)"
)
_LIVELY_SUBJECT = (
    "(e.subject <> '' AND EXISTS (SELECT 1 FROM executions o WHERE o.tenant = e.tenant"
    " AND o.subject = e.subject AND o.subject <> '' AND (o.ended_at IS NULL OR o.ended_at >= ?)))"
)
_MAY_GO = (
    f"(e.ended_at < ? AND NOT (e.parent_id <> '' AND {_OPEN_PARENT})"
    f" AND NOT {_PENDING_CALLBACK} AND NOT {_LIVELY_SUBJECT})"
)


class Candidate(NamedTuple):
    """An execution that may go; ``events`` of its own stream."""

    execution_id: str
    created_at: int
    events: int


class Span(NamedTuple):
    """The ids from ``first`` to those before ``behind``."""

    first: str
    behind: str


EVERYTHING = Span("", "g")
"""Ids are hexadecimal, so they sort before ``g`` in every language."""


def candidates(
    reader: Reader, before: Micros, span: Span = EVERYTHING, after: Candidate | None = None
) -> list[Candidate]:
    """The next executions that may go, the oldest first, at most ``PAGE_EXECUTIONS``."""
    created_at, execution_id = (-1, "") if after is None else (after.created_at, after.execution_id)
    found = reader.query(
        "SELECT e.execution_id, e.created_at, e.version FROM executions e"
        " WHERE (e.created_at, e.execution_id) > (?, ?) AND e.created_at < ?"
        f" AND e.execution_id >= ? AND e.execution_id < ? AND {_MAY_GO}"
        " ORDER BY e.created_at, e.execution_id LIMIT ?",
        (created_at, execution_id, before, *span, before, before, PAGE_EXECUTIONS),
    )
    return [Candidate(*values) for values in found]


def all_may_go(reader: Reader, before: Micros, span: Span) -> bool:
    """Whether no execution of ``span`` has to stay."""
    return not reader.query(
        "SELECT 1 FROM executions e WHERE e.execution_id >= ? AND e.execution_id < ?"
        f" AND (e.ended_at IS NULL OR NOT {_MAY_GO}) LIMIT 1",
        (*span, before, before),
    )


def streams_of(executions: Iterable[str]) -> list[str]:
    """The streams that leave with them: their own, and their callbacks'."""
    return [stream for one in executions for stream in (one, str(callback_stream(ExecutionId(one))))]


def events_of(reader: Reader, executions: Sequence[str]) -> list[Recorded]:
    """All events of these executions and their callbacks, in the order of the log."""
    found: list[Recorded] = []
    for start in range(0, len(executions), PAGE_EXECUTIONS):
        streams = streams_of(executions[start : start + PAGE_EXECUTIONS])
        rows = reader.query(
            "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
            f" WHERE originator_id IN ({_marks(streams)})",
            streams,
        )
        found += [
            Recorded(Position(position), stream, version, topic, bytes(data))
            for position, stream, version, topic, data in rows
        ]
    return sorted(found, key=lambda one: one.position)


def still_there(reader: Reader, executions: Sequence[str]) -> list[str]:
    """Those of ``executions`` whose events the log holds, in their order."""
    found: set[str] = set()
    for start in range(0, len(executions), PAGE_EXECUTIONS):
        page = executions[start : start + PAGE_EXECUTIONS]
        rows = reader.query(
            "SELECT originator_id FROM stored_events"
            f" WHERE originator_version = 1 AND originator_id IN ({_marks(page)})",
            page,
        )
        found.update(values[0] for values in rows)
    return [one for one in executions if one in found]


class Share(NamedTuple):
    """What some executions gave to one read model of sums."""

    projection: Projection
    writes: list[Write]


def shares(reader: Reader, projections: Iterable[Projection], recorded: Sequence[Recorded]) -> list[Share]:
    """Fold the events of whole executions; ``recorded`` must still be in the log."""
    batch = Batch(recorded)
    return [Share(each, each.fold(batch.events, reader)) for each in projections if each.archived == "summed"]


def has_passed(store: ReadStore, projections: Iterable[Projection], position: int) -> bool:
    """Whether every read model holds what the log holds up to ``position``."""
    return all(position_of(store, each.name) >= position for each in projections)


def keep_shares(transaction: Transaction, found: Iterable[Share]) -> None:
    """Add to what archived executions gave; a rebuild that is under way has begun without it and ends."""
    for projection, writes in found:
        create_archived(transaction, projection)
        for statement, rows in writes:
            if rows:
                transaction.executemany(statement.format(table=projection.name + ARCHIVED), rows)


def end_rebuilds(transaction: Transaction, projections: Iterable[Projection]) -> None:
    """A rebuild that began before may have read what leaves now: it ends with ``Moved``."""
    for each in projections:
        transaction.execute("DELETE FROM reader_positions WHERE name = ?", (each.name + SHADOW,))


def drop_rows(transaction: Transaction, executions: Sequence[str], projections: Iterable[Projection]) -> None:
    """Delete everything that read models hold of these executions, at most ``PAGE_EXECUTIONS``."""
    marks = _marks(executions)
    tables = [each.name for each in projections if each.archived == "dropped"]
    for table in ("executions", "callbacks", *tables):
        transaction.execute(f"DELETE FROM {table} WHERE execution_id IN ({marks})", executions)


def drop_events(transaction: Transaction, executions: Sequence[str]) -> None:
    """At most ``PAGE_EXECUTIONS``."""
    streams = streams_of(executions)
    transaction.execute(f"DELETE FROM stored_events WHERE originator_id IN ({_marks(streams)})", streams)


def drop_span(transaction: Transaction, span: Span, projections: Iterable[Projection]) -> None:
    """As ``drop_rows`` for all executions of ``span``; and as ``drop_events`` for their callbacks alone."""
    tables = [each.name for each in projections if each.archived == "dropped"]
    for table in ("executions", "callbacks", *tables):
        transaction.execute(f"DELETE FROM {table} WHERE execution_id >= ? AND execution_id < ?", span)
    of_callbacks = tuple(f"callback:{bound}" for bound in span)
    transaction.execute(
        "DELETE FROM stored_events WHERE originator_id >= ? AND originator_id < ?", of_callbacks
    )


# --- notes about the log ----------------------------------------------------------------------------------


def identity(store: ReadStore, log: EventLog) -> str:
    """What tells this log from every other: the hash of the first event it ever held; empty without one."""
    found = store.query("SELECT value FROM log_notes WHERE name = 'log'")
    if found:
        return found[0][0]
    first = log.feed(Position(0), 1)
    return first[0].hash() if first else ""


def keep_identity(store: ReadStore, log: EventLog) -> str:
    """Note it, before the first event leaves."""
    store.execute(
        "INSERT INTO log_notes (name, value, until) VALUES ('log', ?, 0) ON CONFLICT (name) DO NOTHING",
        (identity(store, log),),
    )
    return identity(store, log)


def take_lease(store: ReadStore, holder: str, now: Micros) -> bool:
    """Become, or stay, the only one who archives this log, for ``LEASE_SECONDS``."""
    with store.transaction() as transaction:
        taken = transaction.query(
            "INSERT INTO log_notes (name, value, until) VALUES ('archiving', ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value, until = excluded.until"
            " WHERE log_notes.value = excluded.value OR log_notes.until < ? RETURNING value",
            (holder, now + LEASE_SECONDS * SECOND, now),
        )
    return bool(taken)


def give_lease_back(store: ReadStore, holder: str) -> None:
    store.execute("DELETE FROM log_notes WHERE name = 'archiving' AND value = ?", (holder,))


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
