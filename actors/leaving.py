"""How a host leaves without losing or interrupting anything: it gives away what it has, as soon as it can.

    staying --drain--> leaving: nothing begins here any more; an execution of which nothing runs is given up
                          |
                          +--after a bound--> all are given up, running attempts included

What is given up is forgotten here and stays in the log under this host's name, until another host takes it
over (see ``messages.Adopt``). Those that wait or have not begun go at once; the others after the attempts
that run now. What the bound cuts off runs again there, under the same idempotency key: its outcome was not
recorded.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from actors.execution_actor import ExecutionActor

log = structlog.get_logger(__name__)


class Home(Protocol):
    """What leaving needs of its host."""

    owner: str

    def changed(self, actor: ExecutionActor) -> None: ...
    def give_up(self, actor: ExecutionActor) -> None: ...
    def end_intake(self) -> None:
        """No timer and no free place begins anything any more."""
        ...


class Leaving:
    """Lives on its host's loop."""

    def __init__(self, actors: Mapping[str, ExecutionActor], home: Home) -> None:
        self._actors = actors
        self._home = home
        self.is_on = False

    def begin(self, seconds: float) -> None:
        """Give up what can be now, the rest within ``seconds``. Repeating it changes nothing."""
        if self.is_on:
            return
        self.is_on = True
        log.info("leaving", host=self._home.owner, in_memory=len(self._actors), seconds=seconds)
        self._home.end_intake()
        for actor in tuple(self._actors.values()):
            self._home.changed(actor)
        asyncio.get_running_loop().call_later(seconds, self._give_up_all)

    def takes(self, actor: ExecutionActor) -> bool:
        """Whether this execution is to be given up now."""
        return self.is_on and not actor.is_busy

    def _give_up_all(self) -> None:
        if self._actors:
            log.warning("leaving without the end of what runs", host=self._home.owner, held=len(self._actors))
        for actor in tuple(self._actors.values()):
            self._home.give_up(actor)
