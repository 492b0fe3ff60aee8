"""The feed of one host as its gateway reads it: batch by batch, and told when one is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, cast

from ray.exceptions import RayActorError

from actors import messages
from actors.feed import FeedAddress
from actors.host_link import HostLink, Reader
from actors.messages import Delta, FeedBatch, Reply
from runtime.ids import HostName


class _Method(NamedTuple):
    call: Callable[..., Awaitable[bytes]]

    def remote(self, *arguments: Any) -> Awaitable[bytes]:
        return asyncio.ensure_future(self.call(*arguments))


class Handle:
    """A host whose feed the test writes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.is_there = True
        self.deliver = _Method(self._deliver)
        self.feed = _Method(self._feed)
        self.status = _Method(self._status)

    async def _deliver(self, batch: bytes) -> bytes:
        return messages.encode([Reply() for _ in messages.decode_messages(batch)])

    async def _feed(self, _gateway_id: str) -> bytes:
        if not self.is_there:
            raise RayActorError
        return messages.encode(FeedAddress("127.0.0.1", self._port, "token"))

    async def _status(self) -> bytes:
        raise RayActorError


class Feed:
    """A link, a reader of one execution, and the connection that the link has at the time."""

    def __init__(self, port: int, writers: asyncio.Queue[asyncio.StreamWriter]) -> None:
        self.handle = Handle(port)
        self.link = HostLink(HostName("host-0"), self.handle, "gateway-1")
        self.reader = Reader()
        self._writers = writers
        self._writer: asyncio.StreamWriter | None = None

    async def connected(self) -> None:
        if self._writer is not None:
            await self.cut()
        async with asyncio.timeout(10):
            self._writer = await self._writers.get()

    async def cut(self) -> None:
        assert self._writer is not None
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def send(self, batch: FeedBatch) -> None:
        assert self._writer is not None
        data = messages.encode(batch)
        self._writer.write(len(data).to_bytes(4, "big") + data)

    async def tell(self, number: int, incarnation: str = "one") -> list[int | None]:
        """Send the feed's batch ``number``: what the reader has when it arrived. None: something was lost."""
        self.send(FeedBatch(incarnation, (Delta("e", "n", "s", number, ""),), number=number))
        found: list[int | None] = []
        async with asyncio.timeout(10):
            while number not in found:
                await self.reader.news.wait()
                self.reader.news.clear()
                found += [item.offset if isinstance(item, Delta) else None for item in self.reader.items]
                self.reader.items.clear()
        return found


@asynccontextmanager
async def connected_feed() -> AsyncGenerator[Feed]:
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.put_nowait(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    feed = Feed(server.sockets[0].getsockname()[1], writers)
    try:
        feed.link.open()
        await feed.connected()
        feed.send(FeedBatch("one"))
        async with asyncio.timeout(10):
            await feed.link.wait_reachable()
        await feed.link.watch("e", feed.reader)
        feed.reader.items.clear()
        feed.reader.news.clear()
        yield feed
    finally:
        feed.link.close()
        await feed.cut()
        server.close()
        await asyncio.sleep(0)


def test_batches_are_read_in_their_order_from_any_number_on() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            assert await feed.tell(7) == [7]  # of a host that this gateway knew before
            feed.send(FeedBatch("one"))  # nothing happened
            assert await feed.tell(8) == [8]

    asyncio.run(scenario())


def test_a_gap_in_the_feed_sends_readers_to_the_log() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            await feed.tell(1)
            assert await feed.tell(3) == [None, 3]

    asyncio.run(scenario())


def test_a_broken_connection_is_opened_again_and_readers_look_into_the_log() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            await feed.tell(1)
            await feed.cut()
            await feed.connected()
            found = await feed.tell(2)
            assert found[0] is None
            assert [item for item in found if item is not None] == [2]
            assert feed.link.is_reachable

    asyncio.run(scenario())


def test_what_can_t_be_read_counts_as_a_broken_connection() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            feed.send(cast("FeedBatch", {"of": "another release"}))
            await feed.connected()
            assert 1 in await feed.tell(1)

    asyncio.run(scenario())


def test_a_host_that_is_gone_is_unreachable_until_it_is_back() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            feed.handle.is_there = False
            await feed.cut()
            async with asyncio.timeout(10):
                while feed.link.is_reachable:
                    await feed.reader.news.wait()
                    feed.reader.news.clear()
            assert feed.link.trouble == "broken"
            feed.handle.is_there = True
            await feed.connected()
            await feed.tell(1, "two")
            assert feed.link.is_reachable

    asyncio.run(scenario())


def test_a_new_process_of_the_host_counts_anew() -> None:
    async def scenario() -> None:
        async with connected_feed() as feed:
            await feed.tell(5)
            assert (await feed.tell(1, "two"))[-1] == 1
            await feed.link.watch("e", feed.reader)
            assert 2 in await feed.tell(2, "two")

    asyncio.run(scenario())
