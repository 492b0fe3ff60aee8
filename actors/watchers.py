"""The host's side of the live feed: who watches which execution, and what waits for each gateway.

A gateway's connection (see ``feed``) polls, one poll at a time; a poll answers at once when something waits,
else as soon as something happens. At the bound everything waiting is dropped and the batch says ``lagged``:
readers then fall back to the log, so a slow gateway costs bounded memory and nobody misses an event.
"""

import asyncio
import itertools
from collections.abc import Iterable

from actors.messages import Delta, FeedBatch
from runtime.event_log import Recorded
from runtime.events import TERMINAL_EVENTS, MessageRecorded, StepRetried

WAITING_ITEMS_MAX = 20_000
"""Items kept for one gateway between two polls."""

GATHER_SECONDS_EACH = 0.00005
GATHER_SECONDS_MAX = 0.010
"""The least time between two answers to a gateway, for each execution it watches, and at most.

An answer costs both sides half a millisecond, and two hundred that talk at once would ask for a thousand a
second.
"""

SILENT_SECONDS_MAX = 120.0
"""A gateway that has not polled for this long is forgotten."""

_TERMINAL_TOPICS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)
_TEXT_TOPICS = frozenset((MessageRecorded.TOPIC, StepRetried.TOPIC))


TEXT_CHARS_MAX = 1_000_000
"""Text of one step kept for readers that come late; a longer one begins for them where this ends."""


class _Text:
    """What one step has produced so far."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.parts: list[str] = []
        self.chars = 0

    def add(self, offset: int, text: str) -> None:
        if offset == 0:
            self.parts.clear()
            self.chars = 0
        if offset == self.chars and self.chars < TEXT_CHARS_MAX:
            self.parts.append(text)
            self.chars += len(text)


class _Gateway:
    def __init__(self, incarnation: str, now: float) -> None:
        self.incarnation = incarnation
        self.watched: set[str] = set()
        self.waiting: list[Recorded | Delta] = []
        self.lagged = False
        self.polled_at = now
        self.answered_at = now
        self.news = asyncio.Event()
        self._answered = 0

    @property
    def has_news(self) -> bool:
        return bool(self.waiting or self.lagged)

    def batch(self, now: float) -> FeedBatch:
        """What waits, which waits no more."""
        self.news.clear()
        self.polled_at = self.answered_at = now
        self._answered += 1
        batch = FeedBatch(self.incarnation, tuple(self.waiting), self.lagged, self._answered)
        self.waiting.clear()
        self.lagged = False
        return batch

    def put(self, item: Recorded | Delta) -> None:
        if len(self.waiting) >= WAITING_ITEMS_MAX:
            self.waiting.clear()
            self.lagged = True
        self.waiting.append(item)


class Watchers:
    """All gateways of one host. Lives on the host's loop."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._acquaintances = itertools.count(1)
        self._gateways: dict[str, _Gateway] = {}
        self._by_execution: dict[str, set[str]] = {}
        self._texts: dict[str, dict[str, _Text]] = {}

    def watch(self, gateway_id: str, execution_ids: Iterable[str]) -> None:
        gateway = self._gateway(gateway_id)
        for execution_id in execution_ids:
            gateway.watched.add(execution_id)
            self._by_execution.setdefault(execution_id, set()).add(gateway_id)
            for step, text in self._texts.get(execution_id, {}).items():
                gateway.put(Delta(execution_id, text.node_id, step, 0, "".join(text.parts)))
                gateway.news.set()

    def unwatch(self, gateway_id: str, execution_ids: Iterable[str]) -> None:
        for execution_id in execution_ids:
            self._forget(gateway_id, execution_id)

    def publish(self, committed: Iterable[Recorded]) -> None:
        """Put committed events on the feeds of those who watch; an end ends the watch."""
        by_execution = self._by_execution
        if self._texts:
            committed = list(committed)
            self._end_texts(committed)
        if not by_execution:
            return
        woken: set[str] = set()
        for event in committed:
            watchers = by_execution.get(event.originator_id)
            if watchers is None:
                continue
            for gateway_id in watchers:
                self._gateways[gateway_id].put(event)
            woken |= watchers
            if event.topic in _TERMINAL_TOPICS:
                for gateway_id in tuple(watchers):
                    self._forget(gateway_id, event.originator_id)
        for gateway_id in woken:
            self._gateways[gateway_id].news.set()

    def delta(self, delta: Delta) -> None:
        """Put a piece of text on the feeds of those who watch its execution; who comes later gets it too."""
        texts = self._texts.setdefault(delta.execution_id, {})
        text = texts.get(delta.step)
        if text is None:
            text = texts[delta.step] = _Text(delta.node_id)
        text.add(delta.offset, delta.text)
        for gateway_id in self._by_execution.get(delta.execution_id, ()):
            self._gateways[gateway_id].put(delta)
            self._gateways[gateway_id].news.set()

    def forget_texts(self, execution_id: str) -> None:
        """The execution ended or left this host: nobody produces its text here any more."""
        self._texts.pop(execution_id, None)

    def _end_texts(self, committed: Iterable[Recorded]) -> None:
        """What is in the log now, or void, is no longer told to those who come late."""
        for recorded in committed:
            texts = self._texts.get(recorded.originator_id)
            if texts is None:
                continue
            if recorded.topic in _TERMINAL_TOPICS:
                del self._texts[recorded.originator_id]
            elif recorded.topic in _TEXT_TOPICS:
                event = recorded.event()
                assert isinstance(event, MessageRecorded | StepRetried)
                texts.pop(event.step, None)

    def wake_all(self) -> None:
        """Answer every poll now."""
        for gateway in self._gateways.values():
            gateway.news.set()

    async def poll(self, gateway_id: str, wait_seconds: float) -> FeedBatch:
        """What happened since the last poll; waits at most ``wait_seconds`` for something to happen."""
        loop = asyncio.get_running_loop()
        gateway = self._gateway(gateway_id)
        gateway.polled_at = loop.time()
        try:
            # Not wait_for, which costs two sweeps of the loop.
            async with asyncio.timeout(wait_seconds):
                if not gateway.has_news:
                    self._forget_silent(loop.time())
                    await gateway.news.wait()
                gather = min(len(gateway.watched) * GATHER_SECONDS_EACH, GATHER_SECONDS_MAX)
                pause = min(gateway.answered_at + gather - loop.time(), wait_seconds)
                if pause > 0:
                    await asyncio.sleep(pause)
                return gateway.batch(loop.time())
        except TimeoutError:
            gateway.polled_at = loop.time()
            return FeedBatch(gateway.incarnation)

    def _gateway(self, gateway_id: str) -> _Gateway:
        gateway = self._gateways.get(gateway_id)
        if gateway is None:
            # A gateway that was forgotten meanwhile sees a new incarnation, and sends its watches again.
            incarnation = f"{self._incarnation}/{next(self._acquaintances)}"
            gateway = _Gateway(incarnation, asyncio.get_running_loop().time())
            self._gateways[gateway_id] = gateway
        return gateway

    def has_news(self, gateway_id: str) -> bool:
        """Whether something waits for this gateway's next poll."""
        gateway = self._gateways.get(gateway_id)
        return gateway is not None and gateway.has_news

    def _forget(self, gateway_id: str, execution_id: str) -> None:
        gateway = self._gateways.get(gateway_id)
        if gateway is not None:
            gateway.watched.discard(execution_id)
        watchers = self._by_execution.get(execution_id)
        if watchers is not None:
            watchers.discard(gateway_id)
            if not watchers:
                del self._by_execution[execution_id]

    def _forget_silent(self, now: float) -> None:
        for gateway_id, gateway in tuple(self._gateways.items()):
            if now - gateway.polled_at > SILENT_SECONDS_MAX:
                for execution_id in tuple(gateway.watched):
                    self._forget(gateway_id, execution_id)
                del self._gateways[gateway_id]
