"""A log of release 0.1, with everything that release could record, opened by today's code: nothing is lost.

On the stores that outlive a process: nothing of an older release can be in memory.
"""

import threading
from pathlib import Path

import psycopg
import pytest

from projections.inline_rebuild import check
from projections.store import ReadStore
from projections.stores import layout, partitions
from runtime import codec, events
from runtime.event_log import EventLog, store_env
from runtime.ids import Position
from runtime.verification import pages, verify
from tests.conformance.conftest import OpenLog
from tests.conformance.histories import Story
from tests.replay.histories import load

CHILD = "7b1f3c52-8d9e-8f4a-9b3c-2d5e6f708192"
"""Children of release 0.1 had ids that say nothing about time."""

META = (
    "CREATE TABLE heliograph_meta (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL)",
    "INSERT INTO heliograph_meta (name, value) VALUES ('log_format', 1), ('inline_layout', 2)",
    # Of the inline tables only that they are there counts: they are made anew.
    "CREATE TABLE executions (execution_id TEXT NOT NULL PRIMARY KEY)",
)

SQLITE = (
    "CREATE TABLE stored_events (notification_id INTEGER PRIMARY KEY, originator_id TEXT NOT NULL,"
    " originator_version INTEGER NOT NULL, topic TEXT NOT NULL, state BLOB NOT NULL,"
    " UNIQUE (originator_id, originator_version))",
    "CREATE TABLE tracking (application_name TEXT, notification_id INTEGER, PRIMARY KEY (application_name))",
    *META,
)
POSTGRES = (
    "CREATE TABLE stored_events ("
    "originator_id text NOT NULL, originator_version bigint NOT NULL, topic text NOT NULL,"
    " state bytea NOT NULL, notification_id bigserial, PRIMARY KEY (originator_id, originator_version))",
    "CREATE UNIQUE INDEX stored_events_notification_id_idx ON stored_events (notification_id)",
    "CREATE TABLE notification_tracking ("
    "application_name text, notification_id bigint, PRIMARY KEY (application_name))",
    *META,
)


def _lay_out_as_release_0_1(store: ReadStore) -> None:
    tables = store.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        " AND tablename NOT IN (SELECT inhrelid::regclass::text FROM pg_inherits)"
        if store.dialect == "postgres"
        else "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    )
    with store.transaction() as transaction:
        for (table,) in tables:
            transaction.execute(f"DROP TABLE {table}")
        for statement in POSTGRES if store.dialect == "postgres" else SQLITE:
            transaction.execute(statement)


def _write_history(store: ReadStore) -> None:
    """The release's stored history, a child, and the sequence where the release left it."""
    insert = (
        "INSERT INTO stored_events (notification_id, originator_id, originator_version, topic, state)"
        " VALUES (?, ?, ?, ?, ?)"
    )
    history = load("release_0_1")
    rows = [(one.position, one.originator_id, one.originator_version, one.topic, one.data) for one in history]
    child = Story(1)
    child.id = CHILD
    [queued] = child.tell(child.queued()).events
    last = rows[-1][0] + 1
    rows.append((Position(last), CHILD, 1, queued.TOPIC, codec.encode(queued, "")))
    with store.transaction() as transaction:
        transaction.executemany(insert, rows)
        if store.dialect == "postgres":
            transaction.query("SELECT setval('stored_events_notification_id_seq', ?)", (last,))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    if request.param == "sqlite":
        return store_env(f"sqlite:///{tmp_path}/log.db")
    return store_env(request.getfixturevalue("postgres_url"))


@pytest.fixture
def old(open_log: OpenLog) -> ReadStore:
    """The store of a log that release 0.1 left, opened before."""
    store = ReadStore.over(open_log())
    _lay_out_as_release_0_1(store)
    _write_history(store)
    return store


def test_it_is_converted_once_by_many_and_nothing_is_lost(old: ReadStore, open_log: OpenLog) -> None:
    before = old.query(
        "SELECT notification_id, originator_id, originator_version, topic, state FROM stored_events"
        " ORDER BY notification_id"
    )
    opened: list[EventLog] = []
    threads = [threading.Thread(target=lambda: opened.append(open_log())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert len(opened) == 5
    log = opened[0]
    held = [(e.position, e.originator_id, e.originator_version, e.topic, e.data) for e in pages(log.feed)]
    assert held == before
    assert verify(pages(log.feed)).is_clean
    assert list(check(ReadStore.over(log))) == []
    story = Story(77)
    [outcome] = log.append([story.begun()])
    assert isinstance(outcome, tuple)
    assert [one.position for one in outcome] == [before[-1][0] + 1, before[-1][0] + 2]
    assert [one.originator_id for one in log.read(CHILD)] == [CHILD]


def test_its_events_stand_in_the_partitions_of_their_ids(old: ReadStore, open_log: OpenLog) -> None:
    if old.dialect != "postgres":
        return
    log = open_log()
    found = dict(
        old.query("SELECT MIN(tableoid::regclass::text), originator_id FROM stored_events GROUP BY 2")
    )
    by_table: dict[str, set[str]] = {}
    for table, stream in old.query("SELECT tableoid::regclass::text, originator_id FROM stored_events"):
        by_table.setdefault(table, set()).add(stream)
    assert found.keys() == by_table.keys() == {partitions.BEFORE, partitions.CALLBACKS, partitions.REST}
    assert CHILD in by_table[partitions.REST]
    assert all(stream.startswith("callback:") for stream in by_table[partitions.CALLBACKS])
    assert not any(":" in stream for stream in by_table[partitions.BEFORE])

    with old.transaction() as transaction:  # positions go on when the part that they began in is gone
        transaction.execute(f"DROP TABLE {partitions.BEFORE}")
    position = log.max_position()
    [outcome] = log.append([Story(78).begun()])
    assert isinstance(outcome, tuple)
    assert outcome[0].position > position


def test_a_conversion_that_died_leaves_the_old_log_whole(
    old: ReadStore, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = old.query("SELECT COUNT(*) FROM stored_events")

    def die(*_: object) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(layout, "rebuild_all", die)
        with pytest.raises(RuntimeError, match="died"):
            open_log()
    assert old.query("SELECT value FROM heliograph_meta WHERE name = 'log_format'") == [(1,)]
    assert open_log().max_position() > 0
    assert old.query("SELECT COUNT(*) FROM stored_events") == count


@pytest.mark.postgres
def test_a_start_waits_for_another_that_converts(postgres_url: str) -> None:
    """Longer than a lock is waited for otherwise; here: the wait for the creation lock has its own bound."""
    env = store_env(postgres_url) | {"POSTGRES_LOCK_TIMEOUT": "1"}
    done = threading.Event()

    def open_it() -> None:
        EventLog.open(env).close()
        done.set()

    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (0x48454C494F,))
        opener = threading.Thread(target=open_it)
        opener.start()
        holder.execute("SELECT pg_sleep(1.5)")
        assert not done.is_set()
        holder.rollback()
    opener.join(timeout=60)
    assert done.is_set()
    log = EventLog.open(env)
    try:
        [outcome] = log.append([Story(1).tell(Story(1).queued())])
        assert isinstance(outcome, tuple)
        assert isinstance(outcome[0].event(), events.Queued)
    finally:
        log.close()
