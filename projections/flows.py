"""Inline read model: each tenant's published flows (``flows``) and all their versions (``flow_versions``)."""

from typing import Any, cast

import msgspec

from projections.store import Reader, Row
from runtime.administration import FlowState

LIST_MAX = 1_000
"""Rows of one page."""


class FlowRow(msgspec.Struct, frozen=True):
    """``version`` is the latest flow version; ``enabled`` 0 or 1; times in microseconds, UTC."""

    tenant: str
    flow_id: str
    name: str
    version: str
    enabled: int
    created_at: int
    published_at: int
    published_by: str
    updated_at: int


class FlowVersionRow(msgspec.Struct, frozen=True):
    """``definition`` is JSON text."""

    tenant: str
    flow_id: str
    version: str
    definition: str
    published_at: int
    published_by: str


CREATE_FLOWS = (
    """
    CREATE TABLE IF NOT EXISTS flows (
        tenant TEXT NOT NULL,
        flow_id TEXT NOT NULL,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        enabled BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        published_at BIGINT NOT NULL,
        published_by TEXT NOT NULL,
        updated_at BIGINT NOT NULL,
        PRIMARY KEY (tenant, flow_id)
    )
    """,
)

CREATE_VERSIONS = (
    """
    CREATE TABLE IF NOT EXISTS flow_versions (
        tenant TEXT NOT NULL,
        flow_id TEXT NOT NULL,
        version TEXT NOT NULL,
        definition TEXT NOT NULL,
        published_at BIGINT NOT NULL,
        published_by TEXT NOT NULL,
        PRIMARY KEY (tenant, flow_id, version)
    )
    """,
)

UPSERT_FLOW = (
    "INSERT INTO flows"
    " (tenant, flow_id, name, version, enabled, created_at, published_at, published_by, updated_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, flow_id) DO UPDATE SET name = excluded.name,"
    " version = excluded.version, enabled = excluded.enabled, published_at = excluded.published_at,"
    " published_by = excluded.published_by, updated_at = excluded.updated_at"
)

# A version is immutable: publishing it again changes which one is the latest, not the version.
UPSERT_VERSION = (
    "INSERT INTO flow_versions (tenant, flow_id, version, definition, published_at, published_by)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, flow_id, version) DO NOTHING"
)


def flow_row(state: FlowState, position: int) -> Row:
    """Values in the order of ``FlowRow``. The flow's name is what its definition says, else its id."""
    name: object = ""
    if isinstance(state.definition, dict):
        name = cast("dict[str, Any]", state.definition).get("name")
    return (
        state.tenant,
        state.flow_id,
        name if isinstance(name, str) and name else state.flow_id,
        state.latest,
        1 if state.enabled else 0,
        state.created_at,
        state.published_at,
        state.published_by,
        state.updated_at,
    )


def version_row(state: FlowState, position: int) -> Row:
    """The version in force, in the order of ``FlowVersionRow``."""
    definition = msgspec.json.encode(state.definition).decode()
    return (
        state.tenant,
        state.flow_id,
        state.latest,
        definition,
        state.published_at,
        state.published_by,
    )


_SELECT_FLOW = f"SELECT {', '.join(FlowRow.__struct_fields__)} FROM flows"
_SELECT_VERSION = f"SELECT {', '.join(FlowVersionRow.__struct_fields__)} FROM flow_versions"


def get(store: Reader, tenant: str, flow_id: str) -> FlowRow | None:
    found = store.query(f"{_SELECT_FLOW} WHERE tenant = ? AND flow_id = ?", (tenant, flow_id))
    return FlowRow(*found[0]) if found else None


def get_version(store: Reader, tenant: str, flow_id: str, version: str) -> FlowVersionRow | None:
    where = " WHERE tenant = ? AND flow_id = ? AND version = ?"
    found = store.query(_SELECT_VERSION + where, (tenant, flow_id, version))
    return FlowVersionRow(*found[0]) if found else None


def versions(store: Reader, tenant: str, flow_id: str) -> list[FlowVersionRow]:
    """Newest first."""
    where = " WHERE tenant = ? AND flow_id = ? ORDER BY published_at DESC, version LIMIT ?"
    found = store.query(_SELECT_VERSION + where, (tenant, flow_id, LIST_MAX))
    return [FlowVersionRow(*values) for values in found]


def listing(store: Reader, tenant: str, after: str = "", limit: int = LIST_MAX) -> list[FlowRow]:
    """The tenant's flows by id, behind the id ``after``."""
    where = " WHERE tenant = ? AND flow_id > ? ORDER BY flow_id LIMIT ?"
    found = store.query(_SELECT_FLOW + where, (tenant, after, min(limit, LIST_MAX)))
    return [FlowRow(*values) for values in found]
