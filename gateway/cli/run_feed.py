"""A run's events as they come, mixed with what the person at the keyboard wants: Ctrl-C halts, twice leaves.

    following --Ctrl-C--> asked --a moment--> halting --the run's end--> ended
                            |                    |
                            +-----Ctrl-C---------+----> left

A thread reads the stream; the main thread takes one thing after the other out of an inbox, into which the
signal handler puts too. So nothing is ever interrupted half way through being shown.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from enum import Enum
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any

Event = dict[str, Any]

LEAVE_SECONDS = 1.0
"""After a Ctrl-C: how long a second one leaves the run going on, untouched, before it is halted."""

AHEAD_MAX = 1_000
"""Events that may wait to be shown; the stream is read no further meanwhile."""


class Mark(Enum):
    INTERRUPT = "Ctrl-C"
    END = "the stream has ended"


class Outcome(Enum):
    ENDED = "the run's stream came to its end"
    LEFT = "the person left; the run goes on"
    LEFT_HALTING = "the person left while the run was being halted"


class RunFeed:
    """One run, from its first event to its end."""

    def __init__(self, events: Iterator[Event], halt: Callable[[], None], say: Callable[[str], None]) -> None:
        """``events``: the stream; its faults are raised again by ``follow``. ``halt``: asks the server to,
        and may take a while. ``say``: a line for the person."""
        self._events = events
        self._halt = halt
        self._say = say
        self._inbox: SimpleQueue[Event | Mark | Exception] = SimpleQueue()
        self._room = Semaphore(AHEAD_MAX)
        self.was_halted = False

    def follow(self, show: Callable[[Event], None]) -> Outcome:
        """Show every event until the run has ended or the person leaves. On the main thread."""
        Thread(target=self._read, name="run feed", daemon=True).start()
        halt_at: float | None = None
        with self._interrupts():
            while True:
                try:
                    item = self._inbox.get(timeout=_until(halt_at))
                except Empty:
                    halt_at = None
                    self.was_halted = True
                    self._halt()
                    continue
                if item is Mark.END:
                    return Outcome.ENDED
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, dict):
                    self._room.release()
                    show(item)
                elif self.was_halted:
                    return Outcome.LEFT_HALTING
                elif halt_at is not None:
                    return Outcome.LEFT
                else:
                    halt_at = time.monotonic() + LEAVE_SECONDS
                    self._say("halting the run; Ctrl-C again leaves it running")

    def _read(self) -> None:
        try:
            for event in self._events:
                self._room.acquire()
                self._inbox.put(event)
            self._inbox.put(Mark.END)
        except Exception as error:  # noqa: BLE001 - raised again where somebody waits for it
            self._inbox.put(error)

    def _interrupt(self, number: int, frame: object) -> None:
        del number, frame
        self._inbox.put(Mark.INTERRUPT)

    @contextmanager
    def _interrupts(self) -> Generator[None]:
        # SimpleQueue.put may be called in a signal handler; no other queue of the library may.
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _until(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - time.monotonic())
