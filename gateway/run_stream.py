"""An agent run as a stream that can be resumed anywhere: no gap, and no character twice.

An id is made of three numbers, ``position << 20 | characters << 3 | slot``: the last event delivered, how
many characters of the answer in flight were delivered with it, and which frame of the event it is. Ids rise
with the log, and resuming needs nothing but the id:

    event at p           p, characters told so far of an answer that goes on meanwhile, slot 0-6
    piece of an answer   p of the last event, characters told with it, slot 7
    its message          first what is missing of its text (slot 1), then the message (slot 2)

The answer in flight is the earliest begun that is not recorded yet, which the log alone decides: several may
be made at a time (agents side by side in a plan), and one number can't say where each of them is. The text
of another is kept until its turn, or comes whole before its message. A retried step begins anew: after its
``retrying`` or ``rate_limited``, the pieces told before it no longer count.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gateway.happenings import Happening, Logged, RunEnded, TextDelta
from gateway.run_view import CONVERSATION, RunFold, RunView, whole
from runtime import events
from runtime.event_log import Recorded
from runtime.events import Event
from runtime.plan import Step

if TYPE_CHECKING:
    from gateway.agent_runs import AgentRuns
    from gateway.context import Gateway
    from projections.execution_summary import ExecutionRow

_POSITION_BITS = 20
_SLOT_BITS = 3
_DELTA_SLOT = 7
_REST_SLOT = 1

TEXT_CHARS_MAX = (1 << (_POSITION_BITS - _SLOT_BITS)) - 1
"""Characters of one answer that are told while it is made; what is longer comes with its message."""

FRAMES_EACH_MAX = 2
"""Frames a dialect may make of one happening: the ids ``n`` and ``n + 1``. A `TextDelta` is one frame."""

POLL_SECONDS = 5.0
"""How late a run that another gateway started shows on a stream that stays open across runs."""

RUNS_REPLAYED_MAX = 100
"""Runs a resumed stream goes back at most."""

Numbered = tuple[int, Happening]


class Cursor(NamedTuple):
    """Where a client is: it has everything up to here."""

    position: int = 0
    chars: int = 0
    slot: int = 0

    @classmethod
    def of(cls, last_event_id: int) -> Cursor:
        rest = last_event_id & ((1 << _POSITION_BITS) - 1)
        return cls(last_event_id >> _POSITION_BITS, rest >> _SLOT_BITS, rest & ((1 << _SLOT_BITS) - 1))

    @property
    def number(self) -> int:
        return self.position << _POSITION_BITS | self.chars << _SLOT_BITS | self.slot


class _Text:
    """What is known of an answer in flight, and how much of it the client has."""

    __slots__ = ("known", "told")

    def __init__(self) -> None:
        self.known = ""
        self.told = 0

    def hear(self, offset: int, text: str) -> None:
        """Repeated pieces add nothing; behind a gap the rest waits for the message."""
        have = len(self.known)
        if offset <= have < offset + len(text):
            self.known = (self.known + text[have - offset :])[:TEXT_CHARS_MAX]


class RunStream:
    """From one run's events and pieces of text to numbered happenings; works with no request behind it.

    Feed it the run from its first event on; ``after`` is the last id the client has. ``text_nodes``: only
    the text of these nodes is told piece by piece (None: of all).
    """

    def __init__(
        self,
        steps: Mapping[Any, Step] | None = None,
        after: int = 0,
        *,
        frames_each: int = 1,
        text_nodes: Collection[str] | None = None,
    ) -> None:
        self._fold = RunFold(steps)
        self._after = after
        self._cursor = Cursor.of(after)
        self._frames_each = frames_each
        self._text_nodes = text_nodes
        self._open: dict[tuple[str, str], _Text] = {}
        self._position = 0
        self._at = 0

    @property
    def is_ended(self) -> bool:
        return self._fold.is_ended

    def view(self) -> RunView:
        return self._fold.view()

    def event(self, position: int, event: Event) -> list[Numbered]:
        """The event's happenings that the client hasn't seen; large payloads stand in it (`whole`)."""
        self._position, self._at = position, event.at
        ended_text = self._track(event)
        happenings = self._fold.apply(position, event)
        if position < self._cursor.position:
            return []
        flight = next(iter(self._open.values()), None)
        if position == self._cursor.position and flight is not None:
            flight.told = self._cursor.chars
        here = Cursor(position, flight.told if flight is not None else 0)
        numbered: list[Numbered] = []
        slot = 0
        if isinstance(event, events.MessageRecorded):
            numbered += self._rest(here, event, ended_text)
            slot = 2  # slots 0 and 1 are the rest's, whether there is one or not
        for happening in happenings:
            numbered.append((here._replace(slot=slot).number, happening))
            slot += FRAMES_EACH_MAX
        unseen = [(number, each) for number, each in numbered if self._is_unseen(number, each)]
        return unseen + self._tell()

    def delta(self, node_id: str, step: str, offset: int, text: str) -> list[Numbered]:
        """A piece of text: what of it is new, and the answer in flight's, as one happening."""
        flight = self._open.get((node_id, step))
        if flight is None:
            return []
        flight.hear(offset, text)
        return self._tell()

    def _is_unseen(self, number: int, happening: Happening) -> bool:
        frames = 1 if isinstance(happening, TextDelta) else self._frames_each
        return number + frames - 1 > self._after

    def _track(self, event: Event) -> _Text | None:
        """Which answers are in flight after the event; the one that it recorded."""
        match event:
            case events.StepStarted(kind="model", purpose=purpose) if purpose == CONVERSATION:
                if self._text_nodes is None or event.node_id in self._text_nodes:
                    self._open[event.node_id, event.step] = _Text()
            case events.StepRetried() if (event.node_id, event.step) in self._open:
                self._open[event.node_id, event.step] = _Text()
            case events.MessageRecorded():
                return self._open.pop((event.node_id, event.step), None)
            case events.NodeCompleted() | events.NodeFailed(retry_at=None):
                for key in [key for key in self._open if key[0] == event.node_id]:
                    del self._open[key]
            case events.CancellationRequested() | events.Failed() | events.TimedOut() | events.Completed():
                self._open.clear()
            case _:
                pass
        return None

    def _rest(self, here: Cursor, event: events.MessageRecorded, text: _Text | None) -> list[Numbered]:
        """What the live feed did not bring of a text, so that the pieces joined are the message."""
        content: Any = event.content
        if event.role != "assistant" or event.purpose != CONVERSATION or not isinstance(content, str):
            return []
        if self._text_nodes is not None and event.node_id not in self._text_nodes:
            return []
        told = 0 if text is None else text.told
        numbered: list[Numbered] = []
        if text is not None and (told > len(content) or not content.startswith(text.known[:told])):
            # A piece of an abandoned try slipped in, or the answer was changed before it was recorded.
            void = {
                "error": "the text so far was replaced",
                "error_type": "TextReplaced",
                "node": event.node_id,
                "step": event.step,
            }
            numbered.append((here.number, Logged(at=event.at, event="retrying", detail=void)))
            told = 0
        if content[told:]:
            rest = TextDelta(at=event.at, node_id=event.node_id, step=event.step, text=content[told:])
            numbered.append((here._replace(slot=_REST_SLOT).number, rest))
        return numbered

    def _tell(self) -> list[Numbered]:
        if self._position < self._cursor.position or not self._open:
            return []
        (node_id, step), flight = next(iter(self._open.items()))
        news = flight.known[flight.told :]
        if not news:
            return []
        flight.told = len(flight.known)
        number = Cursor(self._position, flight.told, _DELTA_SLOT).number
        return [(number, TextDelta(at=self._at, node_id=node_id, step=step, text=news))]


async def follow_run(
    gateway: Gateway,
    row: ExecutionRow,
    *,
    after: int = 0,
    frames_each: int = 1,
    text_nodes: Collection[str] | None = None,
) -> AsyncGenerator[Numbered]:
    """The run's happenings behind the id ``after``, then live, up to and with ``RunEnded``.

    A dialect that makes two frames of one happening numbers them ``n`` and ``n + 1``, says so by
    ``frames_each``, and leaves out those not above ``after``. Raises: LaggedBehind, Unavailable.
    """
    published = await gateway.catalogue.version(row.tenant, row.flow_id, row.flow_version)
    steps: Mapping[Any, Step] = {} if published is None else published.plan.steps
    stream = RunStream(steps, after, frames_each=frames_each, text_nodes=text_nodes)
    source = cast("AsyncGenerator[Any]", gateway.executions.follow(row.execution_id, deltas=True))
    async with aclosing(source):
        async for item in source:
            if isinstance(item, Recorded):
                event = await whole_event(gateway, item)
                for numbered in stream.event(item.position, event):
                    yield numbered
                if stream.is_ended:
                    return
            else:
                for numbered in stream.delta(item.node_id, item.step, item.offset, item.text):
                    yield numbered


_MAY_REFER = frozenset(
    event.TOPIC for event in (events.Queued, events.MessageRecorded, events.NodeCompleted, events.Completed)
)


_REFERENCES = ("input_ref", "content_ref", "raw_ref", "output_ref")


async def whole_event(gateway: Gateway, recorded: Recorded) -> Event:
    """The event with what it refers to put in place."""
    event = recorded.event()
    if recorded.topic not in _MAY_REFER:
        return event
    if any(getattr(event, name, None) is not None for name in _REFERENCES):
        return await asyncio.to_thread(whole, event, gateway.blobs.get_bytes)
    return event


# --- across the runs of a resource --------------------------------------------------------------------


class SubjectNews:
    """Wakes the streams of a resource in this process when a run of it starts, or the resource goes."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}

    def tell(self, tenant: str, subject: str) -> None:
        for waiting in self._waiting.get((tenant, subject), ()):
            waiting.set()

    @contextmanager
    def listening(self, tenant: str, subject: str) -> Generator[asyncio.Event]:
        """Set by every `tell` from now on."""
        key = (tenant, subject)
        news = asyncio.Event()
        self._waiting.setdefault(key, set()).add(news)
        try:
            yield news
        finally:
            self._waiting[key].discard(news)
            if not self._waiting[key]:
                del self._waiting[key]


async def follow_subject(
    gateway: Gateway,
    tenant: str,
    subject: str,
    *,
    after: int = 0,
    until_terminal: bool = False,
    frames_each: int = 1,
    is_gone: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncGenerator[Numbered]:
    """The happenings of a resource's runs, one run after the other, as they come.

    With ``after`` from there on; without, the unfinished run from its first event, else only what comes.
    ``until_terminal``: ends after the next ``RunEnded``; when no run is unfinished, after replaying the
    latest. Ends also when ``is_gone`` says so. Raises: LaggedBehind, Unavailable.
    """
    runs = gateway.agent_runs
    waiting, last = await _first_runs(runs, tenant, subject, after, until_terminal)
    with runs.news.listening(tenant, subject) as news:
        while True:
            for row in waiting:
                last = row
                is_end_told = False
                async with aclosing(follow_run(gateway, row, after=after, frames_each=frames_each)) as run:
                    async for numbered in run:
                        is_end_told = isinstance(numbered[1], RunEnded)
                        yield numbered
                # A resumed stream may begin with a run whose end the client has; a newer one follows it.
                if until_terminal and (is_end_told or row is waiting[-1]):
                    return
            news.clear()  # before looking: what happens meanwhile rings again
            waiting = await _newer(runs, tenant, subject, last)
            if waiting:
                continue
            if is_gone is not None and await is_gone():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await news.wait()


async def _first_runs(
    runs: AgentRuns, tenant: str, subject: str, after: int, until_terminal: bool
) -> tuple[list[ExecutionRow], ExecutionRow | None]:
    """The runs to begin with, oldest first, and the newest of those that are not to be told."""
    if not after:
        latest = await runs.latest_run(tenant, subject)
        if latest is not None and (until_terminal or _is_unfinished(latest)):
            return [latest], None
        return [], latest
    rows = await runs.runs(tenant, subject, RUNS_REPLAYED_MAX)
    position = Cursor.of(after).position
    # Also the run that ended there: its last event makes more than one frame.
    unseen = [row for row in reversed(rows) if row.position >= position or _is_unfinished(row)]
    if until_terminal and not unseen:
        return rows[:1], None  # nothing of it is left to tell, so the stream closes at once
    return unseen, rows[0] if rows else None


def _is_unfinished(row: ExecutionRow) -> bool:
    """A run whose cancel was accepted has its end already (gateway rule G7)."""
    return row.ended_at is None and row.cancel_requested_at is None


async def _newer(runs: AgentRuns, tenant: str, subject: str, last: ExecutionRow | None) -> list[ExecutionRow]:
    """The runs created after ``last``, oldest first."""
    order = (0, "") if last is None else (last.created_at, last.execution_id)
    rows = await runs.runs(tenant, subject, 2)
    if len(rows) == 2 and (rows[1].created_at, rows[1].execution_id) > order:
        rows = await runs.runs(tenant, subject, RUNS_REPLAYED_MAX)
    return [row for row in reversed(rows) if (row.created_at, row.execution_id) > order]
