"""Published definitions, compiled once for each version and kept: versions never change."""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from runtime import events
from runtime.errors import Diverged, NotFound
from runtime.event_log import EventLog
from runtime.events import Json
from runtime.flow import FlowDefinition
from runtime.graph import compile_flow
from runtime.ids import FlowId, FlowVersion, TenantId, flow_stream
from runtime.inputs import check_input
from runtime.plan import Plan

PLANS_MAX = 1_000
"""Compiled plans kept; the one used longest ago goes first."""


class _Compiled(NamedTuple):
    definition: FlowDefinition
    plan: Plan


class Plans:
    """Lives on the host's loop; reading the log happens on a thread."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._plans: OrderedDict[tuple[TenantId, FlowId, FlowVersion], _Compiled] = OrderedDict()

    def known(self, tenant: TenantId, flow_id: FlowId, version: FlowVersion) -> Plan | None:
        """The plan if it is at hand: no I/O."""
        known = self._known(tenant, flow_id, version)
        return None if known is None else known.plan

    async def plan(self, tenant: TenantId, flow_id: FlowId, version: FlowVersion) -> Plan:
        """The plan of a published version, disabled or not: an execution keeps what it began with.

        Raises: NotFound for a version that was never published.
        """
        return (await self._compiled(tenant, flow_id, version)).plan

    async def check_input(self, tenant: TenantId, flow_id: FlowId, version: FlowVersion, value: Json) -> None:
        """Refuse what that version's input schema doesn't allow. Raises: InvalidInput; as ``plan``."""
        check_input((await self._compiled(tenant, flow_id, version)).definition, value)

    def _known(self, tenant: TenantId, flow_id: FlowId, version: FlowVersion) -> "_Compiled | None":
        key = (tenant, flow_id, version)
        known = self._plans.get(key)
        if known is not None:
            self._plans.move_to_end(key)
        return known

    async def _compiled(self, tenant: TenantId, flow_id: FlowId, version: FlowVersion) -> "_Compiled":
        known = self._known(tenant, flow_id, version)
        if known is not None:
            return known
        definitions, _ = await asyncio.to_thread(self._read, tenant, flow_id)
        if version not in definitions:
            raise NotFound(f"flow {flow_id} has no version {version}")
        definition = definitions[version]
        compiled = _Compiled(definition, await asyncio.to_thread(compile_flow, definition))
        self._plans[tenant, flow_id, version] = compiled
        if len(self._plans) > PLANS_MAX:
            self._plans.popitem(last=False)
        return compiled

    async def latest(self, tenant: TenantId, flow_id: FlowId) -> FlowVersion:
        """The version a new child execution gets.

        Raises: NotFound for a flow that is unknown or disabled.
        """
        _, latest = await asyncio.to_thread(self._read, tenant, flow_id)
        if latest is None:
            raise NotFound(f"flow {flow_id} is not published")
        return latest

    def _read(
        self, tenant: TenantId, flow_id: FlowId
    ) -> tuple[dict[FlowVersion, FlowDefinition], FlowVersion | None]:
        definitions: dict[FlowVersion, FlowDefinition] = {}
        latest: FlowVersion | None = None
        enabled = True
        for recorded in self._log.read(flow_stream(tenant, flow_id)):
            match recorded.event():
                case events.FlowPublished() as published:
                    latest = FlowVersion(published.flow_version)
                    definitions[latest] = FlowDefinition.from_document(published.definition)
                case events.FlowDisabled():
                    enabled = False
                case events.FlowEnabled():
                    enabled = True
                case other:
                    raise Diverged(f"{other.TOPIC} is no event of a flow")
        return definitions, latest if enabled else None
