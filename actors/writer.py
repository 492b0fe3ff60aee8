"""Group commit: one thread writes everything a host records.

    idle --append--> writing --(more arrived meanwhile)--> writing ... --> idle

Whatever arrives while a commit runs goes into the next one, so there is no timer and no latency when
idle. Appends of one stream keep their order. A conflict (another owner wrote first) fails only that
stream's append, and everything its former owner appends after it: the other owner may have written fewer
events than we were about to, and what comes later must not slip in behind them. While the store is
unreachable the same batch is tried again until it answers: nothing is acknowledged meanwhile, and the
host refuses new work at its own bound.

After a crash nothing of this file matters: what was not committed was not acknowledged.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_when_event_set,
    wait_exponential_jitter,
)

from runtime.errors import Conflict, InvariantViolated, Unavailable
from runtime.event_log import Append, EventLog, Outcome, Recorded

log = structlog.get_logger(__name__)

BATCH_APPENDS_MAX = 2_000
"""Appends in one transaction; the rest waits for the next."""

RETRY_WAIT_SECONDS_MAX = 5.0
"""Longest pause between two tries while the store is unreachable."""

Committed = asyncio.Future[tuple[Recorded, ...]]


class GroupCommitWriter:
    """``on_commit`` is called on the loop, in commit order, before the appends' futures resolve."""

    def __init__(
        self,
        event_log: EventLog,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[Sequence[Recorded]], None],
    ) -> None:
        self._log = event_log
        self._loop = loop
        self._on_commit = on_commit
        self._pending: deque[tuple[Append, Committed]] = deque()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def append(self, append: Append) -> Committed:
        """Record ``append`` durably; call on the loop only.

        The future raises Conflict when another owner wrote this stream, Unavailable at shutdown.
        """
        committed: Committed = self._loop.create_future()
        with self._wake:
            if not self._closing.is_set():
                self._pending.append((append, committed))
                self._wake.notify()
                return committed
        committed.set_exception(Unavailable("the host is shutting down"))
        committed.exception()  # nobody may be waiting
        return committed

    def close(self) -> None:
        """Write what is pending, then end the thread. Blocking."""
        with self._wake:
            self._closing.set()
            self._wake.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closing.is_set():
                    self._wake.wait()
                if not self._pending:
                    return
                size = min(len(self._pending), BATCH_APPENDS_MAX)
                batch = [self._pending.popleft() for _ in range(size)]
            self._settle_later(batch, self._outcomes([append for append, _ in batch]))

    def _outcomes(self, appends: list[Append]) -> Sequence[Outcome | Unavailable]:
        """One outcome each; a stream that lost its owner gets nothing more written by it."""
        lost = [append.chain.is_lost for append in appends]
        written = iter(
            self._write_guarded([a for a, is_lost in zip(appends, lost, strict=True) if not is_lost])
        )
        outcomes: list[Outcome | Unavailable] = []
        for append, is_lost in zip(appends, lost, strict=True):
            if is_lost:
                outcomes.append(_conflict(append))
                continue
            outcome = next(written)
            if not isinstance(outcome, tuple):
                append.chain.is_lost = True
            outcomes.append(outcome)
        return outcomes

    def _write_guarded(self, appends: list[Append]) -> Sequence[Outcome | Unavailable]:
        if not appends:
            return ()
        try:
            return self._write(appends)
        except Unavailable as error:
            return [error] * len(appends)
        except Exception as error:  # our bug; it must not take the other streams with it
            if len(appends) == 1:
                log.error("an append can't be written", stream=appends[0].originator_id, exc_info=error)
                return [InvariantViolated(f"{appends[0].originator_id}: {error!r}")]
            return [outcome for append in appends for outcome in self._one_by_one(append)]

    def _one_by_one(self, append: Append) -> Sequence[Outcome | Unavailable]:
        if append.chain.is_lost:
            return [_conflict(append)]
        outcomes = self._write_guarded([append])
        if not isinstance(outcomes[0], tuple):
            append.chain.is_lost = True
        return outcomes

    def _write(self, appends: list[Append]) -> Sequence[Outcome]:
        try:
            return self._log.append(appends)
        except Unavailable:
            if self._closing.is_set():
                raise
        # tenacity costs as much as a small append: it is only for what failed once.
        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable),
            wait=wait_exponential_jitter(multiplier=0.05, max=RETRY_WAIT_SECONDS_MAX),
            stop=stop_when_event_set(self._closing),
            sleep=self._sleep,
            before_sleep=_log_retry,
            reraise=True,
        )
        return retrying(self._log.append, appends)

    def _sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _settle_later(
        self,
        batch: list[tuple[Append, Committed]],
        results: Sequence[Outcome | Unavailable],
    ) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, batch, results)
        except RuntimeError:
            # The loop closed under us: the process is going down and nobody waits any more.
            log.warning("commit settled after the loop had closed", appends=len(batch))

    def _settle(
        self,
        batch: list[tuple[Append, Committed]],
        results: Sequence[Outcome | Unavailable],
    ) -> None:
        committed = [event for result in results if isinstance(result, tuple) for event in result]
        try:
            if committed:
                self._on_commit(committed)
        finally:
            self._resolve(batch, results)

    def _resolve(
        self,
        batch: list[tuple[Append, Committed]],
        results: Sequence[Outcome | Unavailable],
    ) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if future.cancelled():
                continue
            if isinstance(result, tuple):
                future.set_result(result)
            else:
                future.set_exception(result)
                future.exception()  # nobody may be waiting: the actor learns it from its callback


def _conflict(append: Append) -> Conflict:
    return Conflict(append.originator_id, append.events[0].originator_version)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("event log unreachable, trying again", error=str(error), attempt=state.attempt_number)
