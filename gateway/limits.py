"""What one key, one tenant and one process may use at a time (gateway rule G5).

Rates and streams are counted in this process: behind N gateways a key gets N times as much. Unfinished
executions are counted in the store. A key without limits (the first admin key) passes unless the process
itself is full.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from gateway.call import retry_after
from gateway.envelopes import Problem
from gateway.keys import Caller
from gateway.metrics import Metrics
from gateway.settings import Settings
from projections import execution_summary
from projections.store import ReadStore

COUNT_STALE_SECONDS = 0.5
"""How long a tenant's count is used; starts made here since are added to it."""


class _Unfinished:
    __slots__ = ("count", "fresh_until")

    def __init__(self) -> None:
        self.count = 0
        self.fresh_until = 0.0


class Limits:
    def __init__(self, settings: Settings, store: ReadStore, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._items: dict[int, RateLimitItemPerMinute] = {}
        self._streams: Counter[str] = Counter()
        self._streams_open = 0
        self._starts_waiting = 0
        self._unfinished: dict[str, _Unfinished] = {}

    def take(self, caller: Caller, answer_headers: list[tuple[bytes, bytes]]) -> None:
        """Count one request, and say in ``answer_headers`` what is left.

        Raises: Problem rate_limited.
        """
        amount = caller.requests_per_minute
        if amount is None:
            return
        item = self._items.get(amount)
        if item is None:
            item = self._items[amount] = RateLimitItemPerMinute(amount)
        admitted = self._window.hit(item, caller.key_id)
        reset_at, remaining = self._window.get_window_stats(item, caller.key_id)
        seconds = retry_after(reset_at - time.time())
        answer_headers += (
            (b"ratelimit-limit", b"%d" % amount),
            (b"ratelimit-remaining", b"%d" % max(0, remaining)),
            (b"ratelimit-reset", b"%d" % seconds),
            (b"ratelimit-policy", b"%d;w=60" % amount),
        )
        if not admitted:
            raise Problem("rate_limited", retry_after=seconds)

    def open_stream(self, caller: Caller) -> None:
        """Take a place for one event stream; `close_stream` gives it back.

        Raises: Problem too_many_streams (the key's bound), unavailable (the process's).
        """
        bound = caller.open_streams_max
        if bound is not None and self._streams[caller.key_id] >= bound:
            raise Problem("too_many_streams", retry_after=5)
        if self._streams_open >= self._settings.streams_max:
            raise Problem("unavailable", retry_after=5)
        self._streams[caller.key_id] += 1
        self._streams_open += 1
        self._metrics.open_streams.set(self._streams_open)

    def close_stream(self, caller: Caller, *, cut: bool = False) -> None:
        self._streams[caller.key_id] -= 1
        if not self._streams[caller.key_id]:
            del self._streams[caller.key_id]
        self._streams_open -= 1
        self._metrics.open_streams.set(self._streams_open)
        if cut:
            self._metrics.streams_cut.inc()

    @contextmanager
    def starting(self) -> Generator[None]:
        """Hold a place while a start waits for its commit. Raises: Problem unavailable at the bound."""
        if self._starts_waiting >= self._settings.starts_max:
            raise Problem("unavailable", retry_after=1)
        self._starts_waiting += 1
        try:
            yield
        finally:
            self._starts_waiting -= 1

    async def count_start(self, caller: Caller) -> None:
        """Count one more unfinished execution of the caller's tenant.

        The count may be exceeded by what other processes start within `COUNT_STALE_SECONDS`.
        Raises: Problem too_many_executions.
        """
        bound = caller.unfinished_executions_max
        if bound is None:
            return
        known = self._unfinished.setdefault(caller.tenant, _Unfinished())
        if known.fresh_until < time.monotonic() or known.count >= bound:
            found = await asyncio.to_thread(execution_summary.count_unfinished, self._store, caller.tenant)
            known.count = found
            known.fresh_until = time.monotonic() + COUNT_STALE_SECONDS
        if known.count >= bound:
            raise Problem("too_many_executions", retry_after=1)
        known.count += 1
