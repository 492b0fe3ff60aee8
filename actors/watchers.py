"""The host's side of the live feed: who watches which execution, and what waits for each gateway.

A gateway polls; a poll answers at once when something waits, else as soon as something happens. At the
bound everything waiting is dropped and the batch says ``lagged``: readers then fall back to the log, so
a slow gateway costs bounded memory and nobody misses an event.
"""

import asyncio
import itertools
from collections.abc import Iterable

from actors.messages import Delta, FeedBatch
from runtime.event_log import Recorded
from runtime.events import TERMINAL_EVENTS

WAITING_ITEMS_MAX = 20_000
"""Items kept for one gateway between two polls."""

SILENT_SECONDS_MAX = 120.0
"""A gateway that has not polled for this long is forgotten."""

_TERMINAL_TOPICS = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


class _Gateway:
    def __init__(self, incarnation: str, now: float) -> None:
        self.incarnation = incarnation
        self.watched: set[str] = set()
        self.waiting: list[Recorded | Delta] = []
        self.lagged = False
        self.polled_at = now
        self.news = asyncio.Event()

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

    def watch(self, gateway_id: str, execution_ids: Iterable[str]) -> None:
        gateway = self._gateway(gateway_id)
        for execution_id in execution_ids:
            gateway.watched.add(execution_id)
            self._by_execution.setdefault(execution_id, set()).add(gateway_id)

    def unwatch(self, gateway_id: str, execution_ids: Iterable[str]) -> None:
        for execution_id in execution_ids:
            self._forget(gateway_id, execution_id)

    def publish(self, committed: Iterable[Recorded]) -> None:
        """Put committed events on the feeds of those who watch; an end ends the watch."""
        by_execution = self._by_execution
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
        """Put a piece of text on the feeds of those who watch its execution."""
        for gateway_id in self._by_execution.get(delta.execution_id, ()):
            self._gateways[gateway_id].put(delta)
            self._gateways[gateway_id].news.set()

    def wake_all(self) -> None:
        """Answer every poll now."""
        for gateway in self._gateways.values():
            gateway.news.set()

    async def poll(self, gateway_id: str, wait_seconds: float) -> FeedBatch:
        """What happened since the last poll; waits at most ``wait_seconds`` for something to happen."""
        loop = asyncio.get_running_loop()
        gateway = self._gateway(gateway_id)
        gateway.polled_at = loop.time()
        if not gateway.waiting and not gateway.lagged:
            self._forget_silent(loop.time())
            try:
                await asyncio.wait_for(gateway.news.wait(), wait_seconds)
            except TimeoutError:
                gateway.polled_at = loop.time()
                return FeedBatch(gateway.incarnation)
        gateway.news.clear()
        gateway.polled_at = loop.time()
        batch = FeedBatch(gateway.incarnation, tuple(gateway.waiting), gateway.lagged)
        gateway.waiting.clear()
        gateway.lagged = False
        return batch

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
        return gateway is not None and bool(gateway.waiting or gateway.lagged)

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
