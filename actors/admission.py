"""Which executions of a host may run: a bounded number of places, and a bounded queue for them.

    queued --a place is free--> admitted --ended or passivated--> released

The bound is on beginning. What was begun before (a timer came due, a signal arrived, a recovery) goes on at
once, and so does a child, whose parent holds a place already; both take a place, so new ones wait the longer.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class Admission:
    """Lives on its host's loop. ``admit`` is called with the id of each execution that got a place."""

    def __init__(self, running_max: int, queued_max: int, admit: Callable[[str], None]) -> None:
        self._running_max = running_max
        self._queued_max = queued_max
        self._admit = admit
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._admitted: set[str] = set()
        self._is_open = False

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def admitted(self) -> int:
        return len(self._admitted)

    @property
    def is_full(self) -> bool:
        """Neither a place nor room in the queue: a new execution must be refused."""
        has_place = self._is_open and len(self._admitted) < self._running_max
        return not has_place and len(self._queue) >= self._queued_max

    def open(self) -> None:
        """Let the queue move: what had begun before is back, and comes first."""
        self._is_open = True
        self._move()

    def enqueue(self, execution_id: str) -> None:
        self._queue[execution_id] = None
        self._move()

    def take_place(self, execution_id: str) -> None:
        """For what goes on without waiting, whatever the bound says."""
        self._admitted.add(execution_id)

    def release(self, execution_id: str) -> None:
        """It ended, or left memory, or was never admitted and needs no place any more."""
        self._queue.pop(execution_id, None)
        if execution_id in self._admitted:
            self._admitted.discard(execution_id)
            if self._queue:
                asyncio.get_running_loop().call_soon(self._move)

    def _move(self) -> None:
        while self._is_open and self._queue and len(self._admitted) < self._running_max:
            execution_id, _ = self._queue.popitem(last=False)
            self._admit(execution_id)
