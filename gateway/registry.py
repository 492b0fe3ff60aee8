"""The resources of the agent contracts, for every dialect: read, listed, changed.

What holds: whoever made a change here or in another gateway sees it in the next read, for the rows are
written in the transaction of the append. A change is decided on the row as it stands and appended behind that
version; when somebody was faster it is decided again. In this process the changes of one resource take their
turn, so only other gateways can be faster.

A name is claimed before its resource is created, in a table of its own whose primary key decides between two
gateways. A claim whose resource never came is open to others after ``CLAIM_SECONDS``; that of a deleted
resource at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast
from weakref import WeakValueDictionary

import msgspec

from gateway.context import new_id, now
from gateway.hops import Hops
from projections import resources
from projections.resources import LIST_MAX, ResourceRow
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.errors import Conflict, InvariantViolated, NotFound
from runtime.event_log import Append, Chain, EventLog
from runtime.events import Event, Json
from runtime.ids import SECOND, Micros, TenantId, resource_stream
from runtime.resources import ResourceState, evolve_resource
from runtime.resources import change as decide_change
from runtime.resources import create as decide_create
from runtime.resources import delete as decide_delete

ATTEMPTS_MAX = 16
"""Times one change is decided again because another gateway took its version; then ``Conflict``."""

PAUSE_SECONDS_MAX = 0.05
"""Longest pause before a change is decided again, so that gateways don't keep meeting."""

CLAIM_SECONDS = 60
"""How long a name is kept for a resource that isn't there yet."""

CREATE = (
    """
    CREATE TABLE IF NOT EXISTS resource_names (
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        resource_id TEXT NOT NULL,
        claimed_at BIGINT NOT NULL,
        PRIMARY KEY (tenant, kind, name)
    )
    """,
)
"""For the composition root. It decides who has a name; what a resource is called stands in its document."""

# A live resource keeps its name; one that is gone, or never came, gives it up.
_CLAIM = (
    "INSERT INTO resource_names (tenant, kind, name, resource_id, claimed_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (tenant, kind, name) DO UPDATE SET"
    " resource_id = excluded.resource_id, claimed_at = excluded.claimed_at"
    " WHERE resource_names.resource_id = excluded.resource_id"
    " OR EXISTS (SELECT 1 FROM resources r WHERE r.tenant = resource_names.tenant"
    " AND r.kind = resource_names.kind AND r.resource_id = resource_names.resource_id"
    " AND r.deleted_at IS NOT NULL)"
    " OR (resource_names.claimed_at <= ? AND NOT EXISTS (SELECT 1 FROM resources r"
    " WHERE r.tenant = resource_names.tenant AND r.kind = resource_names.kind"
    " AND r.resource_id = resource_names.resource_id))"
)


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One resource as it is now. Times in microseconds, UTC; ``created_by``: an API key's id."""

    tenant: str
    kind: str
    resource_id: str
    version: int
    document: dict[str, Json]
    created_at: int
    created_by: str
    updated_at: int


Decide = Callable[[ResourceState | None], Sequence[Event]]


class Registry:
    """Lives on the event loop; the store is read and written in ``threads`` threads each."""

    def __init__(
        self, log: EventLog, store: ReadStore, clock: Callable[[], Micros] = now, threads: int = 1
    ) -> None:
        self._log = log
        self._store = store
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reads, self._writes = Hops(threads), Hops(threads)

    def close(self) -> None:
        """Wait for what is under way."""
        self._reads.close()
        self._writes.close()

    # --- reading ----------------------------------------------------------------------------------------

    async def get(self, tenant: str, kind: str, resource_id: str) -> Resource | None:
        """None for one that never was, is deleted, or is another tenant's."""
        row = await self._reads.run(resources.get, self._store, tenant, kind, resource_id)
        return None if row is None or row.deleted_at is not None else _resource(row)

    async def get_shared(self, kind: str, resource_id: str) -> Resource | None:
        """One whose ``status`` is ``public``, whoever's it is."""
        row = await self._reads.run(resources.get_shared, self._store, kind, resource_id)
        return None if row is None else _resource(row)

    async def get_many(self, tenant: str, kind: str, ids: Sequence[str]) -> list[Resource]:
        """Those that exist, in the order of ``ids``, each once."""
        if not ids:
            return []
        rows = await self._reads.run(resources.get_many, self._store, tenant, kind, ids)
        return [_resource(row) for row in rows]

    async def listing(
        self,
        tenant: str,
        kind: str,
        *,
        limit: int = LIST_MAX,
        offset: int = 0,
        newest_first: bool = False,
        name: str | None = None,
        parent: str | None = None,
        labels: Collection[str] = (),
        run_statuses: Collection[str] = (),
        shared: bool = False,
    ) -> tuple[list[Resource], int]:
        """One page by age, and how many there are in all; at most ``LIST_MAX`` a page.

        ``name``: the document's ``name`` or ``title``, exactly. ``parent``: its field of that name.
        ``labels``: any of them is among its ``tags`` or ``categories``, in any case. ``run_statuses``: the
        status of the execution named by its ``latest_run``; ``""``: there is none. ``shared``: those of
        other tenants whose ``status`` is ``public`` too.
        """
        rows, total = await self._reads.run(
            resources.listing,
            self._store,
            tenant,
            kind,
            newest_first=newest_first,
            limit=limit,
            offset=offset,
            name=name,
            parent=parent,
            labels=labels,
            run_statuses=run_statuses,
            shared=shared,
        )
        return [_resource(row) for row in rows], total

    async def count(self, tenant: str, kind: str) -> int:
        return await self._reads.run(resources.count, self._store, tenant, kind)

    # --- changing ---------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str,
        kind: str,
        document: Mapping[str, Json],
        cause: Cause,
        resource_id: str | None = None,
    ) -> Resource:
        """Raises: AlreadyExists, also for the id of a deleted one; InvalidInput for a document too large."""
        owner, identity = TenantId(tenant), new_id() if resource_id is None else resource_id

        def decide(state: ResourceState | None) -> Sequence[Event]:
            return decide_create(state, owner, kind, identity, document, cause)

        return await self._change(owner, kind, identity, decide)

    async def change(
        self,
        tenant: str,
        kind: str,
        resource_id: str,
        decide: Callable[[Resource], Mapping[str, Json]],
        cause: Cause,
    ) -> Resource:
        """Give the fields that ``decide`` returns new values; it may raise, and nothing changes then.

        ``decide`` runs in a thread, and again with the newer resource whenever another gateway was faster,
        so it only looks at what it is given.

        Raises: NotFound; InvalidInput for a document too large; Conflict after many lost races.
        """

        def decided(state: ResourceState | None) -> Sequence[Event]:
            if state is None or state.deleted_at is not None:
                raise NotFound(f"{kind} not found")
            return decide_change(state, decide(_shown(state)), cause)

        return await self._change(TenantId(tenant), kind, resource_id, decided)

    async def delete(self, tenant: str, kind: str, resource_id: str, cause: Cause) -> Resource:
        """The resource as it was. Raises: NotFound, also for one that is deleted already."""

        def decide(state: ResourceState | None) -> Sequence[Event]:
            if state is None or state.deleted_at is not None:
                raise NotFound(f"{kind} not found")
            return decide_delete(state, cause)

        return await self._change(TenantId(tenant), kind, resource_id, decide)

    async def _change(self, tenant: TenantId, kind: str, resource_id: str, decide: Decide) -> Resource:
        stream = resource_stream(tenant, kind, resource_id)
        turn = self._turns.get(stream)
        if turn is None:
            turn = self._turns[stream] = asyncio.Lock()
        async with turn:
            state = await self._writes.run(self._append, tenant, kind, resource_id, stream, decide)
        return _shown(state)

    def _append(
        self, tenant: TenantId, kind: str, resource_id: str, stream: str, decide: Decide
    ) -> ResourceState:
        lost: Conflict | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                time.sleep(random.uniform(0, PAUSE_SECONDS_MAX))
            row = resources.get(self._store, tenant, kind, resource_id)
            state = None if row is None else _state(row, stream)
            decided = decide(state)
            if not decided:
                if state is None:
                    raise InvariantViolated(f"{stream}: a decision without a state")
                return state
            # The row is the fold of the stream up to its version: of the history only the last hash is left
            # to read, however long a resource lives.
            chain = Chain(self._head(stream, state.version) if state is not None else "")
            for event in decided:
                state = evolve_resource(state, event)
            [outcome] = self._log.append([Append(stream, decided, state, chain)])
            match outcome:
                case Conflict():
                    lost = outcome
                case InvariantViolated():
                    raise outcome
                case _:
                    return cast("ResourceState", state)
        raise lost or InvariantViolated("a change takes at least one attempt")

    def _head(self, stream: str, version: int) -> str:
        found = self._log.read(stream, version - 1, 1)
        if not found:
            raise InvariantViolated(f"{stream}: a row of version {version} without its event")
        return found[0].hash()

    # --- names ------------------------------------------------------------------------------------------

    async def claim_name(self, tenant: str, kind: str, name: str, resource_id: str) -> bool:
        """Whether the name is this resource's from now on. Claiming it again is harmless.

        Create the resource (or change its name) within ``CLAIM_SECONDS``; a name that is unique in any case
        is claimed in lower case.
        """
        return await self._writes.run(self._claim, tenant, kind, name, resource_id)

    def _claim(self, tenant: str, kind: str, name: str, resource_id: str) -> bool:
        at = self._clock()
        with self._store.transaction() as transaction:
            lapsed = at - CLAIM_SECONDS * SECOND
            transaction.execute(_CLAIM, (tenant, kind, name, resource_id, at, lapsed))
            found = transaction.query(
                "SELECT resource_id FROM resource_names WHERE tenant = ? AND kind = ? AND name = ?",
                (tenant, kind, name),
            )
        return bool(found) and found[0][0] == resource_id

    async def release_name(self, tenant: str, kind: str, name: str, resource_id: str) -> None:
        """Nothing when it is another resource's."""
        await self._writes.run(
            self._store.execute,
            "DELETE FROM resource_names WHERE tenant = ? AND kind = ? AND name = ? AND resource_id = ?",
            (tenant, kind, name, resource_id),
        )


def _resource(row: ResourceRow) -> Resource:
    return Resource(
        tenant=row.tenant,
        kind=row.kind,
        resource_id=row.resource_id,
        version=row.version,
        document=_document(row),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
    )


def _shown(state: ResourceState) -> Resource:
    return Resource(
        tenant=state.tenant,
        kind=state.kind,
        resource_id=state.resource_id,
        version=state.version,
        document=state.document,
        created_at=state.created_at,
        created_by=state.created_by,
        updated_at=state.updated_at,
    )


def _state(row: ResourceRow, stream: str) -> ResourceState:
    return ResourceState(
        originator_id=stream,
        version=row.version,
        tenant=TenantId(row.tenant),
        kind=row.kind,
        resource_id=row.resource_id,
        document=_document(row),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
    )


def _document(row: ResourceRow) -> dict[str, Any]:
    return msgspec.json.decode(row.document, type=dict[str, Any])
