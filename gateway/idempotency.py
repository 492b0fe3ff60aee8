"""Idempotency-Key (gateway rule G6): the same request again gets the same answer, and starts nothing twice.

One row for each tenant, method, path and key. Its states, and who moves it:

    (none) --reserve--> reserved --accept--> accepted       the request that came first
    reserved --release--> (none)                            it ended with 429 or 5xx and was the first to try
    reserved --take over--> reserved                        a retry, once the holder is gone or slow

A reserved row holds the execution id already, and starting an id that exists is harmless; so when a
gateway dies between reserve and accept, the retry starts the very same execution or finds it started.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.chassis import as_problem, problem_headers
from gateway.context import new_id, now
from gateway.envelopes import Problem
from projections.store import ReadStore
from runtime.errors import Unavailable
from runtime.ids import SECOND

KEY_MAX = 255

LEASE_SECONDS = 15
"""A reservation of another process counts as abandoned after this long."""

PURGE_EVERY_SECONDS = 600
PURGE_BATCH = 500

CREATE = (
    """
    CREATE TABLE IF NOT EXISTS idempotency (
        scope TEXT NOT NULL,
        idempotency_key TEXT NOT NULL,
        digest TEXT NOT NULL,
        execution_id TEXT NOT NULL,
        holder TEXT NOT NULL,
        reserved_at BIGINT NOT NULL,
        expires_at BIGINT NOT NULL,
        answer TEXT,
        PRIMARY KEY (scope, idempotency_key)
    )
    """,
    "CREATE INDEX IF NOT EXISTS idempotency_expiry ON idempotency (expires_at)",
)


class KeptAnswer(msgspec.Struct, frozen=True):
    """An answer as it is given again. ``body`` is text: every kept answer is JSON."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str


class Reservation(NamedTuple):
    """``answer`` is set when the request was accepted before: give it again.

    ``execution_id``: the id the request must start, or has started. ``is_fresh``: no earlier request had it,
    so if this one started nothing, nothing was started.
    """

    scope: str
    key: str
    execution_id: str
    answer: KeptAnswer | None = None
    is_fresh: bool = False


class _Row(NamedTuple):
    digest: str
    execution_id: str
    holder: str
    reserved_at: int
    expires_at: int
    answer: str | None


_KEPT_HEADERS = ("content-type", "location", "cache-control", "x-ability-request-id")


class Idempotency:
    def __init__(self, store: ReadStore, hours: float) -> None:
        self._store = store
        self._kept_micros = int(hours * 3600 * SECOND)
        self._holder = new_id()  # names this process's life, not the machine
        self._in_flight: set[tuple[str, str]] = set()

    async def reserve(self, call: Call, digest: str) -> Reservation | None:
        """Claim the request's key; None when it carries none. ``digest`` stands for the whole request.

        Whoever gets a reservation without an answer must end it by `accept` or `release`.
        Raises: Problem idempotency_in_progress, idempotency_key_reused, invalid_input.
        """
        key = call.header(b"idempotency-key")
        if not key and b"idempotency-key" not in call.headers:
            return None
        if not 1 <= len(key) <= KEY_MAX or any(not 0x21 <= ord(character) <= 0x7E for character in key):
            rule = f"must be 1 to {KEY_MAX} visible ASCII characters"
            raise Problem("invalid_input", f"Idempotency-Key: {rule}", [("Idempotency-Key", rule)])
        scope = f"{call.caller.tenant} {call.method} {call.url_path.rstrip('/')}"
        place = (scope, key)
        if place in self._in_flight:
            raise Problem("idempotency_in_progress", retry_after=1)
        self._in_flight.add(place)
        try:
            reservation = await asyncio.to_thread(self._reserve, scope, key, digest)
        except BaseException:
            self._in_flight.discard(place)
            raise
        if reservation.answer is not None:
            self._in_flight.discard(place)
        return reservation

    async def accept(self, reservation: Reservation, answer: KeptAnswer) -> None:
        """Keep the answer for repeats."""
        text = msgspec.json.encode(answer).decode()
        try:
            await asyncio.to_thread(
                self._store.execute,
                "UPDATE idempotency SET answer = ?"
                " WHERE scope = ? AND idempotency_key = ? AND execution_id = ?",
                (text, reservation.scope, reservation.key, reservation.execution_id),
            )
        finally:
            self._in_flight.discard((reservation.scope, reservation.key))

    async def release(self, reservation: Reservation, *, forget: bool) -> None:
        """End a reservation without an answer. ``forget``: nothing was started, so drop the row too.

        A row that stays is taken over by the next retry, which starts the same execution id.
        """
        try:
            if forget:
                await asyncio.to_thread(
                    self._store.execute,
                    "DELETE FROM idempotency WHERE scope = ? AND idempotency_key = ? AND holder = ?"
                    " AND answer IS NULL",
                    (reservation.scope, reservation.key, self._holder),
                )
        finally:
            self._in_flight.discard((reservation.scope, reservation.key))

    async def once(self, call: Call, digest: str, serve: Callable[[str], Awaitable[Response]]) -> Response:
        """The answer of ``serve(execution_id)``, or the kept one when the request was made before.

        Refusals are kept like any answer, except 429 and 5xx.
        """
        reservation = await self.reserve(call, digest)
        if reservation is None:
            return await serve(new_id())
        if reservation.answer is not None:
            return replayed(reservation.answer)
        settled = False
        try:
            try:
                response = await serve(reservation.execution_id)
                kept = _kept(response)
            except Exception as error:
                problem = as_problem(error)
                status, body = call.envelope.word(problem)
                if status == 429 or status >= 500:
                    # After Unavailable the start may have happened, and before a row is taken over too: the
                    # row keeps its id for the retry.
                    maybe_started = isinstance(error, Unavailable) or problem.code == "internal"
                    settled = True
                    await self.release(reservation, forget=reservation.is_fresh and not maybe_started)
                    raise
                headers = problem_headers(call.envelope, problem, status, len(body))
                pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
                kept = KeptAnswer(status, _keep(pairs), body.decode())
                settled = True
                await self.accept(reservation, kept)
                raise
            settled = True
            await self.accept(reservation, kept)
            return response
        finally:
            if not settled:
                await self.release(reservation, forget=False)

    def _reserve(self, scope: str, key: str, digest: str) -> Reservation:
        for _ in range(3):  # each further round follows somebody else's change of the row
            at = now()
            fresh = new_id()
            inserted = self._changed(
                "INSERT INTO idempotency (scope, idempotency_key, digest, execution_id, holder, reserved_at,"
                " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (scope, idempotency_key) DO NOTHING",
                (scope, key, digest, fresh, self._holder, at, at + self._kept_micros),
            )
            if inserted:
                return Reservation(scope, key, fresh, is_fresh=True)
            row = self._row(scope, key)
            if row is None:
                continue
            if row.expires_at <= at:
                self._store.execute(
                    "DELETE FROM idempotency WHERE scope = ? AND idempotency_key = ? AND expires_at = ?",
                    (scope, key, row.expires_at),
                )
                continue
            if row.digest != digest:
                raise Problem("idempotency_key_reused")
            if row.answer is not None:
                answer = msgspec.json.decode(row.answer, type=KeptAnswer)
                return Reservation(scope, key, row.execution_id, answer)
            # Ours, yet not in flight: left behind by a start whose outcome was unknown.
            if row.holder != self._holder and row.reserved_at > at - LEASE_SECONDS * SECOND:
                raise Problem("idempotency_in_progress", retry_after=1)
            taken = self._changed(
                "UPDATE idempotency SET holder = ?, reserved_at = ? WHERE scope = ? AND idempotency_key = ?"
                " AND holder = ? AND reserved_at = ? AND answer IS NULL",
                (self._holder, at, scope, key, row.holder, row.reserved_at),
            )
            if taken:
                return Reservation(scope, key, row.execution_id)
        raise Problem("idempotency_in_progress", retry_after=1)

    def _changed(self, sql: str, params: Sequence[object]) -> int:
        """Rows the statement wrote or deleted."""
        with self._store.transaction() as transaction:
            return len(transaction.query(f"{sql} RETURNING 1", params))

    def _row(self, scope: str, key: str) -> _Row | None:
        rows = self._store.query(
            "SELECT digest, execution_id, holder, reserved_at, expires_at, answer FROM idempotency"
            " WHERE scope = ? AND idempotency_key = ?",
            (scope, key),
        )
        return msgspec.convert(rows[0], _Row) if rows else None

    def purge(self) -> int:
        """Delete expired rows, in batches so that no writer waits long. Blocks."""
        total = 0
        while True:
            deleted = self._changed(
                "DELETE FROM idempotency WHERE (scope, idempotency_key) IN"
                " (SELECT scope, idempotency_key FROM idempotency WHERE expires_at <= ? LIMIT ?)",
                (now(), PURGE_BATCH),
            )
            total += deleted
            if deleted < PURGE_BATCH:
                return total

    async def purge_regularly(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY_SECONDS)
            await asyncio.to_thread(self.purge)


def request_digest(*parts: bytes) -> str:
    """A digest of what makes two requests the same; parts can't run into each other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def replayed(answer: KeptAnswer) -> Response:
    headers = {**dict(answer.headers), "idempotency-replayed": "true"}
    return Response(answer.body, answer.status, headers)


def _kept(response: Response) -> KeptAnswer:
    body = bytes(response.body).decode()
    return KeptAnswer(response.status_code, _keep(tuple(response.headers.items())), body)


def _keep(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name in _KEPT_HEADERS)
