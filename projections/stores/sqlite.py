"""SQLite: the library's recorder with explicit durability, group inserts and the inline read models.

Any number of processes may open the file. One writes at a time (``BEGIN IMMEDIATE``, waiting up to the busy
timeout); readers never wait (WAL). ``synchronous=FULL``: a commit is on the disk before it returns.
"""

import re
import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from eventsourcing import persistence
from eventsourcing import sqlite as library
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.utils import Environment, EnvType

from projections import inline
from projections.store import Transaction
from projections.stores import layout
from projections.stores.queries import Queries

BUSY_SECONDS = 10
"""How long a statement waits for another process's write to end."""

CLOSE_SECONDS_MAX = 10.0
"""How long closing the store waits for statements that other threads are running."""

CLOSE_LOOK_SECONDS = 0.05

CONNECTIONS_MAX = 8
"""Open connections of one process; past them a caller waits for one to return."""

CACHE_KIB = 8_192
MMAP_BYTES = 256 * 1024 * 1024

ROWS_AT_ONCE_MAX = 128
"""Of one INSERT; more go in several."""

STATEMENTS_MAX = 256
"""Prepared ones that a connection keeps."""

_ROW = re.compile(r"(?<=VALUES )\((?:\?, )*\?\)")

STEPS: dict[int, layout.Step] = {1: lambda transaction: None}
"""From a log format to the next; the tables that format 2 adds are made for every store."""

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"

_ERRORS: tuple[tuple[type[sqlite3.Error], type[persistence.PersistenceError]], ...] = (
    (sqlite3.IntegrityError, persistence.IntegrityError),
    (sqlite3.OperationalError, persistence.OperationalError),
    (sqlite3.InterfaceError, persistence.InterfaceError),
    (sqlite3.DataError, persistence.DataError),
    (sqlite3.InternalError, persistence.InternalError),
    (sqlite3.NotSupportedError, persistence.NotSupportedError),
    (sqlite3.ProgrammingError, persistence.ProgrammingError),
    (sqlite3.DatabaseError, persistence.DatabaseError),
)


def _translated(error: sqlite3.Error) -> persistence.PersistenceError:
    for theirs, ours in _ERRORS:
        if isinstance(error, theirs):
            return ours(str(error))
    return persistence.PersistenceError(str(error))


class Connection(library.SQLiteConnection):
    """A connection whose transactions can't outlive a failure."""

    @contextmanager
    def transaction(self, *, commit: bool) -> Generator[library.SQLiteCursor]:
        """``commit``: takes the write lock at once, so that a read before the write can't go stale."""
        connection = self._sqlite_conn
        cursor = connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE" if commit else "BEGIN")
            yield library.SQLiteCursor(cursor)
            if commit:
                connection.commit()
        except sqlite3.Error as error:
            raise _translated(error) from error
        finally:
            cursor.close()
            if connection.in_transaction:
                # Read-only, or failed, perhaps in its commit: the library would hand the connection to the
                # next caller with the transaction still open.
                try:
                    connection.rollback()
                except sqlite3.Error:
                    self.close()

    def query(self, sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
        """One statement's rows, outside a transaction: a single SELECT is a snapshot by itself."""
        try:
            cursor = self._sqlite_conn.cursor()
            cursor.row_factory = None
            try:
                return cursor.execute(sql, params).fetchall()
            finally:
                cursor.close()
        except sqlite3.Error as error:
            raise _translated(error) from error


class ConnectionPool(library.SQLiteConnectionPool):
    """Closes no connection under a running statement: SQLite's module would end the process with it."""

    _is_closing = False

    def get_connection(
        self, timeout: float | None = None, *, is_writer: bool | None = None
    ) -> library.SQLiteConnection:
        if self._is_closing:
            raise persistence.ConnectionPoolClosedError
        return super().get_connection(timeout, is_writer=is_writer)

    def close(self) -> None:
        """Wait for the statements that are running, then close; no other begins meanwhile."""
        deadline = time.monotonic() + CLOSE_SECONDS_MAX
        with self._put_condition:
            if self._closed:
                return
            self._is_closing = True
            while self._in_use and time.monotonic() < deadline:
                self._put_condition.wait(CLOSE_LOOK_SECONDS)
            self._in_use.clear()  # one that takes longer is left to its thread
            super().close()

    def _create_connection(self) -> Connection:
        """Open one more connection, with the durability this log promises set explicitly."""
        try:
            connection = sqlite3.connect(
                self.db_name,
                uri=self.db_name.startswith("file:"),
                check_same_thread=False,
                isolation_level=None,
                cached_statements=STATEMENTS_MAX,
                timeout=self.lock_timeout or BUSY_SECONDS,
            )
        except (sqlite3.Error, TypeError) as error:
            raise persistence.InterfaceError(f"{self.db_name}: {error}") from error
        try:
            if not self.is_sqlite_memory_mode:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute(f"PRAGMA mmap_size={MMAP_BYTES}")
                connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        except sqlite3.Error as error:
            connection.close()
            raise _translated(error) from error
        connection.row_factory = sqlite3.Row
        return Connection(sqlite_conn=connection, max_age=self.max_age)


def insert_rows(cursor: sqlite3.Cursor, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """``executemany`` with many rows to a statement.

    Python's module lets go of the interpreter's lock around each statement, and beside a busy event loop it
    waits up to 5 ms to have it again: 115 rows took 55 ms one by one, of which 4 ms were CPU.
    """
    if _ROW.search(sql) is None:
        cursor.executemany(sql, rows)
        return
    for at in range(0, len(rows), ROWS_AT_ONCE_MAX):
        some = rows[at : at + ROWS_AT_ONCE_MAX]
        cursor.execute(_of_rows(sql, len(some)), [*chain.from_iterable(some)])


@lru_cache(maxsize=STATEMENTS_MAX)
def _of_rows(sql: str, count: int) -> str:
    return _ROW.sub(lambda row: ", ".join([row[0]] * count), sql, count=1)


class Writing:
    """Statements of one writing transaction, in the dialect of ``projections.store``."""

    def __init__(self, cursor: library.SQLiteCursor, tracking: library.SQLiteTrackingRecorder) -> None:
        self._cursor = cursor
        self._tracking = tracking

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self._cursor.execute(sql, params)
        return [tuple(found) for found in self._cursor.fetchall()]

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        self._cursor.execute(sql, params)

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        insert_rows(self._cursor.sqlite_cursor, sql, rows)

    # The underscored methods are the library's seam for recorders that share a transaction.

    def track(self, name: str, position: int) -> None:
        self._tracking._insert_tracking(self._cursor, Tracking(name, position))  # pyright: ignore[reportPrivateUsage]

    def create_tracking(self) -> None:
        self._tracking._create_table(self._cursor)  # pyright: ignore[reportPrivateUsage]


class Datastore(library.SQLiteDatastore):
    dialect = "sqlite"

    def __init__(self, db_name: str, *, lock_timeout: int | None = None) -> None:
        super().__init__(db_name, lock_timeout=lock_timeout, originator_id_type="text")
        self.pool = ConnectionPool(
            db_name=db_name,
            lock_timeout=lock_timeout,
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            pool_timeout=float(BUSY_SECONDS),
        )
        self.tracking = library.SQLiteTrackingRecorder(self)

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self.get_connection(commit=False) as connection:
            assert isinstance(connection, Connection)
            return connection.query(sql, params)

    @contextmanager
    def writing(self, *, exclusive: bool = False) -> Generator[Writing]:
        """``exclusive`` changes nothing: a writing transaction excludes every other writer."""
        with self.transaction(commit=True) as cursor:
            yield Writing(cursor, self.tracking)

    def tracked(self, name: str) -> int | None:
        return self.tracking.max_tracking_id(name)


class Recorder(Queries, library.SQLiteApplicationRecorder):
    """Stored events and inline rows in one transaction; positions are row ids.

    The row id is declared (``notification_id``), or ``VACUUM`` could renumber what readers remember.
    """

    datastore: Datastore

    def construct_create_table_statements(self) -> list[str]:
        return [
            "CREATE TABLE IF NOT EXISTS stored_events ("
            "notification_id INTEGER PRIMARY KEY, originator_id TEXT NOT NULL,"
            " originator_version INTEGER NOT NULL, topic TEXT NOT NULL, state BLOB NOT NULL,"
            " UNIQUE (originator_id, originator_version))",
        ]

    def create_table(self) -> None:
        """Create what is missing, migrate what is older. Raises: Diverged for a log of a newer release."""
        tables = {name for (name,) in self.query(_TABLES)}
        if layout.META in tables and layout.is_current(self):
            return
        with self.datastore.writing() as writing:
            # Again, now that no other process can be at it.
            tables = {name for (name,) in writing.query(_TABLES)}
            layout.prepare(writing, layout.Events(self._create_events, STEPS), tables)
            if "tracking" not in tables:
                writing.create_tracking()

    def _create_events(self, transaction: Transaction) -> None:
        for statement in self.create_table_statements:
            transaction.execute(statement)

    def upkeep(self) -> None:
        """Nothing: one table takes everything."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        if not stored_events:
            return []
        with self.datastore.transaction(commit=True) as cursor:
            return self._insert_events(cursor, stored_events, **kwargs)

    def _insert_events(
        self, c: library.SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int]:
        cursor = c.sqlite_cursor
        insert_rows(
            cursor,
            "INSERT INTO stored_events (originator_id, originator_version, topic, state) VALUES (?, ?, ?, ?)",
            [(s.originator_id, s.originator_version, s.topic, s.state) for s in stored_events],
        )
        # SQLite gives each new row the highest row id plus one, and this transaction holds the write lock:
        # the ids of one group are contiguous and end with the last one.
        last = cursor.lastrowid
        assert last is not None
        positions = range(last - len(stored_events) + 1, last + 1)
        for statement, rows in inline.upserts(kwargs.get("inline", ()), positions):
            insert_rows(cursor, statement, rows)
        return positions

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self.datastore.query(sql, params)


class Factory(library.SQLiteFactory):
    application_recorder_class = Recorder

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self.datastore.close()
        self.datastore = self._datastore()

    def _datastore(self) -> Datastore:
        timeout = self.env.get(self.SQLITE_LOCK_TIMEOUT)
        name = self.env.get(self.SQLITE_DBNAME) or ""
        if not name.startswith("file:"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        return Datastore(name, lock_timeout=int(timeout) if timeout else None)
