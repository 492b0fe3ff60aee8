"""API keys (gateway rule G2): who calls, for which tenant, and what the key allows.

A key's secret is 256 random bits, stored as its SHA-256; it is looked up by that hash, so the time of a
look-up tells nothing about any secret. Answers are kept for `STALE_SECONDS`, bad keys too: a revoked key
works for at most that long, and guessing costs the store one read for each new guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.envelopes import Problem
from projections import api_keys
from projections.api_keys import ApiKeyRow
from projections.store import ReadStore
from runtime.administration import Cause, create_key, fold_key
from runtime.errors import Conflict
from runtime.event_log import Append, Chain, EventLog
from runtime.ids import KeyId, Micros, TenantId, key_stream

STALE_SECONDS = 2.0
"""How long a look-up's answer is used; the bound on how late a revocation takes effect."""

CACHED_MAX = 10_000
"""Answers kept; past them the oldest is forgotten."""

SECRET_PREFIX = "hg_"
SECRET_CHARACTERS_MAX = 512
"""Longer than any key of ours; a longer header is refused before it is hashed."""

FIRST_KEY = KeyId("first")
"""The id of an installation's first key: two servers that start at once can't both create it."""

FIRST_TENANT = TenantId("default")

ADMIN, RUN, READ, AUDIT = "admin", "run", "read", "audit"
SCOPES = (ADMIN, RUN, READ, AUDIT)
"""`run` starts and cancels, `read` sees executions, `audit` sees every door's; `admin` allows all."""


class Caller(NamedTuple):
    """Whoever holds a key; ``name`` is the key's. A limit of None does not apply."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    requests_per_minute: int | None
    open_streams_max: int | None
    unfinished_executions_max: int | None
    name: str = ""


class NewKey(NamedTuple):
    """``secret`` is shown once and kept nowhere."""

    key_id: KeyId
    secret: str


class _Answer(NamedTuple):
    caller: Caller | None
    expires_at: int | None
    fresh_until: float


def key_hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def presented_secret(headers: Mapping[bytes, bytes]) -> str | None:
    """The secret of X-API-Key or Authorization: Bearer; None when absent, malformed, or two that differ."""
    plain = headers.get(b"x-api-key")
    bearer: bytes | None = None
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            bearer = rest.strip()
    if plain is not None and bearer is not None and not hmac.compare_digest(plain.strip(), bearer):
        return None
    given = plain.strip() if plain is not None else bearer
    if not given or len(given) > SECRET_CHARACTERS_MAX:
        return None
    return given.decode("latin-1")


class Keys:
    """Looks keys up for requests; creates the first one."""

    def __init__(self, log: EventLog, store: ReadStore) -> None:
        self._log = log
        self._store = store
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Raises: Problem unauthenticated, the same for missing, unknown, revoked and expired keys."""
        secret = presented_secret(headers)
        if secret is None:
            raise Problem("unauthenticated")
        digest = key_hash(secret)
        answers = self._answers
        answer = answers.get(digest)
        if answer is None or answer.fresh_until < time.monotonic():
            answer = await asyncio.to_thread(self._look_up, digest)
            answers[digest] = answer
            answers.move_to_end(digest)
            if len(answers) > CACHED_MAX:
                answers.popitem(last=False)
        if answer.caller is None:
            raise Problem("unauthenticated")
        if answer.expires_at is not None and answer.expires_at <= time.time_ns() // 1000:
            raise Problem("unauthenticated")
        return answer.caller

    def forget(self) -> None:
        """Drop kept answers, so that a change made by this process shows at once."""
        # A new dictionary: a look-up under way keeps what it read before the change in the old one.
        self._answers = OrderedDict()

    def _look_up(self, digest: str) -> _Answer:
        fresh_until = time.monotonic() + STALE_SECONDS
        row = api_keys.by_hash(self._store, digest)
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.key_hash, digest):
            return _Answer(None, None, fresh_until)
        return _Answer(_caller(row), row.expires_at, fresh_until)

    async def caller(self, key_id: str) -> Caller | None:
        """Who holds the key of this id, while it is in force; for what was signed on the key's behalf."""
        row = await asyncio.to_thread(api_keys.get, self._store, key_id)
        if row is None or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= time.time_ns() // 1000:
            return None
        return _caller(row)

    def ensure_first(self, at: Micros) -> NewKey | None:
        """Create the admin key of a new installation; None when there is a key already. Blocks."""
        if api_keys.count(self._store):
            return None
        secret = new_secret()
        events = create_key(
            None,
            FIRST_KEY,
            key_hash(secret),
            FIRST_TENANT,
            "first admin key",
            (ADMIN,),
            Cause(at=at),
        )
        [outcome] = self._log.append([Append(key_stream(FIRST_KEY), events, fold_key(events), Chain())])
        return None if isinstance(outcome, Conflict) else NewKey(FIRST_KEY, secret)


def _caller(row: ApiKeyRow) -> Caller:
    return Caller(
        row.key_id,
        row.tenant,
        frozenset(msgspec.json.decode(row.scopes, type=tuple[str, ...])),
        row.requests_per_minute,
        row.open_streams_max,
        row.unfinished_executions_max,
        row.name,
    )
