"""Building a tracked read model anew while it is served and while events are appended.

The new rows grow in a shadow table with a reader of its own. At the end one transaction holds the live
reader still, brings the shadow to the live position or further, and puts the shadow's table, position and
parked events in the place of the live ones: queries see the old rows, then the new ones, never a gap.

An event that was parked is tried again by a rebuild, and only so: a fold depends on the order of events, and
a parked one can't be slipped in behind those that followed it.
"""

from collections.abc import Generator
from contextlib import contextmanager

from projections.store import ReadStore, Transaction
from projections.tracked import (
    SHADOW,
    Projection,
    apply,
    apply_within,
    begin_anew,
    forget,
    lock,
    position_of,
    read_batch,
    read_within,
)
from runtime.event_log import EventLog
from runtime.ids import Position


def rebuild(log: EventLog, store: ReadStore, projection: Projection) -> Position:
    """Build the model anew and put it in place; returns the position it stands at.

    A second rebuild of the same model begins again and ends the first one with ``Moved``.
    """
    shadow = projection.name + SHADOW
    with store.transaction(exclusive=True) as transaction:
        begin_anew(transaction, projection, shadow)
    catch_up(log, store, projection, log.max_position())
    with held(log, store, projection) as transaction:
        position = position_of(transaction, shadow)
        name = projection.name
        transaction.execute(f"DROP TABLE {name}")
        transaction.execute(f"ALTER TABLE {shadow} RENAME TO {name}")
        forget(transaction, name)
        transaction.execute("UPDATE reader_positions SET name = ? WHERE name = ?", (name, shadow))
        transaction.execute("UPDATE parked_events SET projection = ? WHERE projection = ?", (name, shadow))
    return position


def catch_up(log: EventLog, store: ReadStore, projection: Projection, until: Position) -> None:
    """Bring the shadow to ``until``, a batch a transaction."""
    after = position_of(store, projection.name + SHADOW)
    while after < until:
        batch = read_batch(log, after, until)
        if not batch.recorded:
            return
        apply(store, [projection], batch, after, SHADOW)
        after = batch.recorded[-1].position


@contextmanager
def held(log: EventLog, store: ReadStore, projection: Projection) -> Generator[Transaction]:
    """A transaction in which the live reader stands still and the shadow is at least as far."""
    shadow = projection.name + SHADOW
    # Outside first, so that little is left to do while the reader (on SQLite: every writer) waits.
    catch_up(log, store, projection, position_of(store, projection.name))
    with store.transaction() as transaction:
        live = lock(transaction, projection.name)
        after = lock(transaction, shadow)
        while after < live:
            batch = read_within(transaction, after, live)
            apply_within(transaction, projection, batch, after, SHADOW)
            after = batch.recorded[-1].position
        yield transaction


def drop_shadow(store: ReadStore, projection: Projection) -> None:
    shadow = projection.name + SHADOW
    with store.transaction() as transaction:
        transaction.execute(f"DROP TABLE IF EXISTS {shadow}")
        forget(transaction, shadow)
