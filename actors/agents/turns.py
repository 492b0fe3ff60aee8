"""Turns of work on the host's loop: one run's stretch of work for each look at the sockets.

A run computes for some milliseconds between two waits. Two hundred that are ready at once would go on in one
sweep of the loop, and everybody's text would wait for its end.
"""

import asyncio
from collections import deque


class Turns:
    """A queue of those that are about to compute; lives on one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def take(self) -> None:
        """Return when it is the caller's turn.

        Nothing is held: the next one's comes after a look at the sockets, whatever this one does meanwhile.
        """
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._next)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                # The stretch runs in the sweep after this one; the next may begin in the sweep behind that.
                asyncio.get_running_loop().call_soon(self._pause)
                return
        self._is_taken = False

    def _pause(self) -> None:
        asyncio.get_running_loop().call_soon(self._next)
