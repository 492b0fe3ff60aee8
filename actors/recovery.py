"""Takes open executions over: those of a host's own former incarnation, or those of a host that is lost.

    begun and queued ones:  brought back at once, a bounded number at a time
    waiting ones, our own:  left where they are; their rows bear our name, so timers and messages find us
    waiting ones, a lost host's: claimed, for theirs would find nobody

A crash may fall between the end of one node and the start of the next while a third one waits: the row then
says waiting although something is due. So every waiting execution is looked at once, one after the other,
after the others were brought back; reading one costs about a millisecond, and nothing is written for it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import structlog

from actors.patience import until_available
from actors.wake_ups import WakeUps
from runtime.errors import Conflict, DomainError, InvalidTransition, NotFound
from runtime.event_log import EventLog
from runtime.ids import HostName

log = structlog.get_logger(__name__)

RECOVERIES_AT_ONCE_MAX = 64
"""Executions being read back at the same time; the others wait for a permit."""


class Home(Protocol):
    """What recovery needs of its host."""

    def is_here(self, execution_id: str) -> bool: ...
    async def bring_here(self, execution_id: str) -> None: ...
    async def is_due(self, execution_id: str) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Recovery:
    """Lives on its host's loop."""

    def __init__(self, event_log: EventLog, name: HostName, wake_ups: WakeUps, home: Home) -> None:
        self._log = event_log
        self._name = name
        self._wake_ups = wake_ups
        self._home = home
        self._permits = asyncio.Semaphore(RECOVERIES_AT_ONCE_MAX)
        self._taking_over: set[HostName] = set()

    async def take_over(self, owner: HostName, held: frozenset[str] = frozenset()) -> None:
        """Bring back every open execution of ``owner`` that must be (see above); done when they are here.

        ``held``: those it keeps. What was doing something comes before what only waits.
        """
        if owner in self._taking_over:
            return  # asked again before it was done
        self._taking_over.add(owner)
        try:
            for waiting in (False, True) if owner != self._name else (False,):
                await self._take_over(owner, held, waiting=waiting)
        finally:
            self._taking_over.discard(owner)

    async def _take_over(self, owner: HostName, held: frozenset[str], *, waiting: bool) -> None:
        after = ""
        while page := await self._open_page(owner, after, waiting=waiting):
            taken = [execution_id for execution_id in page if execution_id not in held]
            await asyncio.gather(*[await self._begin(execution_id) for execution_id in taken])
            after = page[-1]

    async def look_at_waiting(self) -> None:
        """Bring back those of our own waiting executions for which something is due in truth."""
        after = ""
        while page := await self._open_page(self._name, after, waiting=True):
            for execution_id in page:
                if not self._home.is_here(execution_id) and await self._is_due(execution_id):
                    await self.bring_back(execution_id)
            after = page[-1]

    async def bring_back(self, execution_id: str) -> None:
        """Begin to read an execution back; waits only for a permit to do so."""
        await self._begin(execution_id)

    async def _begin(self, execution_id: str) -> asyncio.Task[None]:
        await self._permits.acquire()
        return self._home.spawn(self._recover_one(execution_id))

    async def _recover_one(self, execution_id: str) -> None:
        try:
            await until_available(lambda: self._home.bring_here(execution_id), "read an execution back")
        except (NotFound, InvalidTransition):
            log.info("not recovered: ended meanwhile", execution=execution_id)
        except Conflict:
            log.info("not recovered: this host is leaving", execution=execution_id)
        except DomainError as error:
            self._note_unreadable(execution_id, error)
        finally:
            self._permits.release()

    async def _is_due(self, execution_id: str) -> bool:
        try:
            return await until_available(lambda: self._home.is_due(execution_id), "look at an execution")
        except DomainError as error:
            self._note_unreadable(execution_id, error)
            return False

    def _note_unreadable(self, execution_id: str, error: DomainError) -> None:
        if not self._wake_ups.is_unreadable(execution_id):
            log.error("not recovered: can't be read", execution=execution_id, error=str(error))
        self._wake_ups.note_unreadable(execution_id)

    async def _open_page(self, owner: HostName, after: str, *, waiting: bool) -> list[str]:
        read = self._log.open_executions
        return await until_available(
            lambda: asyncio.to_thread(read, owner, after, waiting=waiting), "read the open executions"
        )
