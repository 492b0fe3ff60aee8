"""What only a server can do to a log: drop connections, refuse them, hold locks, hold other schemas."""

import socket
import threading

import psycopg
import pytest

from runtime import events
from runtime.errors import Unavailable
from runtime.event_log import EventLog, store_env
from runtime.ids import Position
from tests.conformance.histories import Story

pytestmark = pytest.mark.postgres


def drop_connections(url: str) -> int:
    """End every other session of the database, as a restart of the server does."""
    with psycopg.connect(url, autocommit=True) as admin:
        ended = admin.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert ended is not None
    return ended[0]


def test_dropped_connections_are_opened_again(postgres_url: str) -> None:
    log = EventLog.open(store_env(postgres_url))
    story = Story(1)
    try:
        log.append([story.begun()])
        assert drop_connections(postgres_url) >= 1

        [outcome] = log.append([story.tell(story.next(events.NodeStarted, node_id="n0"))])
        assert isinstance(outcome, tuple)
        assert drop_connections(postgres_url) >= 1
        assert [one.event() for one in log.read(story.id)] == story.told
    finally:
        log.close()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as reserved:  # bound, but nobody listens
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        env = store_env(f"postgresql://nobody:secret@127.0.0.1:{port}/none") | {
            "POSTGRES_CONNECT_TIMEOUT": "1"
        }
        with pytest.raises(Unavailable) as refused:
            EventLog.open(env)
    assert "can't be opened" in str(refused.value)
    assert f"127.0.0.1:{port}/none" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_reader_does_not_wait_for_a_writer(postgres_url: str) -> None:
    log = EventLog.open(store_env(postgres_url))
    story, other = Story(1), Story(2)
    try:
        log.append([story.begun()])
        done = threading.Event()

        def write() -> None:
            log.append([other.begun()])
            done.set()

        with psycopg.connect(postgres_url) as holder:
            holder.execute("LOCK TABLE stored_events IN EXCLUSIVE MODE")
            writer = threading.Thread(target=write)
            writer.start()
            assert len(log.feed(Position(0), 10)) == 2
            assert not done.is_set()
            holder.rollback()
        writer.join(timeout=60)
        assert done.is_set()
        assert len(log.feed(Position(0), 10)) == 4
    finally:
        log.close()


def test_two_schemas_of_one_database_are_two_logs(postgres_url: str) -> None:
    separator = "&" if "?" in postgres_url else "?"
    logs = [EventLog.open(store_env(f"{postgres_url}{separator}schema={name}")) for name in ("east", "west")]
    try:
        logs[0].append([Story(1).whole()])
        assert logs[0].max_position() == 7
        assert logs[1].max_position() == 0
        logs[1].append([Story(1).begun()])
        assert [log.max_position() for log in logs] == [7, 2]
    finally:
        for log in logs:
            log.close()


def test_the_functions_that_write_without_the_lock_do_not_exist(postgres_url: str) -> None:
    log = EventLog.open(store_env(postgres_url))
    try:
        with psycopg.connect(postgres_url) as session:
            found = session.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'es_%'").fetchall()
        assert found == []
    finally:
        log.close()
