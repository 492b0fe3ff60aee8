"""How PostgreSQL's stored events are cut into partitions, by the time at which their streams began.

    stored_events_before      everything a log held when it was converted from one table
    stored_events_20261123    executions accepted from that day (UTC) to the next partition's
    stored_events_callbacks   the streams ``callback:...``
    stored_events_rest        flows, keys, resources; and ids of no partition's time

An execution's id is a UUIDv7 and begins with the time of its acceptance, a child's with its parent's, so a
range of ids is a range of time, and the primary key (originator id, version) holds the partition key: the
fence between two writers stays one index. Ids compare byte by byte (COLLATE "C"), whatever the database's
language.

Partitions are made ahead by whoever opens the log and by a gateway's upkeep. Should nobody have done so for
long, events go to ``rest``; the partition that is made at last takes them along.
"""

import re
from typing import NamedTuple

from projections.store import Reader, Transaction
from runtime.ids import SECOND, Micros

DAYS_DEFAULT = 30
"""Days of one partition."""

AHEAD = 2
"""Partitions that stand ready behind the present one."""

REST, CALLBACKS, BEFORE = "stored_events_rest", "stored_events_callbacks", "stored_events_before"

_DAY = 86_400 * SECOND

_COLUMNS = "originator_id, originator_version, topic, state, notification_id"

CREATE = (
    "CREATE SEQUENCE IF NOT EXISTS stored_events_notification_id_seq",
    "CREATE TABLE IF NOT EXISTS stored_events ("
    'originator_id text COLLATE "C" NOT NULL, originator_version bigint NOT NULL, topic text NOT NULL,'
    " state bytea NOT NULL,"
    " notification_id bigint NOT NULL DEFAULT nextval('stored_events_notification_id_seq'),"
    " PRIMARY KEY (originator_id, originator_version)) PARTITION BY RANGE (originator_id)",
    "ALTER SEQUENCE stored_events_notification_id_seq OWNED BY stored_events.notification_id",
    # Not unique: an index over partitions can only be so with the id in it. The sequence, and the lock
    # under which it is drawn from, see to it.
    "CREATE INDEX IF NOT EXISTS stored_events_by_position ON stored_events (notification_id)",
    f"CREATE TABLE IF NOT EXISTS {REST} PARTITION OF stored_events DEFAULT",
    # ';' follows ':'.
    f"CREATE TABLE IF NOT EXISTS {CALLBACKS} PARTITION OF stored_events"
    " FOR VALUES FROM ('callback:') TO ('callback;')",
)

_PARTITIONS = (
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i"
    " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'stored_events'::regclass"
)
_BOUND = re.compile(
    r"FOR VALUES FROM \((?:MINVALUE|'(?P<first>[0-9a-f-]{13})')\) TO \('(?P<behind>[0-9a-f-]{13})'\)"
)


class Partition(NamedTuple):
    """Holds the ids from ``first`` (empty: from the first of all) to those before ``behind``."""

    name: str
    first: str
    behind: str


def lowest_id(at: Micros) -> str:
    """What every UUIDv7 made at ``at`` or later sorts behind, and every one made before sorts before."""
    digits = f"{at // 1000:012x}"
    return f"{digits[:8]}-{digits[8:]}"


def moment_of(lowest: str) -> Micros:
    """The inverse of ``lowest_id``, to the millisecond."""
    return Micros(int(lowest.replace("-", ""), 16) * 1000)


def partitions(reader: Reader) -> list[Partition]:
    """Those that hold a span of time, the oldest first."""
    found: list[Partition] = []
    for name, bound in reader.query(_PARTITIONS):
        matched = _BOUND.fullmatch(bound)
        if matched is not None:
            found.append(Partition(name, matched["first"] or "", matched["behind"]))
    return sorted(found, key=lambda each: each.behind)


def is_ahead(reader: Reader, days: int) -> bool:
    """Whether the partitions reach far enough for now."""
    found = partitions(reader)
    return bool(found) and moment_of(found[-1].behind) > _now(reader) + AHEAD * days * _DAY


def make_ahead(transaction: Transaction, days: int) -> None:
    """Make the partitions that are missing; the caller holds the creation lock."""
    now = _now(transaction)
    found = partitions(transaction)
    end = moment_of(found[-1].behind) if found else _start_of_span(now, days)
    while end <= now + AHEAD * days * _DAY:
        # One partition for all the time in which nobody made any.
        begin, end = end, Micros(max(end, _start_of_span(now, days)) + days * _DAY)
        make(transaction, begin, end)


def convert(transaction: Transaction) -> None:
    """From the one table of release 0.1: it becomes the partition of all time up to now, uncopied.

    Its indexes are built again (ids compare byte by byte now), and what doesn't belong to its span moves:
    flows, keys, resources, callbacks, and children of 0.1, whose ids say nothing about time.
    """
    behind = lowest_id(Micros(_start_of_span(_now(transaction), 1) + _DAY))
    for statement in (
        "LOCK TABLE stored_events IN ACCESS EXCLUSIVE MODE",
        f"ALTER TABLE stored_events RENAME TO {BEFORE}",
        f"ALTER INDEX stored_events_pkey RENAME TO {BEFORE}_pkey",
        "DROP INDEX stored_events_notification_id_idx",
        f'ALTER TABLE {BEFORE} ALTER COLUMN originator_id TYPE text COLLATE "C"',
        *CREATE,
        f"WITH moved AS (DELETE FROM {BEFORE} WHERE originator_id >= '{behind}' RETURNING {_COLUMNS})"
        f" INSERT INTO stored_events ({_COLUMNS}) SELECT {_COLUMNS} FROM moved",
        f"CREATE INDEX {BEFORE}_by_position ON {BEFORE} (notification_id)",
        f"ALTER TABLE stored_events ATTACH PARTITION {BEFORE} FOR VALUES FROM (MINVALUE) TO ('{behind}')",
    ):
        transaction.execute(statement)


class Content(NamedTuple):
    """What a partition held at one moment; ``position`` of its newest event, 0 when it is empty."""

    events: int
    position: int


def content_of(reader: Reader, partition: Partition) -> Content:
    [(events, position)] = reader.query(
        f"SELECT COUNT(*), COALESCE(MAX(notification_id), 0) FROM {partition.name}"
    )
    return Content(events, position)


EMPTY = Content(0, 0)


def is_empty(reader: Reader, partition: Partition) -> bool:
    return not reader.query(f"SELECT 1 FROM {partition.name} LIMIT 1")


def drop(transaction: Transaction, partition: Partition, known: Content) -> bool:
    """Drop a partition that holds what it held when ``known`` was read; else leave it and answer False.

    Waits for whoever reads or appends, and they for the end of the transaction.
    """
    transaction.execute("LOCK TABLE ONLY stored_events IN ACCESS EXCLUSIVE MODE")
    [(position,)] = transaction.query(f"SELECT COALESCE(MAX(notification_id), 0) FROM {partition.name}")
    if position != known.position:
        return False
    transaction.execute(f"DROP TABLE {partition.name}")
    return True


def make(transaction: Transaction, begin: Micros, end: Micros) -> None:
    """A partition for the executions accepted from ``begin`` to before ``end``, with those in ``rest``."""
    first, behind = lowest_id(begin), lowest_id(end)
    [(name,)] = transaction.query(
        "SELECT 'stored_events_' || to_char(to_timestamp(?) AT TIME ZONE 'UTC', 'YYYYMMDD')",
        (begin // SECOND,),
    )
    span = f"originator_id >= '{first}' AND originator_id < '{behind}'"
    for statement in (
        "LOCK TABLE ONLY stored_events IN EXCLUSIVE MODE",
        f"CREATE TABLE {name} (LIKE stored_events INCLUDING DEFAULTS INCLUDING INDEXES)",
        f"WITH moved AS (DELETE FROM {REST} WHERE {span} RETURNING {_COLUMNS})"
        f" INSERT INTO {name} ({_COLUMNS}) SELECT {_COLUMNS} FROM moved",
        f"ALTER TABLE stored_events ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{behind}')",
    ):
        transaction.execute(statement)


def _start_of_span(at: Micros, days: int) -> Micros:
    return Micros(at // (days * _DAY) * days * _DAY)


def _now(reader: Reader) -> Micros:
    """The server's clock: every process that makes partitions reads the same."""
    return Micros(reader.query("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0][0])
