"""Inline read model: API keys, looked up by the hash of their secret."""

import msgspec

from projections.store import Reader, Row
from runtime.administration import ApiKeyState

LIST_MAX = 1_000
"""Rows of one page."""


class ApiKeyRow(msgspec.Struct, frozen=True):
    """``scopes`` is a JSON list; a limit of None is no limit; times in microseconds, UTC."""

    key_id: str
    key_hash: str
    tenant: str
    name: str
    scopes: str
    requests_per_minute: int | None
    open_streams_max: int | None
    unfinished_executions_max: int | None
    expires_at: int | None
    created_at: int
    created_by: str
    revoked_at: int | None


CREATE = (
    """
    CREATE TABLE IF NOT EXISTS api_keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        key_hash TEXT NOT NULL,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        requests_per_minute BIGINT,
        open_streams_max BIGINT,
        unfinished_executions_max BIGINT,
        expires_at BIGINT,
        created_at BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        revoked_at BIGINT
    )
    """,
    # Not unique: a second key of the same hash must never make an append fail.
    "CREATE INDEX IF NOT EXISTS api_keys_by_hash ON api_keys (key_hash)",
)

_COLUMNS = ApiKeyRow.__struct_fields__
UPSERT = (
    f"INSERT INTO api_keys ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    " ON CONFLICT (key_id) DO UPDATE SET revoked_at = excluded.revoked_at"
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM api_keys"


def row(state: ApiKeyState, position: int) -> Row:
    """Values in the order of ``ApiKeyRow``."""
    return (
        state.key_id,
        state.key_hash,
        state.tenant,
        state.name,
        msgspec.json.encode(state.scopes).decode(),
        state.requests_per_minute,
        state.open_streams_max,
        state.unfinished_executions_max,
        state.expires_at,
        state.created_at,
        state.created_by,
        state.revoked_at,
    )


def by_hash(store: Reader, key_hash: str) -> ApiKeyRow | None:
    """Also a revoked or expired key: the caller says why it refuses."""
    found = store.query(f"{_SELECT} WHERE key_hash = ? ORDER BY key_id LIMIT 1", (key_hash,))
    return ApiKeyRow(*found[0]) if found else None


def get(store: Reader, key_id: str) -> ApiKeyRow | None:
    found = store.query(f"{_SELECT} WHERE key_id = ?", (key_id,))
    return ApiKeyRow(*found[0]) if found else None


def listing(
    store: Reader, tenant: str | None = None, after: str = "", limit: int = LIST_MAX
) -> list[ApiKeyRow]:
    """Keys of one tenant, or of all, by id, behind the id ``after``."""
    where = " WHERE key_id > ?" + ("" if tenant is None else " AND tenant = ?") + " ORDER BY key_id LIMIT ?"
    chosen = () if tenant is None else (tenant,)
    found = store.query(_SELECT + where, (after, *chosen, min(limit, LIST_MAX)))
    return [ApiKeyRow(*values) for values in found]


def count(store: Reader) -> int:
    """All keys ever created; 0 on the first start of an installation."""
    return int(store.query("SELECT COUNT(*) FROM api_keys")[0][0])
