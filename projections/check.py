"""Prove that the read models are what the log says: build them again beside the live ones and compare.

Inline models are compared stream by stream (``inline_rebuild.check``), tracked ones as whole tables at one
position, while others go on appending and reading.
"""

from collections.abc import Generator, Sequence

from projections import inline_rebuild
from projections.inline_rebuild import Difference
from projections.rebuild import catch_up, drop_shadow, held
from projections.store import ReadStore, Row, Transaction
from projections.tracked import SHADOW, Projection, begin_anew, position_of
from runtime.event_log import EventLog
from runtime.ids import Position

DIFFERENCES_MAX = 1_000
"""Differences of one table that are looked at; a table that differs this much is to be rebuilt anyway."""

ATTEMPTS_MAX = 5
"""Comparisons without holding the reader; then it is held, which makes writers wait on SQLite."""


def verify_read_models(
    log: EventLog, store: ReadStore, projections: Sequence[Projection]
) -> Generator[Difference]:
    """Every difference between the stored rows and those the log gives; nothing when all is well."""
    yield from inline_rebuild.check(store)
    for projection in projections:
        yield from _check_tracked(log, store, projection)


def _check_tracked(log: EventLog, store: ReadStore, projection: Projection) -> list[Difference]:
    with store.transaction(exclusive=True) as transaction:
        begin_anew(transaction, projection, projection.name + SHADOW)
    try:
        for _ in range(ATTEMPTS_MAX):
            live = position_of(store, projection.name)
            catch_up(log, store, projection, live)
            differences = _compare(store, projection)
            # The position only rises: unmoved on both sides of the statement, it stood still inside it.
            if not differences or _same_position(store, projection, live):
                return differences
        with held(log, store, projection) as transaction:
            return _compare(transaction, projection)
    finally:
        drop_shadow(store, projection)


def _same_position(store: ReadStore, projection: Projection, live: Position) -> bool:
    return position_of(store, projection.name) == live == position_of(store, projection.name + SHADOW)


def _compare(reader: ReadStore | Transaction, projection: Projection) -> list[Difference]:
    live, shadow = projection.name, projection.name + SHADOW
    stored = _only_in(reader, live, shadow)
    rebuilt = _only_in(reader, shadow, live)
    width = len(projection.key)
    # The key's columns stand first in each table.
    by_key: dict[Row, tuple[Row | None, Row | None]] = {}
    for values in stored:
        by_key[values[:width]] = (values, None)
    for values in rebuilt:
        by_key[values[:width]] = (by_key.get(values[:width], (None, None))[0], values)
    return [Difference(live, key, before, after) for key, (before, after) in by_key.items()]


def _only_in(reader: ReadStore | Transaction, one: str, other: str) -> list[Row]:
    return reader.query(
        f"SELECT * FROM {one} EXCEPT SELECT * FROM {other} ORDER BY 1 LIMIT ?", (DIFFERENCES_MAX,)
    )
