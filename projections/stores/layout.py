"""What the tables of a log look like, and how an older log becomes today's.

``heliograph_meta`` holds two numbers: ``log_format`` (stored events and everything that can't be rebuilt)
and ``inline_layout`` (the inline read models, which can). A log of a newer format is refused before anything
is written to it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from projections import inline, retention
from projections.inline_rebuild import rebuild_all
from projections.store import Reader, Transaction
from runtime.errors import Diverged

LOG_FORMAT = 2
"""1: release 0.1. 2: partitions on PostgreSQL, archives."""

META = "heliograph_meta"

_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {META} (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL)",
    *retention.CREATE,
)

Step = Callable[[Transaction], None]


class Events(NamedTuple):
    """A store's own part: ``create`` makes the tables of a new log.

    ``steps``: from a log format to what leads to the next one; a log two formats old takes two of them.
    """

    create: Step
    steps: Mapping[int, Step]


def prepare(transaction: Transaction, events: Events, tables: Collection[str]) -> None:
    """Create or migrate everything, in one transaction that excludes other writers.

    Ours, for the libraries of migrations know one dialect a project, or bring a model of the tables which
    the event log's library makes itself. ``tables``: those that exist.

    Raises: Diverged for a log of a newer release, or for events that aren't ours.
    """
    is_new = "stored_events" not in tables
    if not is_new:
        if META not in tables:
            raise Diverged("the store holds a table stored_events that Heliograph did not make")
        _migrate(transaction, events.steps)
    for statement in _CREATE:
        transaction.execute(statement)
    events.create(transaction)
    if is_new or _read(transaction, "inline_layout") == inline.LAYOUT:
        for statement in inline.create_statements():
            transaction.execute(statement)
    else:
        # Not before the old tables are gone: a new index may be over a column they don't have.
        _rebuild_inline(transaction)
    _write(transaction, "log_format", LOG_FORMAT)
    _write(transaction, "inline_layout", inline.LAYOUT)


def is_current(reader: Reader) -> bool:
    """Nothing to create or migrate: the usual start-up, which then needs no lock."""
    return _read(reader, "log_format") == LOG_FORMAT and _read(reader, "inline_layout") == inline.LAYOUT


def _migrate(transaction: Transaction, steps: Mapping[int, Step]) -> None:
    found = _read(transaction, "log_format") or 0
    if found > LOG_FORMAT:
        raise Diverged(
            f"the log has format {found}, written by a newer release; this one reads up to {LOG_FORMAT}"
        )
    while found < LOG_FORMAT:
        if found not in steps:
            raise Diverged(f"no step leads from log format {found} to {found + 1}")
        steps[found](transaction)
        found += 1


def _rebuild_inline(transaction: Transaction) -> None:
    for model in inline.MODELS:
        transaction.execute(f"DROP TABLE IF EXISTS {model.table}")
    for statement in inline.create_statements():
        transaction.execute(statement)
    rebuild_all(transaction)


def _read(reader: Reader, name: str) -> int | None:
    found = reader.query("SELECT value FROM heliograph_meta WHERE name = ?", (name,))
    return found[0][0] if found else None


def _write(transaction: Transaction, name: str, value: int) -> None:
    transaction.execute(
        "INSERT INTO heliograph_meta (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )
