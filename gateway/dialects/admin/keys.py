"""/api/admin/keys: create, list and revoke API keys."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from gateway.aggregates import change
from gateway.call import Call
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    LIMIT,
    TENANT_PATTERN,
    answer,
    body_of,
    broken,
    iso,
    iso_or_none,
    json_answer,
    json_request,
    page_size,
    parameter,
    refusal,
)
from gateway.idempotency import KeptAnswer, replayed, request_digest
from gateway.keys import ADMIN, SCOPES, key_hash, new_secret
from gateway.routes import Doc, Operation, Resource
from projections import api_keys
from projections.api_keys import ApiKeyRow
from projections.store import ReadStore
from runtime.administration import ApiKeyState, create_key, evolve_key, revoke_key
from runtime.errors import InvariantViolated, NotFound
from runtime.ids import SECOND, KeyId, Micros, TenantId, key_stream

PREFIX = "/api/admin/keys"
KEYS_MAX = 10_000
"""Keys of one installation, revoked ones too; one more is refused."""
LIFE_SECONDS_MAX = 100 * 365 * 86_400

Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None | msgspec.UnsetType


class LimitFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit that is absent gets the installation's default; null is no limit."""

    requests_per_minute: Limit = msgspec.UNSET
    open_streams_max: Limit = msgspec.UNSET
    unfinished_executions_max: Limit = msgspec.UNSET


class NewKeyFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tenant``: the creating key's own when absent. ``expires_in_seconds``: for good when absent."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    scopes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=20)]
    tenant: Annotated[str, msgspec.Meta(pattern=TENANT_PATTERN)] | None = None
    limits: LimitFields = LimitFields()
    expires_in_seconds: Annotated[int, msgspec.Meta(ge=1, le=LIFE_SECONDS_MAX)] | None = None


class Limits(msgspec.Struct, frozen=True):
    """Null is no limit."""

    requests_per_minute: int | None
    open_streams_max: int | None
    unfinished_executions_max: int | None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    limits: Limits
    state: str
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None


class CreatedKey(Key, frozen=True, kw_only=True):
    """``secret`` is shown in this answer only; null when the request is repeated by its Idempotency-Key."""

    secret: str | None


class KeyPage(msgspec.Struct, frozen=True):
    keys: list[Key]
    next_cursor: str | None


# One revocation after the other, so that two can't each take the other one for the last admin key. Across
# gateway processes the check is best effort: the keys are streams of their own.
_revoking = asyncio.Lock()


async def create_api_key(call: Call) -> Response:
    fields = await body_of(call, NewKeyFields)
    unknown = [scope for scope in fields.scopes if scope not in SCOPES]
    if unknown:
        raise broken("scopes", f"unknown scope '{unknown[0][:100]}'; there are {', '.join(SCOPES)}")
    digest = request_digest(msgspec.json.encode(fields))
    reservation = await call.gateway.idempotency.reserve(call, digest)
    if reservation is None:
        return answer(await _create(call, fields, call.gateway.new_id()), 201)
    if reservation.answer is not None:
        return replayed(reservation.answer)
    settled = False
    try:
        created = await _create(call, fields, reservation.execution_id)
        # What is kept for repeats has no secret: it must not rest anywhere.
        kept = msgspec.json.encode(msgspec.structs.replace(created, secret=None)).decode()
        settled = True
        await call.gateway.idempotency.accept(
            reservation, KeptAnswer(201, (("content-type", "application/json"),), kept)
        )
        return answer(created, 201)
    finally:
        if not settled:
            await call.gateway.idempotency.release(reservation, forget=True)


async def _create(call: Call, fields: NewKeyFields, key_id: str) -> CreatedKey:
    settings, cause = call.gateway.settings, cause_of(call)
    secret = new_secret()
    life = fields.expires_in_seconds
    known = await asyncio.to_thread(api_keys.count, call.gateway.store)
    if known >= KEYS_MAX:
        raise Problem("conflict", f"This installation has {KEYS_MAX} keys, revoked ones included.")
    state, _ = await asyncio.to_thread(
        change,
        call.gateway.log,
        key_stream(KeyId(key_id)),
        evolve_key,
        lambda state: create_key(
            state,
            KeyId(key_id),
            key_hash(secret),
            TenantId(fields.tenant or call.caller.tenant),
            fields.name,
            tuple(scope for scope in SCOPES if scope in fields.scopes),
            cause,
            requests_per_minute=_limit(fields.limits.requests_per_minute, settings.requests_per_minute),
            open_streams_max=_limit(fields.limits.open_streams_max, settings.open_streams_max),
            unfinished_executions_max=_limit(
                fields.limits.unfinished_executions_max, settings.unfinished_executions_max
            ),
            expires_at=None if life is None else Micros(cause.at + life * SECOND),
        ),
    )
    if state is None:
        raise InvariantViolated("a created key has a state")
    call.gateway.keys.forget()
    return CreatedKey(**_fields(state, cause.at), secret=secret)


def _limit(given: int | msgspec.UnsetType | None, default: int) -> int | None:
    return default if given is msgspec.UNSET else given


def _fields(key: ApiKeyState | ApiKeyRow, now: Micros) -> dict[str, Any]:
    scopes = key.scopes
    expired = key.expires_at is not None and key.expires_at <= now
    return {
        "key_id": key.key_id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": msgspec.json.decode(scopes, type=tuple[str, ...]) if isinstance(scopes, str) else scopes,
        "limits": Limits(key.requests_per_minute, key.open_streams_max, key.unfinished_executions_max),
        "state": "revoked" if key.revoked_at is not None else "expired" if expired else "active",
        "created_at": iso(key.created_at),
        "created_by": key.created_by,
        "expires_at": iso_or_none(key.expires_at),
        "revoked_at": iso_or_none(key.revoked_at),
    }


async def list_api_keys(call: Call) -> Response:
    limit = page_size(call)
    rows = await asyncio.to_thread(
        api_keys.listing, call.gateway.store, call.query("tenant"), call.query("cursor") or "", limit + 1
    )
    now = call.gateway.clock()
    page = [Key(**_fields(row, now)) for row in rows[:limit]]
    return answer(KeyPage(page, page[-1].key_id if len(rows) > limit else None))


async def revoke_api_key(call: Call) -> Response:
    key_id, cause = KeyId(call.path["key_id"]), cause_of(call)
    async with _revoking:
        try:
            state = await asyncio.to_thread(_revoke, call, key_id)
        except NotFound:
            raise Problem("key_not_found") from None
        finally:
            # Also when its outcome is unknown: the next request looks the key up again.
            call.gateway.keys.forget()
    return answer(Key(**_fields(state, cause.at)))


def _revoke(call: Call, key_id: KeyId) -> ApiKeyState:
    cause = cause_of(call)
    row = api_keys.get(call.gateway.store, key_id)
    if row is not None and row.revoked_at is None and _is_last_admin(call.gateway.store, row, cause.at):
        raise Problem("conflict", "The last admin key can't be revoked: create another one first.")
    state, _ = change(
        call.gateway.log, key_stream(key_id), evolve_key, lambda state: revoke_key(state, cause)
    )
    if state is None:
        raise InvariantViolated("a revoked key has a state")
    return state


def _is_last_admin(store: ReadStore, key: ApiKeyRow, now: Micros) -> bool:
    """Whether no other key could administer this installation for good, were ``key`` gone.

    A key that will expire doesn't count: it would lock everybody out later.
    """
    if ADMIN not in msgspec.json.decode(key.scopes, type=list[str]):
        return False
    found = store.query(
        "SELECT COUNT(*) FROM api_keys WHERE key_id <> ? AND revoked_at IS NULL AND expires_at IS NULL"
        " AND scopes LIKE ?",
        (key.key_id, f'%"{ADMIN}"%'),
    )
    usable = key.expires_at is None or key.expires_at > now
    return usable and int(found[0][0]) == 0


# --- documentation and routes ---------------------------------------------------------------------------

_KEY = {
    "key_id": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
    "name": "nightly import",
    "tenant": "default",
    "scopes": ["run", "read"],
    "limits": {"requests_per_minute": 600, "open_streams_max": 50, "unfinished_executions_max": 1000},
    "state": "active",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "created_by": "first",
    "expires_at": None,
    "revoked_at": None,
}
_NEW = {
    "name": "nightly import",
    "scopes": ["run", "read"],
    "limits": {"requests_per_minute": 1200, "unfinished_executions_max": None},
    "expires_in_seconds": 2_592_000,
}

RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": Operation(
                handler=list_api_keys,
                scope=ADMIN,
                doc=Doc(
                    summary="List API keys, without their secrets",
                    parameters=(
                        parameter("tenant", "Only this tenant's."),
                        LIMIT,
                        parameter("cursor", "The next_cursor of the page before."),
                    ),
                    answers={200: json_answer("One page", KeyPage, {"keys": [_KEY], "next_cursor": None})},
                ),
            ),
            "POST": Operation(
                handler=create_api_key,
                scope=ADMIN,
                doc=Doc(
                    summary="Create an API key",
                    description="The secret is in this answer only, and stored as a hash. A limit that is "
                    "absent gets the installation's default; null is no limit. A repeat by its "
                    "Idempotency-Key shows the key without the secret.",
                    request=json_request(NewKeyFields, _NEW),
                    answers={
                        201: json_answer(
                            "The key and its secret",
                            CreatedKey,
                            {**_KEY, "secret": "hg_Zk3yq0mS8v1bQWcT5uY7dRxJ2nLhAfPgEoKi9sVtBwM"},
                        ),
                        422: refusal(
                            "A field breaks a rule.",
                            "invalid_input",
                            "scopes: unknown scope 'write'; there are admin, run, read, audit",
                            [
                                {
                                    "field": "scopes",
                                    "rule": "unknown scope 'write'; there are admin, run, read, audit",
                                }
                            ],
                        ),
                    },
                ),
            ),
        },
    ),
    Resource(
        f"{PREFIX}/{{key_id}}",
        {
            "DELETE": Operation(
                handler=revoke_api_key,
                scope=ADMIN,
                doc=Doc(
                    summary="Revoke an API key",
                    description="At once in this process, within two seconds in others. Revoking it again "
                    "changes nothing.",
                    answers={
                        200: json_answer(
                            "The revoked key",
                            Key,
                            {**_KEY, "state": "revoked", "revoked_at": "2026-02-01T08:00:00.000000Z"},
                        ),
                        404: refusal("No such key.", "key_not_found", "API key not found."),
                        409: refusal(
                            "It is the last admin key.",
                            "conflict",
                            "The last admin key can't be revoked: create another one first.",
                        ),
                    },
                ),
            )
        },
    ),
)
