"""``ReadStore``: SQL over the event log's own database, in one dialect. Blocking: call it from threads.

Statements use ``?`` for parameters and what SQLite and PostgreSQL have in common; rows come back as tuples
in the order of the selected columns.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

from eventsourcing.domain import EventSourcingError
from eventsourcing.persistence import InfrastructureFactory, IntegrityError

from runtime.errors import Unavailable
from runtime.event_log import EventLog
from runtime.ids import Position

Row = tuple[Any, ...]


class Reader(Protocol):
    """Anything that answers SQL: the read store, one of its transactions, or the log's recorder."""

    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]: ...


class Transaction(Reader, Protocol):
    """Statements that commit together."""

    def execute(self, sql: str, params: Sequence[object] = ()) -> None: ...
    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None: ...

    def track(self, name: str, position: int) -> None:
        """Record how far the reader ``name`` came, together with its rows.

        Raises: eventsourcing's IntegrityError unless ``position`` lies behind the recorded one.
        """
        ...


class Datastore(Reader, Protocol):
    """What each store's own datastore offers."""

    dialect: str

    def writing(self, *, exclusive: bool = False) -> AbstractContextManager[Transaction]: ...
    def tracked(self, name: str) -> int | None: ...


class ReadStore:
    """Raises: Unavailable from every method when the store is away."""

    def __init__(self, datastore: Datastore, factory: InfrastructureFactory[Any] | None = None) -> None:
        self._datastore = datastore
        self._factory = factory

    @classmethod
    def open(cls, env: Mapping[str, str]) -> "ReadStore":
        """A store with connections of its own; ``env`` as ``runtime.event_log.store_env`` makes it."""
        log = EventLog.open(env)
        return cls(_datastore(log.factory), log.factory)

    @classmethod
    def over(cls, log: EventLog) -> "ReadStore":
        """A store that shares the connections of ``log`` and closes with it."""
        return cls(_datastore(log.factory))

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgres``, for the few statements they don't share."""
        return self._datastore.dialect

    def query(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        with _available():
            return self._datastore.query(sql, params)

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        with self.transaction() as transaction:
            transaction.execute(sql, params)

    @contextmanager
    def transaction(self, *, exclusive: bool = False) -> Generator[Transaction]:
        """Commits at the end of the block, rolls back when it raises.

        ``exclusive``: nobody appends to the log meanwhile (on SQLite that is so with every transaction).

        Raises: eventsourcing's IntegrityError for a broken constraint.
        """
        with _available(), self._datastore.writing(exclusive=exclusive) as transaction:
            yield transaction

    def tracked(self, name: str) -> Position:
        """The position the reader ``name`` last committed, 0 before the first."""
        with _available():
            return Position(self._datastore.tracked(name) or 0)

    def close(self) -> None:
        """Nothing when the connections are a log's."""
        if self._factory is not None:
            self._factory.close()


def _datastore(factory: InfrastructureFactory[Any]) -> Datastore:
    return cast("Datastore", cast("Any", factory).datastore)


@contextmanager
def _available() -> Generator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except EventSourcingError as error:
        raise Unavailable(f"the store is unavailable: {error or type(error).__name__}") from error
