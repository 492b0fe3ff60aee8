"""Turns of work on the host's loop: one run's stretch of work for each look at the sockets.

A run computes for some milliseconds between two waits. Many that are ready at once (a commit of the log wakes
all who wait for it) would go on in one sweep of the loop, and everybody's text would wait for its end.
"""

import asyncio
import heapq
import itertools


class Turns:
    """A queue of those that are about to compute; lives on one event loop.

    Who has asked a model least goes first, and of these the one that came first: it soon waits for the model
    for seconds, in which the others compute. So many runs that start at once don't stay in step.
    """

    def __init__(self) -> None:
        self._ranks = itertools.count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._is_taken = False

    def rank(self) -> int:
        """For a new run; it rises."""
        return next(self._ranks)

    async def take(self, asked: int, rank: int) -> None:
        """Return when it is the turn of the run of that rank. ``asked``: calls of a model it has begun.

        Nothing is held: the next one's comes after a look at the sockets, whatever this one does meanwhile.
        """
        loop = asyncio.get_running_loop()
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._next)
            return
        turn: asyncio.Future[None] = loop.create_future()
        # A run may wait in several places at a time; futures can't be compared.
        heapq.heappush(self._waiting, (asked, rank, id(turn), turn))
        await turn

    def _next(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[-1]
            if not turn.done():
                turn.set_result(None)
                # The stretch runs in the sweep after this one; the next may begin in the sweep behind that.
                asyncio.get_running_loop().call_soon(self._pause)
                return
        self._is_taken = False

    def _pause(self) -> None:
        asyncio.get_running_loop().call_soon(self._next)
