"""Callbacks: the process manager that tells a caller's URL how an execution ended (gateway rule G9).

    terminal event --schedule--> callback:{execution_id} v1 --due--> claimed --POST--> outcome recorded
                                        ^                                                    |
                                        +------------- failed, due again --------------------+

Who moves it: every gateway follows the log for terminal events and schedules; version 1 of a callback's
stream can be written only once, so following twice, or in two gateways, is harmless. A due delivery is
claimed for one attempt by a row, so that two gateways don't both post; a claim of a gateway that died lapses.
Each attempt is recorded before the next can be due.

After a crash: what was followed but not tracked is followed again; an attempt whose outcome was not recorded
is made again (at least once, with the same Webhook-Id). Delivery never touches the execution.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import httpx
import structlog

from actors.egress import EgressGuard, EgressRefused
from actors.egress_transport import TOTAL_SECONDS, vetted_client
from gateway.aggregates import change
from gateway.context import new_id, now
from gateway.following import Following, supervise
from gateway.webhook_signing import Signatures
from projections import callbacks, execution_summary
from projections.callbacks import CallbackRow
from projections.execution_summary import ExecutionRow
from runtime.callbacks import CallbackState, deliver, evolve_callback, fail, schedule
from runtime.errors import Conflict, InvariantViolated
from runtime.event_log import Append, Chain
from runtime.events import TERMINAL_EVENTS, Event
from runtime.ids import SECOND, ExecutionId, Micros, TenantId, callback_stream

if TYPE_CHECKING:
    from projections.store import ReadStore
    from runtime.event_log import EventLog

log = structlog.get_logger("gateway.webhooks")

READER = "callbacks"
"""Name of the tracking position."""

IN_FLIGHT_MAX = 32
"""Attempts at a time; the others stay due."""

IN_FLIGHT_PER_HOST_MAX = 8
"""Attempts at a time for one receiver: a slow one must not hold up the others."""

CLAIM_SECONDS = 20
"""A claim outlives the longest attempt; when its holder died, the next gateway waits for so long."""

CLAIMS_KEPT_SECONDS = 86_400
DRAIN_SECONDS = 5.0
"""What attempts in flight get to end in when the server stops."""

ERROR_CHARS_MAX = 200

_TERMINAL_TOPICS = tuple(event.TOPIC for event in TERMINAL_EVENTS)

CREATE = (
    """
    CREATE TABLE IF NOT EXISTS callback_claims (
        execution_id TEXT NOT NULL PRIMARY KEY,
        attempt BIGINT NOT NULL,
        holder TEXT NOT NULL,
        lapses_at BIGINT NOT NULL
    )
    """,
)
"""For the composition root. Bookkeeping, not history: the table may be emptied at any time, at the price of
an attempt made twice."""

_CLAIM = (
    "INSERT INTO callback_claims (execution_id, attempt, holder, lapses_at) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (execution_id) DO UPDATE SET"
    " attempt = excluded.attempt, holder = excluded.holder, lapses_at = excluded.lapses_at"
    " WHERE callback_claims.attempt < excluded.attempt"
    " OR (callback_claims.attempt = excluded.attempt AND callback_claims.lapses_at <= ?)"
)

Render = Callable[[ExecutionRow], Awaitable[bytes]]
"""Writes the body of a callback in the words of the dialect the execution came in by."""

Choose = Callable[[ExecutionRow], str]
"""Which URL is told of the execution's end, for a dialect that tells different ones; empty: none. Blocks."""


class _Outcome(NamedTuple):
    """``status_code`` 0: no answer came. ``is_final``: another attempt can't help."""

    status_code: int = 0
    error: str = ""
    retry_after_seconds: float | None = None
    is_final: bool = False

    @property
    def is_delivered(self) -> bool:
        return 200 <= self.status_code < 300


class _Permanent(Exception):
    """The callback can't be rendered, now or later."""


class Callbacks:
    """Schedules and delivers callbacks while it runs.

    ``renderers``: by the execution's source; only what is named here has callbacks. ``choosers``: for those
    whose ``callback_url`` is not simply the one URL. ``draw`` gives numbers in [0, 1) for the jitter of the
    attempts.
    """

    def __init__(
        self,
        event_log: EventLog,
        store: ReadStore,
        guard: EgressGuard,
        signatures: Signatures,
        renderers: Mapping[str, Render],
        choosers: Mapping[str, Choose] | None = None,
        *,
        clock: Callable[[], Micros] = now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._log = event_log
        self._store = store
        self._client = vetted_client(guard)
        self._signatures = signatures
        self._renderers = renderers
        self._choosers = choosers or {}
        self._clock = clock
        self._draw = draw
        self._holder = new_id()
        self._following = Following(event_log, store, READER, _TERMINAL_TOPICS)
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()

    async def run(self) -> None:
        """Follow and deliver until cancelled; a failure is logged and tried again, later and later."""
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(supervise("callbacks.follow", self.follow_once))
                loops.create_task(supervise("callbacks.deliver", self.deliver_due))
        finally:
            await self._drain()

    async def settled(self) -> None:
        """Wait until no attempt is in flight; each takes at most `TOTAL_SECONDS` and its record."""
        while self._in_flight:
            await asyncio.wait(self._in_flight.values())
            await asyncio.sleep(0)  # the tasks' own callbacks run before this returns

    async def _drain(self) -> None:
        """Give attempts in flight a moment, then give them up: they will be made again."""
        tasks = list(self._in_flight.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._client.aclose()

    # --- following the log ------------------------------------------------------------------------------

    async def follow_once(self) -> bool:
        """Schedule what the next page of terminal events asks for; True when there may be more."""
        return await asyncio.to_thread(self._follow)

    def _follow(self) -> bool:
        page = self._following.page()
        if page is None:
            return False
        ids = [each.originator_id for each in page.events]
        rows = execution_summary.get_many(self._store, ids)
        scheduled = self._schedule([row for row in rows.values() if row.callback_url])
        self._following.followed(page, track=scheduled > 0)
        return page.more

    def _schedule(self, rows: Sequence[ExecutionRow]) -> int:
        appends: list[Append] = []
        at = self._clock()
        for row in rows:
            if row.source not in self._renderers:
                log.error("callback_without_renderer", execution_id=row.execution_id, source=row.source)
                continue
            choose = self._choosers.get(row.source)
            url = row.callback_url if choose is None else choose(row)
            if not url:
                continue
            execution_id = ExecutionId(row.execution_id)
            events = schedule(
                None,
                execution_id,
                TenantId(row.tenant),
                url,
                row.source,
                at=at,
                corr=row.correlation_id,
            )
            appends.append(Append(callback_stream(execution_id), events, _state_after(events), Chain()))
        for outcome in self._log.append(appends) if appends else ():
            if isinstance(outcome, InvariantViolated):
                # Passed over, or one callback that can't be stored would hold up all that follow.
                log.error("callback_not_schedulable", reason=str(outcome))
            # A conflict means that it is scheduled already: by another gateway, or before a crash.
        return len(appends)

    # --- delivering -------------------------------------------------------------------------------------

    async def deliver_due(self) -> bool:
        """Begin the attempts that are due and fit; False, as there is nothing to hurry for."""
        due = await asyncio.to_thread(self._due)
        room = IN_FLIGHT_MAX - len(self._in_flight)
        chosen: list[CallbackRow] = []
        hosts = Counter(self._hosts)
        for row in due:
            host = urlsplit(row.url).netloc
            if row.execution_id in self._in_flight or hosts[host] >= IN_FLIGHT_PER_HOST_MAX:
                continue
            if len(chosen) == room:
                break
            hosts[host] += 1
            chosen.append(row)
        if chosen:
            for row in await asyncio.to_thread(self._claim, chosen):
                self._begin(row)
        return False

    def _due(self) -> list[CallbackRow]:
        return callbacks.due(self._store, self._clock(), callbacks.LIST_MAX)

    def _claim(self, rows: Sequence[CallbackRow]) -> list[CallbackRow]:
        """Those of ``rows`` whose next attempt is now ours alone."""
        at = self._clock()
        lapses_at = at + CLAIM_SECONDS * SECOND
        marks = ", ".join("?" * len(rows))
        with self._store.transaction() as transaction:
            transaction.execute(
                "DELETE FROM callback_claims WHERE lapses_at < ?", (at - CLAIMS_KEPT_SECONDS * SECOND,)
            )
            for row in rows:
                transaction.execute(_CLAIM, (row.execution_id, row.attempts + 1, self._holder, lapses_at, at))
            held = transaction.query(
                f"SELECT execution_id, attempt FROM callback_claims WHERE holder = ? AND lapses_at = ?"
                f" AND execution_id IN ({marks})",
                (self._holder, lapses_at, *(row.execution_id for row in rows)),
            )
        ours = {(str(execution_id), int(attempt)) for execution_id, attempt in held}
        return [row for row in rows if (row.execution_id, row.attempts + 1) in ours]

    def _begin(self, row: CallbackRow) -> None:
        host = urlsplit(row.url).netloc
        task = asyncio.create_task(self._attempt(row))
        self._in_flight[row.execution_id] = task
        self._hosts[host] += 1

        def end(ended: asyncio.Task[None]) -> None:
            self._in_flight.pop(row.execution_id, None)
            self._hosts[host] -= 1
            if not ended.cancelled() and (error := ended.exception()) is not None:
                # Its outcome is not recorded; once the claim lapses, the attempt is made again.
                log.error("callback_attempt_lost", execution_id=row.execution_id, exc_info=error)

        task.add_done_callback(end)

    async def _attempt(self, row: CallbackRow) -> None:
        attempt = row.attempts + 1
        try:
            outcome = await self._post(row, attempt, await self._body(row))
        except _Permanent as error:
            outcome = _Outcome(error=str(error), is_final=True)
        await asyncio.to_thread(self._record, row, outcome)
        log.info(
            "callback_attempted",
            execution_id=row.execution_id,
            attempt=attempt,
            delivered=outcome.is_delivered,
            status_code=outcome.status_code,
            error=outcome.error,
        )

    async def _body(self, row: CallbackRow) -> bytes:
        execution = await asyncio.to_thread(execution_summary.get, self._store, row.execution_id)
        render = self._renderers.get(row.source)
        if execution is None or render is None:
            raise _Permanent(
                "the execution is gone" if execution is None else "no dialect sends this callback"
            )
        return await render(execution)

    async def _post(self, row: CallbackRow, attempt: int, body: bytes) -> _Outcome:
        headers = self._signatures.headers(row.execution_id, self._clock(), attempt, body)
        try:
            async with (
                asyncio.timeout(TOTAL_SECONDS),
                self._client.stream("POST", row.url, content=body, headers=headers) as response,
            ):
                # What the receiver says beyond its status is not read: nothing depends on it.
                status_code = response.status_code
                retry_after = retry_after_seconds(response.headers.get("retry-after", ""), self._clock())
        except EgressRefused as error:
            return _Outcome(error=error.reason)
        except TimeoutError:
            return _Outcome(error=f"no answer within {TOTAL_SECONDS:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return _Outcome(error=f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX])
        if 200 <= status_code < 300:
            return _Outcome(status_code)
        return _Outcome(status_code, f"HTTP {status_code}", retry_after)

    def _record(self, row: CallbackRow, outcome: _Outcome) -> None:
        def decide(state: CallbackState | None) -> Sequence[Event]:
            if state is None or state.status != "pending" or state.attempts != row.attempts:
                return ()  # another gateway recorded this attempt
            at = self._clock()
            if outcome.is_delivered:
                return deliver(state, outcome.status_code, at=at)
            return fail(
                state,
                outcome.error,
                at=at,
                draw=self._draw(),
                status_code=outcome.status_code,
                retry_after_seconds=outcome.retry_after_seconds,
                is_final=outcome.is_final,
            )

        try:
            change(self._log, callback_stream(ExecutionId(row.execution_id)), evolve_callback, decide)
        except Conflict as error:
            log.warning("callback_outcome_lost", execution_id=row.execution_id, reason=str(error))


def _state_after(events: Sequence[Event]) -> CallbackState | None:
    state: CallbackState | None = None
    for event in events:
        state = evolve_callback(state, event)
    return state


def retry_after_seconds(text: str, at: Micros) -> float | None:
    """What a Retry-After header asks for, as seconds from ``at``; None when absent or unreadable."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - at / SECOND)
