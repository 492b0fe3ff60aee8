"""The gateway's side of the mailboxes: commands out, events in, wherever an execution lives.

A new execution goes to the hosts in turn, one of a queue to the host of that queue; everything later goes
to the host that holds it, by its row. When that host is given up, or hands it to another, the message follows
it there: repeating one is harmless (see ``host_link``).

``follow`` never trusts the feed: events carry contiguous versions, so a reader notices a gap, and reads
the log instead. A lost, late or repeated batch costs a read, never an event.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from actors import messages
from actors.host_link import HostLink, Moved, Reader
from actors.messages import Delta, ExternalCommand, Reply
from runtime.blob_store import BlobStore
from runtime.commands import StartExecution
from runtime.errors import Conflict, NotFound, Unavailable
from runtime.event_log import EventLog, Recorded
from runtime.events import TERMINAL_EVENTS
from runtime.ids import HostName, Position

RECHECK_SECONDS = 15.0
"""A follower that hears nothing looks into the log this often: whatever got lost, it goes on."""

AWAY_SECONDS = 1.0
"""While its execution's host is away a follower reads the log this often."""

WATCH_SECONDS_MAX = 3.0
"""How long a host may take to put an execution on the feed before the follower reads the log instead."""

MOVE_SECONDS_MAX = 15.0
"""How long a message follows an execution that is on its way to another host; then ``Unavailable``.

A lost host's executions are with another one within 10 s.
"""

MOVE_PAUSE_SECONDS = 0.2
PAGE_EVENTS_MAX = 500

INPUT_BYTES_MAX = 32 * 1024
"""Claim check: a larger input goes to the blob store (DESIGN 3)."""

InThread = Callable[..., Awaitable[Any]]
"""Calls a function in a thread, as ``asyncio.to_thread`` does."""

OpenDedicated = Callable[[str, StartExecution | None], Awaitable[HostLink | None]]

START = Position(0)
"""Before the first event of the log."""

_TERMINAL_TOPICS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


class LaggedBehind(Unavailable):
    """The reader fell more than ``READER_ITEMS_MAX`` items behind; resume after the last one it had."""


class ExecutionClient:
    """Sends commands to executions and follows their events, wherever they live.

    Lives on the gateway's event loop. ``links`` may change while hosts come and go.
    """

    def __init__(
        self, event_log: EventLog, blobs: BlobStore, in_thread: InThread = asyncio.to_thread
    ) -> None:
        """``in_thread``: calls the log where it may block."""
        self._log = event_log
        self._in_thread = in_thread
        self._blobs = blobs
        self._open_dedicated: OpenDedicated | None = None
        self._links: dict[HostName, HostLink] = {}
        self._order: list[HostLink] = []
        self._turn = 0
        self._is_only = False

    def connect(
        self, links: Mapping[HostName, HostLink], open_dedicated: OpenDedicated, *, are_all: bool = True
    ) -> None:
        """Use these hosts from now on; ``open_dedicated`` makes a host for one execution, if there is room.

        ``are_all``: nobody else makes hosts, so that a single one has every execution.
        """
        self._open_dedicated = open_dedicated
        self._links = dict(links)
        self._is_only = are_all and len(links) == 1
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
            link = await self._open_dedicated(command.execution_id, command)
            if link is not None:
                await link.send(messages.Start(command))
                return
        await self._until_moved(lambda: self._send_start(command))

    async def _send_start(self, command: StartExecution) -> Reply:
        if not self._order:
            raise Moved("no host takes executions just now")
        link = self._link_of_queue(command) if command.queue_key else self._next_link()
        return await link.send(messages.Start(command))

    def _next_link(self) -> HostLink:
        """The host for the next execution: in turn, those where nothing waits for a place first."""
        self._turn = (self._turn + 1) % len(self._order)
        order = self._order[self._turn :] + self._order[: self._turn]
        accepting = [link for link in order if link.accepts]
        return next((link for link in accepting if not link.has_backlog), (accepting or order)[0])

    def _link_of_queue(self, command: StartExecution) -> HostLink:
        """The one host for a queue, as long as it is there; few queues move when hosts come and go."""
        queue = f"{command.tenant}:{command.flow_id}:{command.queue_key}"
        accepting = [link for link in self._order if link.accepts]
        return max(accepting or self._order, key=lambda link: _weight(queue, link.name))

    async def send(self, execution_id: str, command: ExternalCommand) -> Reply:
        """Send a command to an execution; returns when what it caused is durable.

        Raises: NotFound, InvalidTransition, Overloaded, Unavailable.
        """
        return await self._until_moved(lambda: self._send(execution_id, command))

    async def _send(self, execution_id: str, command: ExternalCommand) -> Reply:
        link = await self._link_of(execution_id)
        return await link.send(messages.Send(execution_id, command))

    @staticmethod
    async def _until_moved(attempt: Callable[[], Awaitable[Reply]]) -> Reply:
        """Try again while the host that was asked is not the one, or not any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MOVE_SECONDS_MAX
        pause = MOVE_PAUSE_SECONDS
        while True:
            try:
                return await attempt()
            except (Conflict, Moved) as error:
                if loop.time() + pause > deadline:
                    raise Unavailable(f"still on its way to another host: {error}") from error
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 1.5)

    async def _link_of(self, execution_id: str) -> HostLink:
        if self._is_only:
            return next(iter(self._links.values()))
        owner = await self._in_thread(self._log.owner_of, execution_id)
        if owner is None:
            raise NotFound("execution not found")
        link = self._links.get(owner)
        if link is not None:
            return link
        if self._order and not await self._in_thread(self._log.is_open, execution_id):
            return self._next_link()  # its host has ended since: about what is over any other knows as much
        raise Moved(f"host {owner} is away; its executions are being taken over")

    async def follow(
        self, execution_id: str, after: Position = START, *, deltas: bool = False
    ) -> AsyncIterator[Recorded | Delta]:
        """The execution's events behind ``after``: from the log, then live; ends after the terminal one.

        No gap, no duplicate. ``deltas``: pieces of text on its way too; what was produced before comes as one
        piece, and a piece may come twice: its ``offset`` says what is new.
        Raises: LaggedBehind, NotFound, Unavailable.
        """
        version = 0
        reader = Reader()
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

    async def _watched_by(self, execution_id: str, reader: Reader, deltas: bool) -> HostLink | None:
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
        return await self._in_thread(self._log.read, execution_id, version, PAGE_EVENTS_MAX)


async def _live(reader: Reader) -> AsyncIterator[Recorded | Delta]:
    """What the feed brings, until something was lost or nothing came for ``RECHECK_SECONDS``."""
    loop = asyncio.get_running_loop()
    # One timer for all that comes: one for each item would cost as much as the item.
    heard_at, is_silent = loop.time(), False

    def look() -> None:
        nonlocal timer, is_silent
        is_silent = loop.time() >= heard_at + RECHECK_SECONDS
        if is_silent:
            reader.news.set()
        else:
            timer = loop.call_at(heard_at + RECHECK_SECONDS, look)

    timer = loop.call_at(heard_at + RECHECK_SECONDS, look)
    try:
        while True:
            while reader.items:
                item = reader.items.popleft()
                if item is None:
                    return
                yield item
            if reader.is_cut:
                raise LaggedBehind
            if is_silent:
                return
            reader.news.clear()
            await reader.news.wait()
            heard_at = loop.time()
    finally:
        timer.cancel()


def _weight(queue: str, host: HostName) -> bytes:
    return hashlib.blake2b(f"{queue}:{host}".encode(), digest_size=8).digest()
