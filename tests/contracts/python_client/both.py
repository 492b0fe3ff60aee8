"""One suite for both clients: the asynchronous one, spoken to as if it were the blocking one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from gateway.client import AsyncBatch, AsyncClient, AsyncDataset, AsyncExecution


class Awaiting:
    """Stands before an object of the asynchronous client; what it awaits runs on one event loop."""

    def __init__(self, subject: Any, runner: asyncio.Runner) -> None:
        self._subject = subject
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._subject, name)
        if not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            return self._waited(found(*args, **kwargs))

        return called

    def __iter__(self) -> Iterator[Any]:
        return self._iterated(self._subject.__aiter__())

    def __len__(self) -> int:
        return len(self._subject)

    def __repr__(self) -> str:
        return repr(self._subject)

    def _waited(self, found: Any) -> Any:
        if asyncio.iscoroutine(found):
            found = self._runner.run(found)
        elif hasattr(found, "__anext__"):
            return self._iterated(found)
        return self._wrapped(found)

    def _wrapped(self, found: Any) -> Any:
        shown = isinstance(found, AsyncBatch | AsyncClient | AsyncExecution | AsyncDataset)
        return Awaiting(found, self._runner) if shown else found

    def _iterated(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = self._runner.run(_next(items))
                except StopAsyncIteration:
                    return
                yield self._wrapped(item)
        finally:
            if hasattr(items, "aclose"):
                self._runner.run(cast("Any", items).aclose())


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items)
