"""Tracked read models: folded from the log in batches, committed together with their position.

    reader_positions   one row a model: how far it is in the log
    parked_events      events a model could not take; the model went on without them

A batch commits by moving the model's position from the very one it was read behind (compare and set), so of
any number of readers, in any number of processes, exactly one brings each event into a model; the others
find the position moved and read again. The library's tracking recorder only demands a rising position, which
lets two readers count the same event twice; hence this table beside it.

What holds after a crash: a batch's rows, its parked events and the position are there together, or not at
all.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from eventsourcing.persistence import DataError, IntegrityError

from projections.store import Reader, ReadStore, Row, Transaction
from runtime.errors import Unavailable
from runtime.event_log import EventLog, Recorded
from runtime.events import Event
from runtime.ids import Position

BATCH_EVENTS_MAX = 2_000
"""Events of one transaction."""

ERROR_CHARACTERS_MAX = 500

SHADOW = "__rebuild"
"""What the name of a table and of its reader ends with while the model is built anew."""

ARCHIVED = "__archived"
"""What the name of a table of sums ends with that holds the share of archived executions."""

_CREATE = (
    "CREATE TABLE IF NOT EXISTS reader_positions ("
    "name TEXT NOT NULL PRIMARY KEY, layout BIGINT NOT NULL, position BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS parked_events ("
    "projection TEXT NOT NULL, position BIGINT NOT NULL, originator_id TEXT NOT NULL,"
    " topic TEXT NOT NULL, error TEXT NOT NULL, PRIMARY KEY (projection, position))",
)
_PARK = "INSERT INTO parked_events (projection, position, originator_id, topic, error) VALUES (?, ?, ?, ?, ?)"


class Read(NamedTuple):
    """One event on its way into a model."""

    position: Position
    event: Event


Write = tuple[str, Sequence[Row]]
"""A statement with ``{table}`` in the place of the model's table, and the rows to run it for."""


class Projection(NamedTuple):
    """One tracked read model in one table.

    ``fold(events, reader)`` is given events in log order and gives the statements that bring them into the
    table; each event comes once. It may look up what never changes (through ``reader``), and it must give the
    same rows however the log is cut into batches. ``key``: the columns that name a row.
    ``layout``: raise it when the table or ``fold`` changes; the model is then built anew at start-up.
    ``archived``: what becomes of an execution's part when it is archived. ``dropped``: rows that name it in
    ``execution_id`` go. ``summed``: rows are sums, to which each execution gave its share whatever the order,
    and the share stays.
    """

    name: str
    layout: int
    create: str
    key: tuple[str, ...]
    fold: Callable[[Sequence[Read], Reader], list[Write]]
    archived: Literal["dropped", "summed"] = "dropped"


class Parked(NamedTuple):
    projection: str
    position: Position
    originator_id: str
    topic: str
    error: str


class Moved(Exception):
    """Somebody else moved the model's position meanwhile, or took the reader away: nothing was written."""


def prepare(store: ReadStore, projections: Sequence[Projection]) -> None:
    """Create what is missing; begin again with a model whose layout this release changed."""
    with store.transaction(exclusive=True) as transaction:
        for statement in _CREATE:
            transaction.execute(statement)
        for projection in projections:
            found = transaction.query(
                "SELECT layout FROM reader_positions WHERE name = ?", (projection.name,)
            )
            if found and found[0][0] >= projection.layout:
                continue  # a newer release's model is left to its own reader
            begin_anew(transaction, projection, projection.name)


def begin_anew(transaction: Transaction, projection: Projection, name: str) -> None:
    """A table called ``name`` with what archived executions gave, and its reader before the first event."""
    transaction.execute(f"DROP TABLE IF EXISTS {name}")
    transaction.execute(projection.create.format(table=name))
    if projection.archived == "summed":
        create_archived(transaction, projection)
        transaction.execute(f"INSERT INTO {name} SELECT * FROM {projection.name + ARCHIVED}")
    forget(transaction, name)
    transaction.execute(
        "INSERT INTO reader_positions (name, layout, position) VALUES (?, ?, 0)", (name, projection.layout)
    )


def create_archived(transaction: Transaction, projection: Projection) -> None:
    """The table of sums that archived executions gave, empty before the first."""
    transaction.execute(projection.create.format(table=projection.name + ARCHIVED))


def forget(transaction: Transaction, name: str) -> None:
    transaction.execute("DELETE FROM reader_positions WHERE name = ?", (name,))
    transaction.execute("DELETE FROM parked_events WHERE projection = ?", (name,))


def position_of(store: ReadStore | Transaction, name: str) -> Position:
    """How far the reader ``name`` came; 0 before the first event or for no such reader."""
    found = store.query("SELECT position FROM reader_positions WHERE name = ?", (name,))
    return Position(found[0][0]) if found else Position(0)


def lock(transaction: Transaction, name: str) -> Position:
    """The reader's position, which no other reader moves before this transaction ends. Raises: Moved."""
    found = transaction.query(
        "UPDATE reader_positions SET position = position WHERE name = ? RETURNING position", (name,)
    )
    if not found:
        raise Moved(name)
    return Position(found[0][0])


class Batch:
    """Some events read from the log once, for any number of models that stand at the same position."""

    def __init__(self, recorded: Sequence[Recorded], *, is_full: bool = False) -> None:
        self.recorded = recorded
        self.is_full = is_full
        self.events: list[Read] = []
        self.unreadable: list[tuple[Recorded, Exception]] = []
        for one in recorded:
            try:
                self.events.append(Read(one.position, one.event()))
            except Exception as error:  # noqa: BLE001 - whatever an event does to its reader, it is parked
                self.unreadable.append((one, error))


def read_batch(log: EventLog, after: Position, until: Position | None = None) -> Batch:
    """The next events behind ``after``, none behind ``until``."""
    recorded = log.feed(after, BATCH_EVENTS_MAX)
    is_full = len(recorded) == BATCH_EVENTS_MAX
    if until is not None and recorded and recorded[-1].position > until:
        recorded = [one for one in recorded if one.position <= until]
    return Batch(recorded, is_full=is_full)


def read_within(transaction: Transaction, after: Position, until: Position) -> Batch:
    """As ``read_batch``, for whoever holds a transaction.

    Nobody may ask for a second connection while holding one that writes: the library's pool on SQLite makes
    readers queue behind a waiting writer, which then waits for this very transaction.
    """
    found = transaction.query(
        "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
        " WHERE notification_id > ? AND notification_id <= ? ORDER BY notification_id LIMIT ?",
        (after, until, BATCH_EVENTS_MAX),
    )
    return Batch(
        [
            Recorded(Position(position), stream, version, topic, bytes(data))
            for position, stream, version, topic, data in found
        ]
    )


def apply_within(
    transaction: Transaction, projection: Projection, batch: Batch, after: Position, suffix: str
) -> None:
    """As ``apply``, for whoever holds a transaction; a row the store refuses ends it."""
    staged = _stage(transaction, projection, batch)
    _write(transaction, [projection], batch, [staged], after, suffix)


def apply(
    store: ReadStore,
    projections: Sequence[Projection],
    batch: Batch,
    after: Position,
    suffix: str = "",
) -> None:
    """Bring a batch into each model and move its position, in one transaction.

    ``suffix``: of the tables' and readers' names.

    Raises: Moved when a reader was not at ``after``; Unavailable when the store is away.
    """
    staged = [_stage(store, projection, batch) for projection in projections]
    try:
        with store.transaction() as transaction:
            _write(transaction, projections, batch, staged, after, suffix)
    except (IntegrityError, Unavailable) as error:
        if not _is_poison(error):
            raise
        _apply_singly(store, projections, batch, after, suffix)


class _Staged(NamedTuple):
    writes: list[Write]
    parked: list[tuple[Recorded, Exception]]


def _stage(reader: Reader, projection: Projection, batch: Batch) -> _Staged:
    """Fold the batch; when that fails, find the events it fails for and fold without them."""
    try:
        return _Staged(projection.fold(batch.events, reader), batch.unreadable)
    except Unavailable:
        raise
    except Exception:  # noqa: BLE001 - which event it was is found out below
        parked = list(batch.unreadable)
    by_position = {one.position: one for one in batch.recorded}
    good: list[Read] = []
    for one in batch.events:
        try:
            projection.fold([one], reader)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - parked with its error, visible to the operator
            parked.append((by_position[one.position], error))
        else:
            good.append(one)
    return _Staged(projection.fold(good, reader), parked)


def _write(
    transaction: Transaction,
    projections: Sequence[Projection],
    batch: Batch,
    staged: Sequence[_Staged],
    after: Position,
    suffix: str,
) -> None:
    last = batch.recorded[-1].position
    for projection, (writes, parked) in zip(projections, staged, strict=True):
        name = projection.name + suffix
        moved = transaction.query(
            "UPDATE reader_positions SET position = ?"
            " WHERE name = ? AND position = ? AND layout = ? RETURNING position",
            (last, name, after, projection.layout),
        )
        if not moved:
            raise Moved(name)
        for statement, rows in writes:
            if rows:
                transaction.executemany(statement.format(table=name), rows)
        if parked:
            transaction.executemany(_PARK, [_parked(name, one, error) for one, error in parked])


def _parked(name: str, one: Recorded, error: Exception) -> Row:
    text = f"{type(error).__name__}: {error}".replace("\x00", "\ufffd")[:ERROR_CHARACTERS_MAX]
    return (name, one.position, one.originator_id, one.topic, text)


def _is_poison(error: Exception) -> bool:
    """The store took offence at a value, so trying again can't help."""
    return isinstance(error, IntegrityError) or isinstance(error.__cause__, DataError | IntegrityError)


def _apply_singly(
    store: ReadStore, projections: Sequence[Projection], batch: Batch, after: Position, suffix: str
) -> None:
    """One event a transaction; what the store refuses is parked."""
    for one in batch.recorded:
        single = Batch([one])
        for projection in projections:
            staged = _stage(store, projection, single)
            try:
                with store.transaction() as transaction:
                    _write(transaction, [projection], single, [staged], after, suffix)
            except (IntegrityError, Unavailable) as error:
                if not _is_poison(error):
                    raise
                refused = _Staged([], [(one, error)])
                with store.transaction() as transaction:
                    _write(transaction, [projection], single, [refused], after, suffix)
        after = one.position


def parked(store: ReadStore, limit: int = 1_000) -> list[Parked]:
    """Events that models went on without, the oldest first."""
    found = store.query(
        "SELECT projection, position, originator_id, topic, error FROM parked_events"
        " ORDER BY position, projection LIMIT ?",
        (limit,),
    )
    return [Parked(*values) for values in found]
