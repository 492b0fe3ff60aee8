"""The gateway's side of the mailboxes: commands out, events in.

    command --> outbox of its host --(one Ray call carries all that waits)--> answer, once durable
    feed    <-- one long poll per host <-- committed events of executions that somebody follows here

A host that dies loses the calls in flight, and nobody knows whether they took effect. Every message can
be repeated harmlessly (a start by its id, a signal by its signal id, a cancellation by its cause), so the
outbox sends them again until the host is back, for at most ``ANSWER_SECONDS_MAX``.

``follow`` never trusts the feed: events carry contiguous versions, so a reader notices a gap, and reads
the log instead. A lost, late or repeated batch costs a read, never an event.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from ray.exceptions import RayError

from actors import messages
from actors.messages import Answer, Delta, ExternalCommand, FeedBatch, Message, Refusal, Reply
from runtime.blob_store import BlobStore
from runtime.commands import StartExecution
from runtime.errors import Conflict, InvalidInput, NotFound, Overloaded, Unavailable
from runtime.event_log import EventLog, Recorded
from runtime.events import TERMINAL_EVENTS
from runtime.ids import HostName, Position

log = structlog.get_logger(__name__)

CALLS_AT_ONCE_MAX = 2
"""Ray calls in flight to one host: while one is being committed the next is being decoded."""

BATCH_MESSAGES_MAX = 1_000
OUTBOX_MESSAGES_MAX = 50_000
"""Messages waiting for one host; one more is refused with ``Overloaded``."""

ANSWER_SECONDS_MAX = 30.0
"""How long a message waits for its host to come back; then ``Unavailable``, outcome unknown."""

POLL_SECONDS = 5.0
"""Longest silence of a feed; a host that does not answer this plus ``POLL_GRACE_SECONDS`` is unreachable."""

POLL_GRACE_SECONDS = 5.0
RETRY_SECONDS_MAX = 2.0

READER_ITEMS_MAX = 1_000
"""A reader further behind than this is cut off and may resume from the log (gateway rule G8)."""

RECHECK_SECONDS = 15.0
"""A follower that hears nothing looks into the log this often: whatever got lost, it goes on."""

AWAY_SECONDS = 1.0
"""While its execution's host is away a follower reads the log this often."""

WATCH_SECONDS_MAX = 3.0
"""How long a host may take to put an execution on the feed before the follower reads the log instead."""

MOVES_MAX = 5
"""Times a message finds its execution with another host before it is refused (``Unavailable``)."""

MOVE_PAUSE_SECONDS = 0.2
PAGE_EVENTS_MAX = 500

INPUT_BYTES_MAX = 32 * 1024
"""Claim check: a larger input goes to the blob store (DESIGN 3)."""

OpenDedicated = Callable[[str], Awaitable["HostLink"]]

START = Position(0)
"""Before the first event of the log."""

_TERMINAL_TOPICS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


class LaggedBehind(Unavailable):
    """The reader fell more than ``READER_ITEMS_MAX`` items behind; resume after the last one it had."""


class _Reader:
    """One follower's bounded buffer. ``None`` in it means: something was lost, read the log."""

    def __init__(self) -> None:
        self.items: deque[Recorded | Delta | None] = deque()
        self.news = asyncio.Event()
        self.is_cut = False

    def put(self, item: Recorded | Delta | None) -> None:
        if len(self.items) >= READER_ITEMS_MAX:
            self.is_cut = True
        else:
            self.items.append(item)
        self.news.set()


class HostLink:
    """One host as a gateway sees it: the outbox to it and the feed from it."""

    def __init__(self, name: HostName, handle: Any, gateway_id: str) -> None:
        self.name = name
        self._handle = handle
        self._gateway_id = gateway_id
        self._outbox: deque[tuple[msgspec.Raw, asyncio.Future[Answer], float]] = deque()
        self._calls = 0
        self._in_flight: list[list[tuple[msgspec.Raw, asyncio.Future[Answer], float]]] = []
        self._readers: dict[str, list[_Reader]] = {}
        self._watches: dict[str, asyncio.Future[None]] = {}
        self._incarnation = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_due = False
        self._reachable = asyncio.Event()
        self.is_closed = False

    def open(self) -> None:
        self._spawn(self._poll_for_ever())

    def close(self) -> None:
        self.is_closed = True
        for task in tuple(self._tasks):
            task.cancel()
        for batch in (*self._in_flight, self._outbox):
            _refuse(batch, "the gateway is shutting down")
        self._outbox.clear()

    def reconnect(self, handle: Any) -> None:
        """The host was made anew, after its actor had ended for good."""
        self._handle = handle

    @property
    def is_reachable(self) -> bool:
        """Whether the host answered the last call."""
        return self._reachable.is_set()

    @property
    def has_answered(self) -> bool:
        """Whether the host was ever reachable."""
        return self._incarnation != ""

    async def wait_reachable(self) -> None:
        await self._reachable.wait()

    # --- outbox ---------------------------------------------------------------------------------------

    async def send(self, message: Message) -> Reply:
        """Deliver ``message``. Raises: what the host refused with; Overloaded; Unavailable."""
        if self.is_closed:
            raise Unavailable("the gateway is shutting down")
        if len(self._outbox) >= OUTBOX_MESSAGES_MAX:
            raise Overloaded(f"{OUTBOX_MESSAGES_MAX} messages are waiting for host {self.name}")
        try:
            # Encoded here and not with its batch, so that one that can't be harms nobody else's.
            encoded = msgspec.Raw(messages.encode(message))
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidInput((("", f"can't be stored: {error}"),)) from error
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._outbox.append((encoded, answer, loop.time() + ANSWER_SECONDS_MAX))
        self._flush_soon()
        result = await answer
        if isinstance(result, Refusal):
            raise messages.error_of(result)
        return result

    def _flush_soon(self) -> None:
        if not self._flush_due and self._calls < CALLS_AT_ONCE_MAX:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._outbox and self._calls < CALLS_AT_ONCE_MAX and not self.is_closed:
            size = min(len(self._outbox), BATCH_MESSAGES_MAX)
            batch = [self._outbox.popleft() for _ in range(size)]
            self._calls += 1
            self._in_flight.append(batch)
            self._spawn(self._call(batch))

    async def _call(self, batch: list[tuple[msgspec.Raw, "asyncio.Future[Answer]", float]]) -> None:
        try:
            call = self._handle.deliver.remote(messages.encode([message for message, _, _ in batch]))
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answers = messages.decode_answers(await call)
        except TimeoutError:
            # The host lives but can't record: its store is away. It goes on trying; the caller may too.
            _refuse(batch, f"host {self.name} could not record it in time")
        except RayError as error:
            self._reachable.clear()
            log.warning("host unreachable, sending again", host=self.name, error=_reason(error))
            await asyncio.sleep(0.2)
            self._send_again(batch)
        except ValueError as error:
            log.error("an answer can't be read", host=self.name, error=str(error)[:200])
            _refuse(batch, f"host {self.name} gave an answer that can't be read")
        else:
            for (_, future, _), answer in zip(batch, answers, strict=False):
                if not future.done():
                    future.set_result(answer)
        finally:
            self._in_flight.remove(batch)
            self._calls -= 1
            if self._outbox:
                self._flush_soon()

    def _send_again(self, batch: list[tuple[msgspec.Raw, "asyncio.Future[Answer]", float]]) -> None:
        now = asyncio.get_running_loop().time()
        for message, future, deadline in reversed(batch):
            if future.done():
                continue
            if deadline > now:
                self._outbox.appendleft((message, future, deadline))
            else:
                future.set_exception(Unavailable(f"host {self.name} did not answer"))

    # --- feed -----------------------------------------------------------------------------------------

    async def watch(self, execution_id: str, reader: _Reader, *, deltas: bool = False) -> None:
        """Put an execution on the feed; returns when what is committed from now on will come.

        ``deltas``: the host also says again what text is on its way; the other readers drop what they have.
        """
        self._readers.setdefault(execution_id, []).append(reader)
        watch = self._watches.get(execution_id)
        if watch is None or (deltas and watch.done()):
            work = self._watch(execution_id)
            watch = self._watches[execution_id] = asyncio.get_running_loop().create_task(work)
            watch.add_done_callback(lambda done: self._watched(execution_id, done))
        await asyncio.shield(watch)

    async def _watch(self, execution_id: str) -> None:
        await self.send(messages.Watch(self._gateway_id, (execution_id,)))

    def _watched(self, execution_id: str, watch: "asyncio.Future[None]") -> None:
        if watch.cancelled() or watch.exception() is not None:  # the next reader asks again
            self._watches.pop(execution_id, None)

    def unwatch(self, execution_id: str, reader: _Reader) -> None:
        readers = self._readers.get(execution_id, [])
        if reader in readers:
            readers.remove(reader)
        if not readers and self._readers.pop(execution_id, None) is not None and not self.is_closed:
            self._watches.pop(execution_id, None)
            self._spawn(self._unwatch(execution_id))

    async def _unwatch(self, execution_id: str) -> None:
        try:
            if execution_id not in self._readers:
                await self.send(messages.Unwatch(self._gateway_id, (execution_id,)))
        except Unavailable:
            log.info("unwatch not delivered; a new incarnation knows no watches", execution=execution_id)

    async def _poll_for_ever(self) -> None:
        pause = 0.1
        while not self.is_closed:
            try:
                # After an interruption the first answer must not wait for news.
                wait_seconds = POLL_SECONDS if self.is_reachable else 0.0
                call = self._handle.poll.remote(self._gateway_id, wait_seconds)
                async with asyncio.timeout(POLL_SECONDS + POLL_GRACE_SECONDS):
                    batch = messages.decode_feed(await call)
            except (RayError, TimeoutError) as error:
                self._reachable.clear()
                log.warning("feed interrupted", host=self.name, error=_reason(error))
                self._lose()  # their executions may be going on elsewhere
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                continue
            pause = 0.1
            if not self.is_reachable:
                self._lose()  # what they follow may have moved meanwhile
            self._reachable.set()
            self._dispatch(batch)

    def _dispatch(self, batch: FeedBatch) -> None:
        if batch.incarnation != self._incarnation:
            self._incarnation = batch.incarnation
            if self._readers:
                self._spawn(self._watch_again())
        if batch.lagged:
            self._lose()
        for item in batch.items:
            execution_id = item.originator_id if isinstance(item, Recorded) else item.execution_id
            for reader in self._readers.get(execution_id, ()):
                reader.put(item)

    async def _watch_again(self) -> None:
        try:
            await self.send(messages.Watch(self._gateway_id, tuple(self._readers)))
        except Unavailable as error:
            log.warning("watches not renewed, trying again", host=self.name, error=str(error))
            self._incarnation = "unknown"  # the next batch then comes from a new one
        self._lose()

    def _lose(self) -> None:
        for reader in itertools.chain.from_iterable(self._readers.values()):
            reader.put(None)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class ExecutionClient:
    """Sends commands to executions and follows their events, wherever they live.

    Lives on the gateway's event loop. ``links`` may change while hosts come and go.
    """

    def __init__(self, event_log: EventLog, blobs: BlobStore) -> None:
        self._log = event_log
        self._blobs = blobs
        self._open_dedicated: OpenDedicated | None = None
        self._links: dict[HostName, HostLink] = {}
        self._order: list[HostLink] = []
        self._turn = 0

    def connect(self, links: Mapping[HostName, HostLink], open_dedicated: "OpenDedicated") -> None:
        """Use these hosts from now on; ``open_dedicated`` makes a host for one execution."""
        self._open_dedicated = open_dedicated
        self._links = dict(links)
        self._order = [link for name, link in sorted(links.items()) if not name.startswith("execution-")]

    @property
    def links(self) -> Sequence[HostLink]:
        return tuple(self._links.values())

    async def start(self, command: StartExecution) -> None:
        """Start an execution; returns when it is accepted and durable. Repeating the same id is harmless.

        Raises: Overloaded (nothing was created), NotFound (the flow's version), Unavailable.
        """
        if not self._order or self._open_dedicated is None:
            raise Unavailable("no host is up yet")
        data = msgspec.json.encode(command.input)
        if len(data) > INPUT_BYTES_MAX:
            ref = await asyncio.to_thread(self._blobs.put_bytes, data)
            command = msgspec.structs.replace(command, input=None, input_ref=ref)
        if command.placement == "dedicated":
            link = await self._open_dedicated(command.execution_id)
            await link.send(messages.Start(command))
            return
        self._turn = (self._turn + 1) % len(self._order)
        link = self._order[self._turn]
        if not link.is_reachable:
            link = next((other for other in self._order if other.is_reachable), link)
        await link.send(messages.Start(command))

    async def send(self, execution_id: str, command: ExternalCommand) -> Reply:
        """Send a command to an execution; returns when what it caused is durable.

        Raises: NotFound, InvalidTransition, Overloaded, Unavailable.
        """
        for _ in range(MOVES_MAX):
            link = await self._link_of(execution_id)
            try:
                return await link.send(messages.Send(execution_id, command))
            except Conflict:
                await asyncio.sleep(MOVE_PAUSE_SECONDS)  # another host took it over meanwhile: ask that one
        raise Unavailable(f"execution {execution_id} is moving between hosts")

    async def _link_of(self, execution_id: str) -> HostLink:
        if len(self._links) == 1:
            return next(iter(self._links.values()))
        owner = await asyncio.to_thread(self._log.owner_of, execution_id)
        if owner is None:
            raise NotFound("execution not found")
        link = self._links.get(owner)
        if link is None:
            raise Unavailable(f"host {owner} is away; its executions are being taken over")
        return link

    async def follow(
        self, execution_id: str, after: Position = START, *, deltas: bool = False
    ) -> AsyncIterator[Recorded | Delta]:
        """The execution's events behind ``after``: from the log, then live; ends after the terminal one.

        No gap, no duplicate. ``deltas``: pieces of text on its way too; what was produced before comes as one
        piece, and a piece may come twice: its ``offset`` says what is new.
        Raises: LaggedBehind, NotFound, Unavailable.
        """
        version = 0
        reader = _Reader()
        link: HostLink | None = None
        try:
            while True:
                # From the log: first everything, later whatever the feed did not bring.
                page = await self._page(execution_id, version)
                for recorded in page:
                    version = recorded.originator_version
                    if recorded.position > after:
                        yield recorded
                    if recorded.topic in _TERMINAL_TOPICS:
                        return
                if len(page) == PAGE_EVENTS_MAX:
                    continue
                if link is None or link.is_closed:
                    if not page and version == 0:
                        raise NotFound("execution not found")
                    link = await self._watched_by(execution_id, reader, deltas)
                    if link is None:
                        await asyncio.sleep(AWAY_SECONDS)
                    continue  # what was committed before the watch began is in the log
                async for item in _live(reader):
                    if isinstance(item, Delta):
                        if deltas:
                            yield item
                    elif item.originator_version == version + 1:
                        version += 1
                        if item.position > after:
                            yield item
                        if item.topic in _TERMINAL_TOPICS:
                            return
                    elif item.originator_version > version:
                        break
                # A gap, a loss, or a long silence: the execution may also have moved to another host.
                if await self._owner_link(execution_id) is not link:
                    link.unwatch(execution_id, reader)
                    link = None
        finally:
            if link is not None:
                link.unwatch(execution_id, reader)

    async def _watched_by(self, execution_id: str, reader: _Reader, deltas: bool) -> HostLink | None:
        """The host that now feeds ``reader``; None while the execution's host is away."""
        link = await self._owner_link(execution_id)
        if link is None:
            return None
        try:
            async with asyncio.timeout(WATCH_SECONDS_MAX):
                await link.watch(execution_id, reader, deltas=deltas)
        except (Unavailable, TimeoutError):
            link.unwatch(execution_id, reader)
            return None
        return link

    async def _owner_link(self, execution_id: str) -> HostLink | None:
        try:
            return await self._link_of(execution_id)
        except Unavailable:
            return None

    async def _page(self, execution_id: str, version: int) -> list[Recorded]:
        return await asyncio.to_thread(self._log.read, execution_id, version, PAGE_EVENTS_MAX)


def _reason(error: BaseException) -> str:
    """The line that says why: Ray puts it last, behind where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _refuse(batch: Iterable[tuple[msgspec.Raw, "asyncio.Future[Answer]", float]], reason: str) -> None:
    for _, answer, _ in batch:
        if not answer.done():
            answer.set_exception(Unavailable(reason))


async def _live(reader: _Reader) -> AsyncIterator[Recorded | Delta]:
    """What the feed brings, until something was lost or nothing came for ``RECHECK_SECONDS``."""
    while True:
        while reader.items:
            item = reader.items.popleft()
            if item is None:
                return
            yield item
        if reader.is_cut:
            raise LaggedBehind
        reader.news.clear()
        try:
            await asyncio.wait_for(reader.news.wait(), RECHECK_SECONDS)
        except TimeoutError:
            return
