"""Following the log from where one stopped: for the gateway's process managers.

Each has a reader's name under which its position is tracked. A page is handled, then it counts as followed;
after a crash what was handled but not tracked comes again, so handling twice must be harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog
from eventsourcing.persistence import IntegrityError

from runtime.errors import DomainError
from runtime.event_log import Recorded
from runtime.ids import Position

if TYPE_CHECKING:
    from projections.store import ReadStore
    from runtime.event_log import EventLog

PAGE_EVENTS_MAX = 500
TRACK_EVERY_POSITIONS = 10_000
"""How far a reader may go without anything to do before it records where it is."""

POLL_SECONDS = 0.25
PAUSE_SECONDS_MAX = 30.0
"""Longest pause of a loop that keeps failing."""

log = structlog.get_logger("gateway.following")


class Page(NamedTuple):
    """``reached``: all of these topics up to it is in this page or was before. ``more``: go on at once."""

    events: Sequence[Recorded]
    reached: Position
    more: bool


class Following:
    """One reader of some topics. Blocking: call it from threads, one at a time."""

    def __init__(self, event_log: EventLog, store: ReadStore, reader: str, topics: Sequence[str]) -> None:
        self._log = event_log
        self._store = store
        self._reader = reader
        self._topics = tuple(topics)
        self._cursor: Position | None = None
        self._tracked = Position(0)

    def page(self) -> Page | None:
        """What comes next; None when nothing was recorded since."""
        if self._cursor is None:
            self._cursor = self._tracked = self._store.tracked(self._reader)
        newest = self._log.max_position()
        if newest <= self._cursor:
            return None
        page = self._log.feed(self._cursor, PAGE_EVENTS_MAX, self._topics)
        if len(page) == PAGE_EVENTS_MAX:
            return Page(page, page[-1].position, more=True)
        # Positions become visible in their order: a page that is not full has everything up to `newest`.
        return Page(page, Position(max(newest, page[-1].position if page else 0)), more=False)

    def followed(self, page: Page, *, track: bool) -> None:
        """The page was handled. ``track``: something was done that a restart need not do again."""
        self._cursor = page.reached
        if track or page.reached - self._tracked >= TRACK_EVERY_POSITIONS:
            try:
                with self._store.transaction() as transaction:
                    transaction.track(self._reader, page.reached)
            except IntegrityError:
                log.debug("tracked_further", reader=self._reader, position=page.reached)  # another gateway
            self._tracked = page.reached


async def supervise(name: str, step: Callable[[], Awaitable[bool]]) -> None:
    """Repeat ``step`` until cancelled, at once while it says so.

    A failure is logged and tried again, later and later.
    """
    pause = POLL_SECONDS
    while True:
        try:
            is_busy = await step()
            pause = 0.0 if is_busy else POLL_SECONDS
        except DomainError as error:
            pause = min(max(pause, POLL_SECONDS) * 2, PAUSE_SECONDS_MAX)
            log.warning("interrupted", loop=name, reason=str(error), pause_seconds=pause)
        except Exception:
            pause = min(max(pause, POLL_SECONDS) * 2, PAUSE_SECONDS_MAX)
            log.exception("failed", loop=name, pause_seconds=pause)
        await asyncio.sleep(pause)
