"""The feed of one host: two polls at a time, and what they bring in the order in which it happened."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ray.exceptions import RayActorError

from actors import messages
from actors.host_link import POLLS_AT_ONCE, HostLink, Reader
from actors.messages import Delta, FeedBatch, Reply
from runtime.ids import HostName


class _Method(NamedTuple):
    call: Callable[..., Awaitable[bytes]]

    def remote(self, *arguments: Any) -> Awaitable[bytes]:
        return asyncio.ensure_future(self.call(*arguments))


class Handle:
    """A host whose polls wait until the test answers them."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[asyncio.Future[bytes]] = asyncio.Queue()
        self.deliver = _Method(self._deliver)
        self.poll = _Method(self._poll)
        self.status = _Method(self._status)

    async def _deliver(self, batch: bytes) -> bytes:
        return messages.encode([Reply() for _ in messages.decode_messages(batch)])

    async def _poll(self, _gateway_id: str, _wait_seconds: float) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait(answer)
        return await answer

    async def _status(self) -> bytes:
        raise RayActorError


class Feed:
    """A link, a reader of one execution, and the polls under way."""

    def __init__(self) -> None:
        self.handle = Handle()
        self.link = HostLink(HostName("host-0"), self.handle, "gateway-1")
        self.reader = Reader()
        self.polls: list[asyncio.Future[bytes]] = []

    async def __aenter__(self) -> "Feed":
        self.link.open()
        await self.more()
        self.polls.pop(0).set_result(messages.encode(FeedBatch("one")))
        await self.more()
        await self.link.watch("e", self.reader)
        self.reader.items.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.link.close()
        await asyncio.sleep(0)

    async def more(self) -> None:
        """Until as many polls wait as there may be."""
        async with asyncio.timeout(10):
            while len(self.polls) < POLLS_AT_ONCE:
                self.polls.append(await self.handle.waiting.get())

    async def answer(self, place: int, number: int, incarnation: str = "one") -> None:
        """Answer one of the polls with the feed's batch ``number``."""
        items = (Delta("e", "n", "s", number, ""),)
        self.polls.pop(place).set_result(messages.encode(FeedBatch(incarnation, items, number=number)))
        await self.more()

    def read(self) -> list[int | None]:
        """The batches that arrived since; None: something was lost."""
        found = [item.offset if isinstance(item, Delta) else None for item in self.reader.items]
        self.reader.items.clear()
        return found


def test_batches_are_read_in_their_order_whichever_answer_comes_first() -> None:
    async def scenario() -> None:
        async with Feed() as feed:
            await feed.answer(0, 7)  # of a host that this gateway knew before
            assert feed.read() == [7]
            await feed.answer(1, 9)
            assert feed.read() == []
            await feed.answer(0, 8)
            assert feed.read() == [8, 9]
            await feed.answer(0, 10)
            assert feed.read() == [10]

    asyncio.run(scenario())


def test_a_poll_without_an_answer_loses_nothing_that_others_brought() -> None:
    async def scenario() -> None:
        async with Feed() as feed:
            await feed.answer(0, 1)
            await feed.answer(1, 3)
            feed.polls.pop(0).set_exception(RayActorError())  # it would have brought the second
            await feed.more()
            assert feed.read() == [1, None, 3]
            await feed.answer(0, 4)
            *lost, last = feed.read()
            assert last == 4
            assert set(lost) <= {None}  # reachable again: what is followed may have moved

    asyncio.run(scenario())


def test_a_new_process_of_the_host_counts_anew() -> None:
    async def scenario() -> None:
        async with Feed() as feed:
            await feed.answer(0, 5)
            await feed.answer(0, 1, "two")
            assert feed.read()[-1] == 1
            await feed.answer(0, 2, "two")
            assert 2 in feed.read()

    asyncio.run(scenario())
