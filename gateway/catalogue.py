"""The published flows, compiled: the one catalogue behind every dialect.

What holds: a look-up answers from memory; what it says about the latest version is at most
``STALE_SECONDS`` old, and never older than a change made through this object. Versions are immutable, so
compiled ones are kept by version. An entry is refreshed by one reader at a time, however many ask; a refresh
that began before a change made here is not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from gateway.aggregates import change
from projections import flows, resources
from projections.flows import FlowRow, FlowVersionRow
from projections.store import ReadStore
from runtime import administration
from runtime.administration import Cause, FlowState
from runtime.errors import Diverged, InvalidGraph, InvariantViolated
from runtime.event_log import EventLog
from runtime.events import Event, Json
from runtime.flow import FlowDefinition, parse_flow
from runtime.graph import check_input, compile_flow
from runtime.ids import FlowId, TenantId, flow_stream
from runtime.plan import Plan

STALE_SECONDS = 1.0
"""How long a look-up is used; the bound on how late another gateway's publication shows here."""

COMPILED_MAX = 2_000
"""Compiled versions kept; the oldest goes first."""

LATEST_MAX = 20_000
"""Look-ups kept, those that found nothing too; the oldest goes first."""

PACKAGE = "package"
"""Kind of the resources that say whose an uploaded package of code is; their id is its hash."""

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class PublishedFlow(msgspec.Struct, frozen=True):
    """One version of a published flow, compiled."""

    tenant: TenantId
    definition: FlowDefinition
    plan: Plan

    @property
    def version(self) -> str:
        return self.definition.version

    def check_input(self, value: Json) -> Json:
        """The input as the execution gets it. Raises: InvalidInput."""
        check_input(self.definition, value)
        return value


class Publication(NamedTuple):
    """``changed``: False when this content was the latest version already."""

    state: FlowState
    flow: PublishedFlow
    changed: bool


class _Latest(NamedTuple):
    flow: PublishedFlow | None
    fresh_until: float


_Name = tuple[str, str]
"""Tenant and flow id."""


class Catalogue:
    """Lives on the event loop; the store is read, and flows are compiled, in threads."""

    def __init__(
        self, log: EventLog, store: ReadStore, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._store = store
        self._monotonic = monotonic
        self._latest: OrderedDict[_Name, _Latest] = OrderedDict()
        self._compiled: OrderedDict[tuple[str, str, str], PublishedFlow] = OrderedDict()
        self._refreshing: dict[_Name, asyncio.Task[PublishedFlow | None]] = {}

    # --- reading ----------------------------------------------------------------------------------------

    async def published(self, tenant: str, flow_id: str) -> PublishedFlow | None:
        """The latest version; None for a flow that is unknown to this tenant, or disabled."""
        name = (tenant, flow_id)
        latest = self._latest.get(name)
        if latest is not None and self._monotonic() < latest.fresh_until:
            return latest.flow
        task = self._refreshing.get(name)
        if task is None:
            task = asyncio.create_task(self._refresh(name))
            self._refreshing[name] = task
            task.add_done_callback(lambda done: self._refreshed(name, done))
        # Shielded: one request that is given up must not end the look-up others wait for.
        return await asyncio.shield(task)

    async def version(self, tenant: str, flow_id: str, flow_version: str) -> PublishedFlow | None:
        """That version, whether or not it is the latest, and also of a disabled flow."""
        known = self._compiled.get((tenant, flow_id, flow_version))
        if known is not None:
            return known
        return await asyncio.to_thread(self._load, tenant, flow_id, flow_version)

    async def listing(self, tenant: str, after: str = "", limit: int = flows.LIST_MAX) -> list[FlowRow]:
        """The tenant's flows by id, disabled ones too, behind the id ``after``."""
        return await asyncio.to_thread(flows.listing, self._store, tenant, after, limit)

    async def describe(self, tenant: str, flow_id: str) -> tuple[FlowRow, list[FlowVersionRow]] | None:
        """A flow and its versions, newest first; None when unknown."""
        row = await asyncio.to_thread(flows.get, self._store, tenant, flow_id)
        if row is None:
            return None
        return row, await asyncio.to_thread(flows.versions, self._store, tenant, flow_id)

    # --- changing ---------------------------------------------------------------------------------------

    @staticmethod
    async def validate(document: str | bytes | Mapping[str, Any]) -> tuple[FlowDefinition, Plan]:
        """Raises: InvalidGraph with every rule that is broken."""
        return await asyncio.to_thread(_compile, document)

    async def publish(
        self, tenant: str, document: str | bytes | Mapping[str, Any], cause: Cause
    ) -> Publication:
        """Make the document's content the latest version of the flow it names.

        Raises: InvalidGraph, also for a package of code that the tenant hasn't uploaded; Conflict after many
        lost races.
        """
        definition, plan = await self.validate(document)
        owner = TenantId(tenant)
        if plan.code is not None and plan.code.package:
            await asyncio.to_thread(self._check_package, tenant, plan.code.package)

        def decide(state: FlowState | None) -> tuple[Event, ...]:
            return administration.publish(
                state, owner, definition.id, definition.version, definition.document, cause
            )

        state, changed = await self._change(owner, definition.id, decide)
        flow = PublishedFlow(owner, definition, plan)
        self._keep((tenant, definition.id, definition.version), flow)
        return Publication(state, flow, changed)

    def _check_package(self, tenant: str, package: str) -> None:
        row = resources.get(self._store, tenant, PACKAGE, package)
        if row is None or row.deleted_at is not None:
            raise InvalidGraph((("", "code.package", "no package of this hash was uploaded"),))

    async def disable(self, tenant: str, flow_id: str, cause: Cause) -> FlowState:
        """Nothing can be started any more; what runs goes on. Raises: NotFound."""
        return await self._switch(tenant, flow_id, lambda state: administration.disable(state, cause))

    async def enable(self, tenant: str, flow_id: str, cause: Cause) -> FlowState:
        """Raises: NotFound."""
        return await self._switch(tenant, flow_id, lambda state: administration.enable(state, cause))

    async def _switch(
        self, tenant: str, flow_id: str, decide: Callable[[FlowState | None], tuple[Event, ...]]
    ) -> FlowState:
        state, _ = await self._change(TenantId(tenant), FlowId(flow_id), decide)
        return state

    async def _change(
        self, tenant: TenantId, flow_id: FlowId, decide: Callable[[FlowState | None], tuple[Event, ...]]
    ) -> tuple[FlowState, bool]:
        stream = flow_stream(tenant, flow_id)
        try:
            state, changed = await asyncio.to_thread(
                change, self._log, stream, administration.evolve_flow, decide
            )
        finally:
            # Also after a failure: whether the change took effect may be unknown then.
            self._forget((tenant, flow_id))
        if state is None:
            raise InvariantViolated(f"{stream}: a decision without a state")
        return state, changed

    # --- the caches -------------------------------------------------------------------------------------

    def _forget(self, name: _Name) -> None:
        self._latest.pop(name, None)
        # Those who wait for it asked before the change; whoever asks from now on starts anew.
        self._refreshing.pop(name, None)

    async def _refresh(self, name: _Name) -> PublishedFlow | None:
        task = asyncio.current_task()
        fresh_until = self._monotonic() + STALE_SECONDS
        flow = await asyncio.to_thread(self._load_latest, *name)
        if self._refreshing.get(name) is task:
            _put(self._latest, name, _Latest(flow, fresh_until), LATEST_MAX)
        return flow

    def _refreshed(self, name: _Name, task: asyncio.Task[PublishedFlow | None]) -> None:
        if self._refreshing.get(name) is task:
            del self._refreshing[name]
        if not task.cancelled():
            task.exception()  # retrieved here too, in case nobody waits any more

    def _load_latest(self, tenant: str, flow_id: str) -> PublishedFlow | None:
        row = flows.get(self._store, tenant, flow_id)
        if row is None or not row.enabled:
            return None
        return self._compiled.get((tenant, flow_id, row.version)) or self._load(tenant, flow_id, row.version)

    def _load(self, tenant: str, flow_id: str, version: str) -> PublishedFlow | None:
        row = flows.get_version(self._store, tenant, flow_id, version)
        if row is None:
            return None
        definition = FlowDefinition.from_document(msgspec.json.decode(row.definition))
        try:
            flow = PublishedFlow(TenantId(tenant), definition, compile_flow(definition))
        except InvalidGraph as error:
            # It was checked when it was published, so the rules have changed since.
            raise Diverged(f"flow {flow_id}, version {version}: this release can't run it: {error}") from None
        self._keep((tenant, flow_id, version), flow)
        return flow

    def _keep(self, key: tuple[str, str, str], flow: PublishedFlow) -> None:
        _put(self._compiled, key, flow, COMPILED_MAX)


def _put(cache: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT, most: int) -> None:
    """Each step is atomic under the interpreter's lock, so threads may call it."""
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)


def _compile(document: str | bytes | Mapping[str, Any]) -> tuple[FlowDefinition, Plan]:
    definition = parse_flow(document)
    return definition, compile_flow(definition)
