"""Whether the store answers, asked once a second, so that requests are refused at once while it doesn't.

A PostgreSQL that is gone refuses connections; one whose machine hangs says nothing at all, and whoever asks
it waits. Each request would wait for it on a thread of its own, and soon there were none left. So one
question goes ahead of all requests, on a thread that is nobody else's: while it waits, they get 503 and come
back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from runtime.errors import DomainError, Overloaded

log = structlog.get_logger(__name__)

ASK_SECONDS = 1.0
AWAY_SECONDS = 4.0
"""A store that has not answered for this long is away; a busy one answers so small a question sooner."""

RETRY_AFTER_SECONDS = 2


class StorePulse:
    """Lives on the gateway's loop. ``ask`` blocks until the store has answered, or raises."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._thread = ThreadPoolExecutor(1, "store-pulse")
        self._unanswered_since: float | None = None

    async def run(self) -> None:
        """Ask for ever."""
        loop = asyncio.get_running_loop()
        while True:
            if self._unanswered_since is None:
                self._unanswered_since = loop.time()
            try:
                await loop.run_in_executor(self._thread, self._ask)
                self._unanswered_since = None
            except DomainError as error:
                log.warning("the store does not answer", error=str(error))
            await asyncio.sleep(ASK_SECONDS)

    @property
    def is_away(self) -> bool:
        since = self._unanswered_since
        return since is not None and asyncio.get_running_loop().time() - since > AWAY_SECONDS

    def check(self) -> None:
        """Raises: Overloaded while the store is away; nothing was done."""
        if self.is_away:
            raise Overloaded("the event log gives no answer; what was accepted goes on", RETRY_AFTER_SECONDS)

    def close(self) -> None:
        """Wait for no answer: it may never come."""
        self._thread.shutdown(wait=False, cancel_futures=True)
