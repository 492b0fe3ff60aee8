"""Rebuilding and checking the inline read models from the log, while others go on appending.

Streams are taken in order of their ids, some at a time, each batch in one writing transaction: what it folds
is the whole of those streams, and whoever appends next writes the row anew.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from projections import inline
from projections.store import ReadStore, Row, Transaction
from runtime import codec
from runtime.administration import evolve_flow, evolve_key
from runtime.callbacks import evolve_callback
from runtime.events import Event
from runtime.evolution import begin, evolve
from runtime.resources import evolve_resource

STREAMS_MAX = 100
"""Streams of one transaction; writers wait that long at most."""

PAGE_EVENTS = 5_000
"""Events in memory at a time."""


class Difference(NamedTuple):
    """A row that isn't what the log says; ``stored`` or ``rebuilt`` is None when there is no such row."""

    table: str
    key: tuple[object, ...]
    stored: Row | None
    rebuilt: Row | None


def rebuild(store: ReadStore) -> int:
    """Write every row of every inline model anew and drop rows without a stream; returns the streams."""
    streams = 0
    after = ""
    while True:
        with store.transaction(exclusive=True) as transaction:
            batch = _streams_behind(transaction, after)
            rebuild_streams(transaction, batch)
        if not batch:
            break
        streams += len(batch)
        after = batch[-1]
    with store.transaction(exclusive=True) as transaction:
        drop_strangers(transaction)
    return streams


def rebuild_all(transaction: Transaction) -> None:
    """The same in one transaction, for a log that nobody uses yet (a migration)."""
    after = ""
    while batch := _streams_behind(transaction, after):
        rebuild_streams(transaction, batch)
        after = batch[-1]
    drop_strangers(transaction)


def rebuild_streams(transaction: Transaction, streams: Sequence[str]) -> None:
    """Write the rows of these streams, at most ``STREAMS_MAX``, anew."""
    found = list(_states(transaction, streams))
    positions = [position for _, position in found]
    states = [(state, index) for index, (state, _) in enumerate(found)]
    for statement, rows in inline.upserts(states, positions):
        transaction.executemany(statement, rows)


def drop_strangers(transaction: Transaction) -> None:
    for model in inline.MODELS:
        transaction.execute(
            f"DELETE FROM {model.table} WHERE NOT EXISTS"
            f" (SELECT 1 FROM stored_events s WHERE s.originator_id = {model.stream})"
        )


def check(store: ReadStore) -> Generator[Difference]:
    """Every difference between the stored rows and those the log gives."""
    after = ""
    while True:
        with store.transaction(exclusive=True) as transaction:
            batch = _streams_behind(transaction, after)
            found = [difference for stream in batch for difference in _compare(transaction, stream)]
        yield from found
        if not batch:
            break
        after = batch[-1]
    for model in inline.MODELS:
        columns = _columns(model)
        strangers = store.query(
            f"SELECT {', '.join(columns)} FROM {model.table} WHERE NOT EXISTS"
            f" (SELECT 1 FROM stored_events s WHERE s.originator_id = {model.stream})"
        )
        for stored in strangers:
            yield Difference(model.table, _key(model, columns, stored), stored, None)


def _streams_behind(transaction: Transaction, after: str) -> list[str]:
    found = transaction.query(
        "SELECT originator_id FROM stored_events WHERE originator_version = 1 AND originator_id > ?"
        " ORDER BY originator_id LIMIT ?",
        (after, STREAMS_MAX),
    )
    return [values[0] for values in found]


def _states(transaction: Transaction, streams: Sequence[str]) -> Iterator[tuple[object, int]]:
    """The states of these streams whose rows matter, with positions: all of a flow, of the others the last.

    Each publication of a flow leaves a version behind; of everything else only the end counts.
    """
    marks = ", ".join("?" * len(streams))
    statement = (
        "SELECT originator_id, originator_version, notification_id, topic, state FROM stored_events"
        f" WHERE originator_id IN ({marks}) AND (originator_id, originator_version) > (?, ?)"
        " ORDER BY originator_id, originator_version LIMIT ?"
    )
    stream, version, position = "", 0, 0
    state: object = None
    while streams:
        page = transaction.query(statement, (*streams, stream, version, PAGE_EVENTS))
        for name, number, at, topic, data in page:
            if name != stream:
                if state is not None and not stream.startswith("flow:"):
                    yield state, position
                stream, state = name, None
            version, position = number, at
            state = fold(stream, state, codec.decode(topic, bytes(data)))
            if stream.startswith("flow:"):
                yield state, position
        if len(page) < PAGE_EVENTS:
            break
    if state is not None and not stream.startswith("flow:"):
        yield state, position


def fold(stream: str, state: object, event: Event) -> object:
    """The next state of whatever aggregate ``stream`` names. ``state`` is None before the first event."""
    kind = stream.split(":", 1)[0] if ":" in stream else ""
    match kind:
        case "flow":
            return evolve_flow(state, event)  # type: ignore[arg-type]
        case "key":
            return evolve_key(state, event)  # type: ignore[arg-type]
        case "callback":
            return evolve_callback(state, event)  # type: ignore[arg-type]
        case "resource":
            return evolve_resource(state, event)  # type: ignore[arg-type]
        case _:
            return begin(event) if state is None else evolve(state, event)  # type: ignore[arg-type]


def _columns(model: inline.Inline) -> tuple[str, ...]:
    """The columns of a model's rows, in order: those its upsert names."""
    inside = model.upsert[model.upsert.index("(") + 1 : model.upsert.index(")")]
    return tuple(name.strip() for name in inside.split(","))


def _key(model: inline.Inline, columns: tuple[str, ...], values: Row) -> tuple[object, ...]:
    return tuple(values[columns.index(name)] for name in model.key)


def _compare(transaction: Transaction, stream: str) -> list[Difference]:
    states = list(_states(transaction, [stream]))
    differences: list[Difference] = []
    expected: dict[tuple[str, tuple[object, ...]], Row] = {}
    models: dict[str, inline.Inline] = {}
    for state, position in states:
        for model in inline.INLINE[type(state)]:
            values = model.row(state, position)
            key = (model.table, _key(model, _columns(model), values))
            models[model.table] = model
            if model is inline.FLOW_VERSIONS and key in expected:
                continue  # a version is immutable: the first publication's row stays
            expected[key] = values
    for (table, key), values in expected.items():
        model = models[table]
        where = " AND ".join(f"{name} = ?" for name in model.key)
        found = transaction.query(f"SELECT {', '.join(_columns(model))} FROM {table} WHERE {where}", key)
        stored = found[0] if found else None
        if stored != values:
            differences.append(Difference(table, key, stored, values))
    return differences
