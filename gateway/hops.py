"""Blocking calls for the event loop: those that come while a thread is busy go in one hop to it together.

A hop to a thread and back lets go of the interpreter's lock several times, and each time the loop may wait
for it as long as 5 ms; a prompt makes seven.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from runtime.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")

WAITING_MAX = 10_000
"""Calls that may wait for a hop; one more is refused with ``Overloaded``."""

BATCH_CALLS_MAX = 64
"""Calls in one hop: the first of them waits for the last."""

AT_ONCE_MAX = 8
"""Callers that go on in one sweep of the loop: each computes for a while, and text waits for all of them."""

_Call = tuple["asyncio.Future[Any]", Context, Callable[[], Any]]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Hops:
    """Lives on one event loop. For short calls: a long one holds up those that go with it."""

    def __init__(self, threads: int = 1) -> None:
        """``threads``: one for a store in this process; more for one that answers over a network."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "hops")
        self._waiting: deque[_Call] = deque()
        self._under_way = 0

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns or raises; it runs in a thread, in this context.

        Raises: Overloaded.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded("too many calls wait for the store")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((future, copy_context(), partial(function, *args, **kwargs)))
        if self._under_way < self._threads:
            self._hop(loop)
        return cast("T", await future)

    def close(self) -> None:
        """Wait for the hops under way."""
        self._pool.shutdown(wait=True)

    def _hop(self, loop: asyncio.AbstractEventLoop) -> None:
        free = self._threads - self._under_way
        size = min(BATCH_CALLS_MAX, -(-len(self._waiting) // free))
        batch = [self._waiting.popleft() for _ in range(size)]
        self._under_way += 1
        self._pool.submit(self._carry, loop, batch)

    def _carry(self, loop: asyncio.AbstractEventLoop, batch: list[_Call]) -> None:
        """In the thread."""
        outcomes: list[_Outcome] = []
        for future, context, call in batch:
            try:
                outcomes.append((future, context.run(call), None))
            except BaseException as error:  # noqa: BLE001 - whoever called gets it
                outcomes.append((future, None, error))
        loop.call_soon_threadsafe(self._land, loop, outcomes)

    def _land(self, loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
        self._under_way -= 1
        if self._waiting:
            self._hop(loop)
        self._settle(loop, outcomes)

    def _settle(self, loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
        for future, result, error in outcomes[:AT_ONCE_MAX]:
            if future.done():
                continue  # whoever called was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if len(outcomes) > AT_ONCE_MAX:
            loop.call_soon(self._settle, loop, outcomes[AT_ONCE_MAX:])
