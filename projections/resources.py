"""Inline read model: the resources of the agent contracts, one row each, written with every change.

Deleted rows stay (their ids are used up) and are never listed. ``labels``, ``parent`` and ``shared`` are what
lists are filtered by; they come from the document, so that a rebuilt table equals the live one.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import msgspec

from projections.store import Reader, Row
from runtime.events import Json
from runtime.resources import ResourceState

TABLE = "resources"

LIST_MAX = 10_000
"""Rows of one listing, whatever was asked for."""

IDS_MAX = 500
"""Ids of one statement of ``get_many``."""

_encode = msgspec.json.Encoder().encode


class ResourceRow(msgspec.Struct, frozen=True):
    """``document`` is JSON text; ``labels`` a JSON list of its tags and categories, in lower case.

    ``name``: the document's ``name`` or ``title``. ``latest_run``, ``parent``: its fields of that name, or
    empty. ``shared`` 1: its ``status`` is ``public``. Times in microseconds, UTC; ``position`` of the last
    event.
    """

    tenant: str
    kind: str
    resource_id: str
    name: str
    document: str
    labels: str
    latest_run: str
    parent: str
    shared: int
    created_at: int
    created_by: str
    updated_at: int
    deleted_at: int | None
    version: int
    position: int


CREATE = (
    """
    CREATE TABLE IF NOT EXISTS resources (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        resource_id TEXT NOT NULL,
        name TEXT NOT NULL,
        document TEXT NOT NULL,
        labels TEXT NOT NULL,
        latest_run TEXT NOT NULL,
        parent TEXT NOT NULL,
        shared BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        updated_at BIGINT NOT NULL,
        deleted_at BIGINT,
        version BIGINT NOT NULL,
        position BIGINT NOT NULL,
        PRIMARY KEY (tenant, kind, resource_id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS resources_by_time ON resources (tenant, kind, created_at, resource_id)",
    "CREATE INDEX IF NOT EXISTS resources_by_parent ON resources (tenant, kind, parent, created_at)"
    " WHERE parent <> ''",
    "CREATE INDEX IF NOT EXISTS resources_shared ON resources (kind, resource_id) WHERE shared = 1",
)

_COLUMNS = ResourceRow.__struct_fields__
_FIXED = frozenset({"tenant", "kind", "resource_id", "created_at", "created_by"})
UPSERT = (
    f"INSERT INTO resources ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    " ON CONFLICT (tenant, kind, resource_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in _FIXED)
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM resources"


def row(state: ResourceState, position: int) -> Row:
    """Values in the order of ``ResourceRow``."""
    document = state.document
    return (
        state.tenant,
        state.kind,
        state.resource_id,
        _text(document.get("name")) or _text(document.get("title")),
        _encode(document).decode(),
        _encode([*_labels(document.get("tags")), *_labels(document.get("categories"))]).decode(),
        _text(document.get("latest_run")),
        _text(document.get("parent")),
        1 if document.get("status") == "public" and state.deleted_at is None else 0,
        state.created_at,
        state.created_by,
        state.updated_at,
        state.deleted_at,
        state.version,
        position,
    )


def _text(value: Json) -> str:
    """PostgreSQL's text can't hold NUL, and a document's may."""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else ""


def _labels(value: Json) -> list[str]:
    if not isinstance(value, list):
        return []
    return [one.lower() for one in cast("list[Any]", value) if isinstance(one, str)]


def get(store: Reader, tenant: str, kind: str, resource_id: str) -> ResourceRow | None:
    """Also a deleted one: whoever changes it needs to know."""
    where = " WHERE tenant = ? AND kind = ? AND resource_id = ?"
    found = store.query(_SELECT + where, (tenant, kind, _text(resource_id)))
    return ResourceRow(*found[0]) if found else None


def get_shared(store: Reader, kind: str, resource_id: str) -> ResourceRow | None:
    """A public one, whoever's it is."""
    where = " WHERE kind = ? AND resource_id = ? AND shared = 1"
    found = store.query(_SELECT + where, (kind, _text(resource_id)))
    return ResourceRow(*found[0]) if found else None


def get_many(store: Reader, tenant: str, kind: str, ids: Sequence[str]) -> list[ResourceRow]:
    """Those of ``ids`` that exist and aren't deleted, in the order of ``ids``, each once."""
    rows: dict[str, ResourceRow] = {}
    wanted = list(dict.fromkeys(map(_text, ids)))
    for start in range(0, len(wanted), IDS_MAX):
        batch = wanted[start : start + IDS_MAX]
        # Padded to a power of two, so that a handful of statements stay prepared.
        size = 1 << (len(batch) - 1).bit_length()
        batch += [batch[-1]] * (size - len(batch))
        marks = ", ".join("?" * size)
        where = f" WHERE tenant = ? AND kind = ? AND resource_id IN ({marks}) AND deleted_at IS NULL"
        for values in store.query(_SELECT + where, (tenant, kind, *batch)):
            rows[values[2]] = ResourceRow(*values)
    return [rows[one] for one in wanted if one in rows]


def listing(
    store: Reader,
    tenant: str,
    kind: str,
    *,
    newest_first: bool = False,
    limit: int = LIST_MAX,
    offset: int = 0,
    name: str | None = None,
    parent: str | None = None,
    labels: Collection[str] = (),
    run_statuses: Collection[str] = (),
    shared: bool = False,
) -> tuple[list[ResourceRow], int]:
    """One page by age, and how many there are in all.

    ``name``, ``parent``: exactly. ``labels``: any of them is among the tags or categories, in any case.
    ``run_statuses``: the latest run's status is one of them; ``""``: there is none. ``shared``: the
    public ones of other tenants too.
    """
    clauses = ["(tenant = ? OR shared = 1)" if shared else "tenant = ?", "kind = ?", "deleted_at IS NULL"]
    params: list[object] = [tenant, kind]
    if name is not None:
        clauses.append("name = ?")
        params.append(_text(name))
    if parent is not None:
        clauses.append("parent = ?")
        params.append(_text(parent))
    if labels:
        # Both stores compare in replace() as the texts are; LIKE would need the label escaped.
        has_label = "REPLACE(labels, ?, '') <> labels"
        clauses.append(f"({' OR '.join([has_label] * len(labels))})")
        params += [_encode(label.lower()).decode() for label in labels]
    if run_statuses:
        clause, more = _with_run(run_statuses)
        clauses.append(clause)
        params += more
    where = " AND ".join(clauses)
    direction = "DESC" if newest_first else "ASC"
    found = store.query(
        f"{_SELECT} WHERE {where} ORDER BY created_at {direction}, resource_id {direction} LIMIT ? OFFSET ?",
        (*params, max(0, min(limit, LIST_MAX)), max(0, offset)),
    )
    total = store.query(f"SELECT COUNT(*) FROM resources WHERE {where}", params)[0][0]
    return [ResourceRow(*values) for values in found], int(total)


def _with_run(statuses: Collection[str]) -> tuple[str, list[object]]:
    ways: list[str] = []
    named: list[object] = [status for status in statuses if status]
    if named:
        marks = ", ".join("?" * len(named))
        ways.append(
            "EXISTS (SELECT 1 FROM executions e WHERE e.execution_id = resources.latest_run"
            f" AND e.status IN ({marks}))"
        )
    if "" in statuses:
        # A run that was asked for and never came is none.
        ways.append("NOT EXISTS (SELECT 1 FROM executions e WHERE e.execution_id = resources.latest_run)")
    return f"({' OR '.join(ways)})", named


def count(store: Reader, tenant: str, kind: str) -> int:
    """Those that aren't deleted."""
    sql = "SELECT COUNT(*) FROM resources WHERE tenant = ? AND kind = ? AND deleted_at IS NULL"
    return int(store.query(sql, (tenant, kind))[0][0])


def count_children(
    store: Reader, tenants: Collection[str], kind: str, parents: Collection[str]
) -> dict[str, int]:
    """How many resources of ``tenants`` name each of ``parents`` as theirs; those without are left out."""
    if not tenants or not parents:
        return {}
    found = store.query(
        "SELECT parent, COUNT(*) FROM resources"
        f" WHERE tenant IN ({', '.join('?' * len(tenants))}) AND kind = ? AND deleted_at IS NULL"
        # The last condition is the partial index's own.
        f" AND parent IN ({', '.join('?' * len(parents))}) AND parent <> '' GROUP BY parent",
        (*tenants, kind, *parents),
    )
    return {parent: int(number) for parent, number in found}
