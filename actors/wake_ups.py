"""Durable timers of executions that left memory: the store knows when each is due, this asks in time.

    asleep --by(at)--> armed --at--> looking (due ones are brought back) --> armed for the next, or asleep

Nothing of this survives a crash, and nothing needs to: a new incarnation looks once it has recovered.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Protocol

from actors.patience import until_available
from runtime.event_log import EventLog
from runtime.ids import SECOND, HostName, Micros

LOOK_SECONDS_MAX = 60.0
"""While any timer is set the store is asked at least this often."""

LOOK_SECONDS_MIN = 0.1
OVERDUE_SECONDS = 1.0
"""Pause between two looks while something overdue can't be brought back."""

DUE_MAX = 1_000
"""Due executions of one look; the rest comes with the next."""

UNREADABLE_MAX = 1_000
"""Executions whose history this release can't read, remembered so that no timer tries them for ever."""


class Home(Protocol):
    """What the wake-ups need of their host."""

    def now(self) -> Micros: ...
    def is_here(self, execution_id: str) -> bool: ...
    async def bring_back(self, execution_id: str) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> object: ...


class WakeUps:
    """Lives on its host's loop."""

    def __init__(self, event_log: EventLog, owner: HostName, home: Home) -> None:
        self._log = event_log
        self._owner = owner
        self._home = home
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._unreadable: OrderedDict[str, None] = OrderedDict()

    def by(self, at: Micros) -> None:
        """Make sure that the store is asked for due timers at ``at``, or before."""
        loop = asyncio.get_running_loop()
        due = loop.time() + min(LOOK_SECONDS_MAX, max(0.0, (at - self._home.now()) / SECOND))
        if self._timer is not None:
            if self._at <= due:
                return
            self._timer.cancel()
        self._at = due
        self._timer = loop.call_at(due, self._ring)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_unreadable(self, execution_id: str) -> bool:
        return execution_id in self._unreadable

    def note_unreadable(self, execution_id: str) -> None:
        """Leave this execution alone until a message asks for it or the host starts anew."""
        self._unreadable[execution_id] = None
        if len(self._unreadable) > UNREADABLE_MAX:
            self._unreadable.popitem(last=False)

    def _ring(self) -> None:
        self._timer = None
        self._home.spawn(self.look())

    async def look(self) -> None:
        """Bring back what is due, and set the timer for what comes next."""
        limit = DUE_MAX + len(self._unreadable)
        due = await until_available(
            lambda: asyncio.to_thread(self._log.due, self._owner, self._home.now(), limit), "read due timers"
        )
        for execution_id in due:
            if not self._home.is_here(execution_id) and execution_id not in self._unreadable:
                await self._home.bring_back(execution_id)
        next_at = await until_available(
            lambda: asyncio.to_thread(self._log.next_wake, self._owner), "read the next timer"
        )
        if next_at is not None:
            # What is overdue now is in memory with its own timer, on its way there, or unreadable.
            now = self._home.now()
            pause = OVERDUE_SECONDS if next_at <= now and len(due) < limit else LOOK_SECONDS_MIN
            self.by(Micros(max(next_at, now + int(pause * SECOND))))
