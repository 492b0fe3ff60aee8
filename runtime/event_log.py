"""The one door to the event log, over the eventsourcing library's recorders.

The backend is configuration (``PERSISTENCE_MODULE``); nothing here or above knows which. Everything blocks:
call it from threads, never from an event loop. An ``EventLog`` may be shared between threads; a ``Chain``
belongs to the one writer of its stream.

What holds after a crash: a group of appends and its inline rows commit together or not at all. The unique
(originator id, version) is the fence between two writers of one stream. When an acknowledgement was lost,
the next attempt finds the very bytes it wanted to write and reports them as its own.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import tenacity
from eventsourcing.domain import EventSourcingError
from eventsourcing.persistence import (
    DataError,
    InfrastructureFactory,
    IntegrityError,
    InterfaceError,
    Mapper,
    OperationalError,
    StoredEvent,
)

from runtime import codec
from runtime.errors import Conflict, Diverged, InvariantViolated, Unavailable
from runtime.events import Event
from runtime.ids import HostName, Micros, Position
from runtime.queues import QueueId, QueueUse

ATTEMPTS_MAX = 6
"""Tries of one operation on a store that doesn't answer, after the first; then ``Unavailable``."""

WAIT_SECONDS_MAX = 20.0
"""No further try begins after this long."""

ROUNDS_MAX = 8
"""Times a group is reduced by the streams that lost their version before it is given up."""

READ_MAX = 5_000
"""Events of one read or feed page, whatever the caller asked for."""

POOL_SIZE = 4
"""Connections one opener of a log holds at most: its writer's, and those of readers in other threads."""

LONE_POOL_SIZE = 2
"""The same for a process that holds a single execution."""


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """One event as it stands in the log. ``data`` is the stored JSON, ``prev`` included."""

    position: Position
    originator_id: str
    originator_version: int
    topic: str
    data: bytes

    def event(self) -> Event:
        """Raises: Diverged when this release can't read it."""
        return codec.decode(self.topic, self.data)

    def hash(self) -> str:
        """What the next event of the stream carries as ``prev``."""
        return codec.stored_hash(self.topic, self.data)


class Chain:
    """``head``: hash of the last stored event of one stream, empty before the first.

    ``is_lost``: set by a writer whose append failed; nothing may be appended behind the gap.
    """

    __slots__ = ("head", "is_lost")

    def __init__(self, head: str = "") -> None:
        self.head = head
        self.is_lost = False


class Append(msgspec.Struct):
    """Events to record, and the aggregate's state after them (it feeds the inline read models)."""

    originator_id: str
    events: Sequence[Event]
    state: object
    chain: Chain


_PASSING = (OperationalError, InterfaceError)
_REFUSED = (IntegrityError, DataError, InvariantViolated, TypeError, ValueError, ArithmeticError)

_QUEUE_SLOT = "queue_slot"
"""What both stores name when a slot of a queue is held already (see ``projections.execution_summary``)."""

Outcome = tuple[Recorded, ...] | Conflict | InvariantViolated


class LogRecorder(Protocol):
    """What ``EventLog`` asks of a store beyond the library's own recorder."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None: ...
    def select_recorded(self, originator_id: str, gt: int, limit: int) -> list[Recorded]: ...
    def select_feed(self, after: int, limit: int, topics: Sequence[str]) -> list[Recorded]: ...
    def max_notification_id(self) -> int | None: ...
    def open_executions(self, owner: HostName, after: str, limit: int, *, waiting: bool) -> list[str]: ...
    def owner_of(self, execution_id: str) -> HostName | None: ...
    def is_open(self, execution_id: str) -> bool: ...
    def owners(self) -> dict[HostName, int]: ...
    def due(self, owner: HostName, now: Micros, limit: int) -> list[str]: ...
    def next_wake(self, owner: HostName) -> Micros | None: ...
    def queue_use(
        self, queue: QueueId, host: HostName, since: Micros, starts_max: int, *, holders: bool
    ) -> QueueUse: ...
    def upkeep(self) -> None: ...


class EventMapper(Mapper[str]):
    """The library's mapper for our events: declared names, msgspec JSON, the hash chain."""

    def to_stored_event(self, domain_event: Any, prev: str = "") -> StoredEvent:
        event = cast("Event", domain_event)
        return StoredEvent(
            event.originator_id, event.originator_version, event.TOPIC, codec.encode(event, prev)
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Event:
        return codec.decode(stored_event.topic, stored_event.state)


class _Staged:
    """One append on its way: its stored events, and the chain's head once they are in."""

    __slots__ = ("append", "head", "index", "stored")

    def __init__(self, index: int, append: Append, stored: list[StoredEvent], head: str) -> None:
        self.index = index
        self.append = append
        self.stored = stored
        self.head = head

    def recorded(self, positions: Sequence[int]) -> tuple[Recorded, ...]:
        return tuple(
            Recorded(Position(position), cast("str", s.originator_id), s.originator_version, s.topic, s.state)
            for position, s in zip(positions, self.stored, strict=True)
        )


class EventLog:
    """Appends to and reads from the log. Raises: Unavailable from every method when the store is away."""

    def __init__(
        self, factory: InfrastructureFactory[Any], recorder: LogRecorder, mapper: EventMapper, name: str
    ) -> None:
        """``name`` says which store it is in messages for people; it holds no secret."""
        self.name = name
        self.factory = factory
        self.recorder = recorder
        self._mapper = mapper
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PASSING),
            stop=tenacity.stop_after_attempt(ATTEMPTS_MAX) | tenacity.stop_after_delay(WAIT_SECONDS_MAX),
            wait=tenacity.wait_exponential_jitter(multiplier=0.05, max=2.0, jitter=0.05),
            reraise=True,
        )

    @classmethod
    def open(cls, env: Mapping[str, str]) -> "EventLog":
        """Open the log that ``env`` describes (see ``store_env``); tables are made when missing.

        Raises: Diverged for a log written by a newer release; Unavailable when the store is away.
        """
        factory: InfrastructureFactory[Any] | None = None
        try:
            factory = InfrastructureFactory[Any].construct(dict(env))
            recorder = cast("LogRecorder", factory.application_recorder())
            mapper = cast("EventMapper", factory.mapper())
            return cls(factory, recorder, mapper, _name(env))
        except (EventSourcingError, OSError, Diverged) as error:
            if factory is not None:
                factory.close()
            if isinstance(error, Diverged):
                raise
            raise Unavailable(f"the event log {_name(env)} can't be opened: {error}") from error

    def append(self, appends: Sequence[Append]) -> list[Outcome]:
        """Record a group of streams' events in one transaction; one outcome each, in order.

        A stream whose version was taken answers ``Conflict`` (its chain stays), and so does one that wants a
        queue's slot that another host gave away; one whose event can't be stored answers
        ``InvariantViolated``; the others commit. One stream may occur more than once, in order of its
        versions.
        """
        outcomes: list[Outcome | None] = [None] * len(appends)
        pending = self._stage(appends, outcomes)
        for _ in range(ROUNDS_MAX):
            if not pending:
                break
            try:
                self._commit(pending, outcomes)
                pending = []
            except _REFUSED:
                left = self._settle(pending, outcomes)
                # Nobody lost a version, so it is the content of one of them that the store won't take.
                pending = self._one_by_one(left, outcomes) if len(left) == len(pending) else left
        if pending:
            raise Unavailable(f"{len(pending)} streams kept losing their versions while being appended")
        return cast("list[Outcome]", outcomes)

    def _stage(self, appends: Sequence[Append], outcomes: list[Outcome | None]) -> list[_Staged]:
        heads: dict[str, str] = {}
        gaps: dict[str, InvariantViolated] = {}
        staged: list[_Staged] = []
        to_stored = self._mapper.to_stored_event
        for index, append in enumerate(appends):
            if not append.events:
                outcomes[index] = ()
                continue
            if append.originator_id in gaps:
                outcomes[index] = gaps[append.originator_id]  # its versions would stand behind a gap
                continue
            head = heads.get(append.originator_id, append.chain.head)
            stored: list[StoredEvent] = []
            try:
                for event in append.events:
                    one = to_stored(event, head)
                    head = codec.stored_hash(one.topic, one.state)
                    stored.append(one)
            except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
                gap = InvariantViolated(f"{append.originator_id}: {error}")
                outcomes[index] = gaps[append.originator_id] = gap
                continue
            heads[append.originator_id] = head
            staged.append(_Staged(index, append, stored, head))
        return staged

    def _commit(self, pending: Sequence[_Staged], outcomes: list[Outcome | None]) -> None:
        positions = self._insert(pending)
        at = 0
        for staged in pending:
            end = at + len(staged.stored)
            outcomes[staged.index] = staged.recorded(positions[at:end])
            staged.append.chain.head = staged.head
            at = end

    def _one_by_one(self, pending: Sequence[_Staged], outcomes: list[Outcome | None]) -> list[_Staged]:
        """Each stream in a transaction of its own; what the store still refuses is our bug."""
        broken: dict[str, InvariantViolated | Conflict] = {}
        for staged in pending:
            stream = staged.append.originator_id
            if stream not in broken:
                try:
                    self._commit([staged], outcomes)
                    continue
                except _REFUSED as error:
                    if not self._settle([staged], outcomes):
                        continue
                    if _QUEUE_SLOT in str(error):
                        broken[stream] = Conflict(stream, staged.stored[0].originator_version)
                    else:
                        broken[stream] = InvariantViolated(f"{stream}: {error}")
            outcomes[staged.index] = broken[stream]
        return []

    def _insert(self, pending: Sequence[_Staged]) -> Sequence[int]:
        stored: list[StoredEvent] = []
        # The last state of a stream in the group wins; its row carries the position of its last event.
        inline: dict[str, tuple[object, int]] = {}
        for staged in pending:
            stored += staged.stored
            inline[staged.append.originator_id] = (staged.append.state, len(stored) - 1)
        insert = self.recorder.insert_events
        positions = self._call(insert, stored, inline=tuple(inline.values()))
        if positions is None or len(positions) != len(stored):
            raise InvariantViolated("the recorder must return one position for each event")
        return positions

    def _settle(self, pending: Sequence[_Staged], outcomes: list[Outcome | None]) -> list[_Staged]:
        """Sort out a refused group: what is already ours, what lost its version, what may go on."""
        left: list[_Staged] = []
        lost: dict[str, Conflict] = {}
        for staged in pending:
            stream = staged.append.originator_id
            if stream in lost:
                outcomes[staged.index] = lost[stream]
                continue
            first = staged.stored[0].originator_version
            found = self._call(self.recorder.select_recorded, stream, first - 1, len(staged.stored))
            if not found:
                left.append(staged)
            elif [(f.originator_version, f.topic, f.data) for f in found] == [
                (s.originator_version, s.topic, s.state) for s in staged.stored
            ]:
                outcomes[staged.index] = tuple(found)  # the acknowledgement of our own commit was lost
                staged.append.chain.head = staged.head
            else:
                outcomes[staged.index] = lost[stream] = Conflict(stream, first)
        return left

    def read(self, originator_id: str, after_version: int = 0, limit: int | None = None) -> list[Recorded]:
        """Events of one stream in order; none for a stream that doesn't exist.

        Without ``limit`` all of them: read page by page, so that a long history is bounded only by what
        an execution may hold.
        """
        if limit is not None and limit <= READ_MAX:
            return self._call(self.recorder.select_recorded, originator_id, after_version, limit)
        found: list[Recorded] = []
        while limit is None or len(found) < limit:
            want = READ_MAX if limit is None else min(READ_MAX, limit - len(found))
            page = self._call(self.recorder.select_recorded, originator_id, after_version, want)
            found += page
            if len(page) < want:
                break
            after_version = page[-1].originator_version
        return found

    def feed(self, after: Position, limit: int, topics: Sequence[str] = ()) -> list[Recorded]:
        """Events of the whole log behind ``after``, in order of position, at most ``READ_MAX``.

        A reader that resumes behind the last position it saw misses nothing: positions become visible in
        their order.
        """
        return self._call(self.recorder.select_feed, after, min(limit, READ_MAX), topics)

    def max_position(self) -> Position:
        """Position of the newest event, 0 for an empty log."""
        return Position(self._call(self.recorder.max_notification_id) or 0)

    def open_executions(
        self, owner: HostName, after: str = "", limit: int = 1000, *, waiting: bool = True
    ) -> list[str]:
        """Ids of the owner's executions without a terminal event, in order, behind ``after``.

        Without ``waiting`` only those that have something to do without a timer or a message.
        """
        return self._call(self.recorder.open_executions, owner, after, limit, waiting=waiting)

    def owner_of(self, execution_id: str) -> HostName | None:
        """The host that holds the execution; None for one that doesn't exist."""
        return self._call(self.recorder.owner_of, execution_id)

    def is_open(self, execution_id: str) -> bool:
        """Whether the execution exists and has no terminal event."""
        return self._call(self.recorder.is_open, execution_id)

    def owners(self) -> dict[HostName, int]:
        """How many executions without a terminal event each host holds, counted up to some thousands."""
        return self._call(self.recorder.owners)

    def due(self, owner: HostName, now: Micros, limit: int) -> list[str]:
        """The owner's executions whose wake-up time came, the most overdue first."""
        return self._call(self.recorder.due, owner, now, limit)

    def next_wake(self, owner: HostName) -> Micros | None:
        """The earliest wake-up time of the owner's executions."""
        return self._call(self.recorder.next_wake, owner)

    def queue_use(
        self, queue: QueueId, host: HostName, since: Micros, starts_max: int, *, holders: bool
    ) -> QueueUse:
        """Who holds ``queue`` on any host, its latest ``starts_max`` starts behind ``since``, who else waits.

        Without ``holders`` those are not looked for: a queue without a bound may have very many.
        """
        return self._call(self.recorder.queue_use, queue, host, since, starts_max, holders=holders)

    def upkeep(self) -> None:
        """Make the store fit for what comes next; a gateway calls it now and then."""
        self._call(self.recorder.upkeep)

    def close(self) -> None:
        self.factory.close()

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            try:
                return method(*args, **kwargs)
            except _PASSING:
                # tenacity costs as much as a small append: it is only for what failed once.
                return self._retrying(method, *args, **kwargs)
        except (IntegrityError, DataError):
            raise
        except EventSourcingError as error:
            # Also a closed pool, a full disk or a broken file: the caller can only come back later.
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the event log {self.name} is unavailable: {reason}") from error


def _name(env: Mapping[str, str]) -> str:
    if "POSTGRES_HOST" not in env:
        return env.get("SQLITE_DBNAME", "")
    return f"{env['POSTGRES_HOST']}:{env.get('POSTGRES_PORT', '')}/{env.get('POSTGRES_DBNAME', '')}"


_MAPPER_TOPIC = "runtime.event_log:EventMapper"
_memory_stores = itertools.count(1)


def store_env(
    url: str, pool_size: int = POOL_SIZE, *, connections_max: int = 0, partition_days: int = 30
) -> dict[str, str]:
    """The library's environment for a store URL.

    ``sqlite:///relative/or//absolute/path``, ``postgresql://user:password@host:port/dbname?schema=name``,
    or ``memory://`` (each call a new empty store, shared by whoever opens the same environment in this
    process). On PostgreSQL ``pool_size`` bounds the connections of each opener and ``connections_max`` those
    of all openers together (0: what the server offers); ``partition_days`` is the span of a new partition.

    Raises: ValueError for anything else.
    """
    parts = urlsplit(url)
    common = {"MAPPER_TOPIC": _MAPPER_TOPIC, "ORIGINATOR_ID_TYPE": "text"}
    if parts.scheme == "memory":
        name = f"file:heliograph-{next(_memory_stores)}?mode=memory&cache=shared"
        return {**common, "PERSISTENCE_MODULE": "projections.stores.memory", "SQLITE_DBNAME": name}
    if parts.scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
        # As in SQLAlchemy: three slashes and a relative path, or four and an absolute one.
        path = unquote(parts.path[1:])
        return {**common, "PERSISTENCE_MODULE": "projections.stores.sqlite", "SQLITE_DBNAME": path}
    if parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1:
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        return {
            **common,
            "PERSISTENCE_MODULE": "projections.stores.postgres",
            "POSTGRES_DBNAME": unquote(parts.path[1:]),
            # libpq takes a socket's folder in place of a host name.
            "POSTGRES_HOST": query.get("host") or unquote(parts.hostname or "localhost"),
            "POSTGRES_PORT": query.get("port") or str(parts.port or 5432),
            "POSTGRES_USER": unquote(parts.username or query.get("user") or "postgres"),
            "POSTGRES_PASSWORD": unquote(parts.password or query.get("password") or ""),
            "POSTGRES_SCHEMA": query.get("schema", ""),
            "POSTGRES_POOL_SIZE": "1",
            "POSTGRES_MAX_OVERFLOW": str(max(pool_size - 1, 0)),
            "POSTGRES_CONNECTIONS_MAX": str(connections_max),
            "POSTGRES_PARTITION_DAYS": str(partition_days),
            "POSTGRES_CONNECT_TIMEOUT": "5",
            "POSTGRES_LOCK_TIMEOUT": "10",
        }
    raise ValueError(
        f"not a store URL: {url!r} (sqlite:///path, postgresql://user:password@host/dbname or memory://)"
    )
