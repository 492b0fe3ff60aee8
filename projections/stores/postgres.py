"""PostgreSQL: the library's recorder with group inserts and the inline read models.

Writers take the library's table lock (EXCLUSIVE) and hold it through their commit, so positions become
visible in their order and a reader that resumes behind the last one misses nothing. The library's optional
database functions drop that lock: they stay off, and are not even created. Nothing is notified: readers
poll, and are woken in-process (NOTIFY takes a lock of the whole server at each commit). Everything of a group
goes out at once, so the lock is held for its statements and its commit, and for no way to us and back.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psycopg
from eventsourcing import persistence
from eventsourcing import postgres as library
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.utils import Environment, EnvType
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, tuple_row
from psycopg.sql import SQL, Identifier

from projections import inline
from projections.store import Transaction
from projections.stores import connections, layout, partitions
from projections.stores.queries import Queries

STATEMENT_SECONDS_MAX = 60
"""A statement that takes longer is cancelled by the server, so that no caller waits for ever."""

_CREATION_LOCK = 0x48454C494F  # advisory: one process at a time creates or migrates tables

STEPS: dict[int, layout.Step] = {1: partitions.convert}
"""From a log format to the next."""

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"

_CREATE_TRACKING = (
    "CREATE TABLE IF NOT EXISTS notification_tracking ("
    "application_name text, notification_id bigint, PRIMARY KEY (application_name))"
)

MIGRATION_SECONDS_MAX = 3_600
"""How long making or converting tables may take, and how long the other processes that start wait for it."""

_INSERT = SQL(
    "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
    " SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[])"
    " RETURNING notification_id"
)

# The parent alone: every writer goes through it.
_LOCK = SQL("LOCK TABLE ONLY stored_events IN EXCLUSIVE MODE")


_UNENDED = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


@lru_cache(maxsize=512)
def _translated(sql: str) -> bytes:
    """psycopg's placeholders for our ``?``; no statement here has either sign in a literal."""
    return sql.replace("%", "%%").replace("?", "%s").encode()


@lru_cache(maxsize=64)
def _placed(upsert: str) -> bytes:
    """The upsert of an inline model whose rows say how far before the group's last event theirs stands.

    The group's positions are contiguous, and end with the last one this session drew.
    """
    head, values, tail = re.split(r"(?<=VALUES \()([?, ]+)(?=\))", upsert, maxsplit=1)
    names = [name.strip() for name in head[head.index("(") + 1 : head.index(")")].split(",")]
    marks = values.split(", ")
    if "position" in names:
        marks[names.index("position")] = "currval('stored_events_notification_id_seq') + ?"
    return _translated(head + ", ".join(marks) + tail)


class Writing:
    """Statements of one writing transaction, in the dialect of ``projections.store``."""

    def __init__(self, cursor: psycopg.Cursor[DictRow], tracking: library.PostgresTrackingRecorder) -> None:
        self._cursor = cursor
        self._tracking = tracking

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._cursor.connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(_translated(sql), params).fetchall()

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        self._cursor.execute(_translated(sql), params)

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self._cursor.executemany(_translated(sql), rows)

    def track(self, name: str, position: int) -> None:
        # The underscored method is the library's seam for recorders that share a transaction.
        self._tracking._insert_tracking(self._cursor, Tracking(name, position))  # pyright: ignore[reportPrivateUsage]


class Datastore(library.PostgresDatastore):
    dialect = "postgres"
    tracking: library.PostgresTrackingRecorder

    def __init__(self, *, connections_max: int = 0, partition_days: int, **kwargs: Any) -> None:
        """``connections_max``: of all processes together, 0 for what the server lets them have."""
        self.connections_max = connections_max
        self.partition_days = partition_days
        self.largest = int(kwargs["pool_size"]) + int(kwargs["max_overflow"])
        super().__init__(**kwargs)

    def after_connect_func(self) -> Any:
        """Every connection: the library's settings, our schema, and a bound on each statement."""
        configure = super().after_connect_func()
        # A durable commit is what this log promises, whatever the server's default.
        settings = SQL(
            "SET search_path TO {}; SET statement_timeout = {}; SET lock_timeout = {};"
            " SET synchronous_commit = on; SET application_name = {}"
        ).format(
            Identifier(self.schema),
            STATEMENT_SECONDS_MAX * 1000,
            self.lock_timeout * 1000,
            connections.name_of_opener(self.largest),
        )

        def after_connect(connection: psycopg.Connection[Any]) -> None:
            configure(connection)
            connection.execute(settings)

        return after_connect

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self.get_connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(_translated(sql), params).fetchall()

    @contextmanager
    def writing(self, *, exclusive: bool = False) -> Generator[Writing]:
        """``exclusive``: takes the lock of the events first, so nobody appends meanwhile."""
        with self.transaction(commit=True) as cursor:
            if exclusive:
                cursor.execute(_LOCK)
            yield Writing(cursor, self.tracking)

    def tracked(self, name: str) -> int | None:
        return self.tracking.max_tracking_id(name)


class Recorder(Queries, library.PostgresApplicationRecorder):
    """Stored events and inline rows in one transaction; positions are the library's notification ids."""

    datastore: Datastore

    def create_table(self) -> None:
        """Create what is missing, migrate what is older. Raises: Diverged for a log of a newer release."""
        connections.check(self, self.datastore.largest, self.datastore.connections_max)
        tables = {name for (name,) in self.query(_TABLES)}
        if layout.META in tables and layout.is_current(self):
            self.upkeep()
            return
        with self._making() as writing:
            tables = {name for (name,) in writing.query(_TABLES)}
            layout.prepare(writing, layout.Events(self._create_events, STEPS), tables)

    def upkeep(self) -> None:
        """Make the partitions that will be needed next; to be called now and then."""
        days = self.datastore.partition_days
        if partitions.is_ahead(self, days):
            return
        with self._making() as writing:
            partitions.make_ahead(writing, days)

    def _create_events(self, transaction: Transaction) -> None:
        for statement in (*partitions.CREATE, _CREATE_TRACKING):
            transaction.execute(statement)
        partitions.make_ahead(transaction, self.datastore.partition_days)

    @contextmanager
    def _making(self) -> Generator[Writing]:
        """A transaction for tables: one process at a time, and with time enough to convert a long log."""
        with self.datastore.writing() as writing:
            for bound in ("lock_timeout", "statement_timeout"):
                writing.execute(f"SET LOCAL {bound} = {MIGRATION_SECONDS_MAX * 1000}")
            writing.query("SELECT pg_advisory_xact_lock(?)", (_CREATION_LOCK,))
            writing.execute(f'CREATE SCHEMA IF NOT EXISTS "{self.datastore.schema}"')
            yield writing

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        """As the library's, without its blind retry: ``EventLog`` must see an ambiguous commit."""
        if not stored_events:
            return []
        behind_last = range(1 - len(stored_events), 1)
        upserts = inline.upserts(kwargs.get("inline", ()), behind_last)
        refused: psycopg.IntegrityError | None = None
        positions: list[int] = []
        with self.datastore.get_connection() as connection:
            try:
                with connection.cursor(row_factory=tuple_row) as inserted:
                    with connection.pipeline(), connection.transaction():
                        self._send(connection, inserted, stored_events, upserts)
                    positions = [position for (position,) in inserted.fetchall()]
            except psycopg.IntegrityError as error:
                refused = error
            finally:
                # With what was refused, everything behind it was skipped, the commit and a rollback too.
                if connection.info.transaction_status in _UNENDED:
                    connection.rollback()
        if refused is not None:
            raise persistence.IntegrityError(str(refused)) from refused
        return positions

    def _send(
        self,
        connection: psycopg.Connection[DictRow],
        inserted: psycopg.Cursor[tuple[Any, ...]],
        stored_events: Sequence[StoredEvent],
        upserts: Sequence[tuple[str, Sequence[tuple[Any, ...]]]],
    ) -> None:
        """All statements of a group; the server answers the pipeline at its end."""
        connection.execute(_LOCK)
        inserted.execute(
            _INSERT,
            (
                [s.originator_id for s in stored_events],
                [s.originator_version for s in stored_events],
                [s.topic for s in stored_events],
                [s.state for s in stored_events],
            ),
            binary=True,
        )
        with connection.cursor() as cursor:
            for statement, rows in upserts:
                cursor.executemany(_placed(statement), rows)

    def query(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self.datastore.query(sql, params)


class Factory(library.PostgresFactory):
    application_recorder_class = Recorder

    def __init__(self, env: Environment | EnvType | None) -> None:
        """The library checks the environment; the datastore it makes of it isn't ours, and not open yet."""
        super().__init__(env)
        checked = self.datastore
        login: Any = checked.pool.kwargs
        smallest, largest = checked.pool.min_size, checked.pool.max_size
        self.datastore = Datastore(
            dbname=login["dbname"],
            host=login["host"],
            port=login["port"],
            user=login["user"],
            password=login["password"],
            get_password_func=checked.pool.get_password_func,
            connect_timeout=checked.pool.timeout,
            idle_in_transaction_session_timeout=checked.idle_in_transaction_session_timeout,
            pool_size=smallest,
            max_overflow=largest - smallest,
            max_waiting=checked.pool.max_waiting,
            conn_max_age=checked.pool.max_lifetime,
            pre_ping=checked.pre_ping,
            lock_timeout=checked.lock_timeout,
            schema=checked.schema,
            originator_id_type="text",
            connections_max=int(self.env.get("POSTGRES_CONNECTIONS_MAX") or 0),
            partition_days=int(self.env.get("POSTGRES_PARTITION_DAYS") or partitions.DAYS_DEFAULT),
        )
        self.datastore.tracking = library.PostgresTrackingRecorder(self.datastore)
