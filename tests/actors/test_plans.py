"""What a host reads of a published flow agrees with the aggregate that wrote it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from actors.plans import Plans
from gateway.catalogue import Catalogue
from projections.store import ReadStore
from runtime.administration import Cause, fold_flow
from runtime.errors import NotFound
from runtime.event_log import EventLog, store_env
from runtime.ids import FlowId, Micros, TenantId, flow_stream

ACME, HELLO = TenantId("acme"), FlowId("hello")


def document(text: str) -> dict[str, Any]:
    return {"heliograph": 1, "id": "hello", "nodes": [{"id": "greet", "kind": "template", "template": text}]}


@pytest.fixture
def log() -> Iterator[EventLog]:
    opened = EventLog.open(store_env("memory://"))
    yield opened
    opened.close()


def test_a_disabled_flow_stays_disabled_when_it_is_published_again(log: EventLog) -> None:
    async def scenario() -> None:
        catalogue, plans = Catalogue(log, ReadStore.over(log)), Plans(log)
        cause = Cause(at=Micros(1))
        first = (await catalogue.publish(ACME, document("one"), cause)).flow
        await catalogue.disable(ACME, HELLO, cause)
        second = (await catalogue.publish(ACME, document("two"), cause)).flow
        with pytest.raises(NotFound, match="not published"):
            await plans.latest(ACME, HELLO)
        for flow in (first, second):
            plan = await plans.plan(ACME, HELLO, flow.plan.flow_version)
            assert plan.flow_version == flow.version, "what began goes on"
        await catalogue.enable(ACME, HELLO, cause)
        assert await plans.latest(ACME, HELLO) == second.version

    asyncio.run(scenario())
    state = fold_flow(one.event() for one in log.read(flow_stream(ACME, HELLO)))
    assert state is not None
    assert state.enabled
