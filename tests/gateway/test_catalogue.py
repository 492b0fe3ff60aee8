"""The catalogue over the in-memory store: what it answers, how old the answer may be, what it records."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import catalogue as catalogue_module
from gateway.catalogue import STALE_SECONDS, Catalogue
from projections import flows
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.errors import InvalidGraph, NotFound
from runtime.event_log import EventLog, store_env
from runtime.ids import FlowId, Micros, TenantId, flow_stream

TENANT = "acme"
STREAM = flow_stream(TenantId(TENANT), FlowId("hello"))


def document(text: str = "Hello") -> dict[str, Any]:
    return {"heliograph": 1, "id": "hello", "nodes": [{"id": "greet", "kind": "template", "template": text}]}


def cause(at: int = 1) -> Cause:
    return Cause(at=Micros(at), by="key-1", cause="request-1")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[EventLog]:
    opened = EventLog.open(store_env("memory://"))
    yield opened
    opened.close()


def catalogue_over(log: EventLog, clock: Clock) -> Catalogue:
    return Catalogue(log, ReadStore.over(log), clock)


@pytest.fixture
def catalogue(log: EventLog, clock: Clock) -> Catalogue:
    return catalogue_over(log, clock)


def test_a_published_flow_is_found_compiled(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        publication = await catalogue.publish(TENANT, document(), cause())
        found = await catalogue.published(TENANT, "hello")
        assert publication.changed
        assert found is not None
        assert found.version == publication.flow.version == found.plan.flow_version
        assert list(found.plan.steps) == ["greet"]

    asyncio.run(scenario())


def test_publishing_is_recorded_with_who_and_why(catalogue: Catalogue, log: EventLog) -> None:
    asyncio.run(catalogue.publish(TENANT, document(), cause(at=7)))
    [recorded] = log.read(STREAM)
    event = recorded.event()
    assert (recorded.topic, event.at, event.by, event.cause) == ("flow.published", 7, "key-1", "request-1")


def test_the_same_content_again_records_nothing_and_says_so(catalogue: Catalogue, log: EventLog) -> None:
    async def scenario() -> None:
        first = await catalogue.publish(TENANT, document(), cause())
        yaml = "id: hello\nheliograph: 1\nnodes: [{kind: template, template: Hello, id: greet}]\n"
        again = await catalogue.publish(TENANT, yaml, cause())
        assert not again.changed
        assert again.flow.version == first.flow.version

    asyncio.run(scenario())
    assert len(log.read(STREAM)) == 1


def test_new_content_is_a_new_version_and_the_old_one_stays_readable(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        old = (await catalogue.publish(TENANT, document("one"), cause())).flow
        new = (await catalogue.publish(TENANT, document("two"), cause())).flow
        latest = await catalogue.published(TENANT, "hello")
        pinned = await catalogue.version(TENANT, "hello", old.version)
        assert latest is not None
        assert pinned is not None
        assert latest.version == new.version != old.version
        assert pinned.definition == old.definition

    asyncio.run(scenario())


def test_an_older_content_can_be_made_the_latest_again(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        old = (await catalogue.publish(TENANT, document("one"), cause())).flow
        await catalogue.publish(TENANT, document("two"), cause())
        back = await catalogue.publish(TENANT, document("one"), cause())
        latest = await catalogue.published(TENANT, "hello")
        assert back.changed
        assert latest is not None
        assert latest.version == old.version
        described = await catalogue.describe(TENANT, "hello")
        assert described is not None
        assert len(described[1]) == 2

    asyncio.run(scenario())


def test_a_broken_definition_is_refused_by_node_field_and_rule(catalogue: Catalogue, log: EventLog) -> None:
    broken = document()
    broken["nodes"].append({"id": "next", "kind": "template", "template": "{{ nodes.gone }}"})
    with pytest.raises(InvalidGraph) as refused:
        asyncio.run(catalogue.publish(TENANT, broken, cause()))
    assert refused.value.problems == (("next", "template", "unknown node 'gone'"),)
    assert log.max_position() == 0


def test_a_disabled_flow_is_not_found_but_its_versions_are(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        flow = (await catalogue.publish(TENANT, document(), cause())).flow
        state = await catalogue.disable(TENANT, "hello", cause())
        assert not state.enabled
        assert await catalogue.published(TENANT, "hello") is None
        assert await catalogue.version(TENANT, "hello", flow.version) is not None
        await catalogue.enable(TENANT, "hello", cause())
        assert await catalogue.published(TENANT, "hello") is not None

    asyncio.run(scenario())


def test_publishing_does_not_switch_a_disabled_flow_on(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        await catalogue.publish(TENANT, document("one"), cause())
        await catalogue.disable(TENANT, "hello", cause())
        publication = await catalogue.publish(TENANT, document("two"), cause())
        assert publication.changed
        assert not publication.state.enabled
        assert await catalogue.published(TENANT, "hello") is None

    asyncio.run(scenario())


def test_an_unknown_flow_can_not_be_disabled(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound):
        asyncio.run(catalogue.disable(TENANT, "hello", cause()))


def test_another_tenants_flow_is_unknown(catalogue: Catalogue) -> None:
    async def scenario() -> None:
        flow = (await catalogue.publish(TENANT, document(), cause())).flow
        assert await catalogue.published("other", "hello") is None
        assert await catalogue.version("other", "hello", flow.version) is None
        assert await catalogue.describe("other", "hello") is None
        assert await catalogue.listing("other") == []

    asyncio.run(scenario())


def test_another_gateways_publication_shows_once_the_look_up_is_stale(log: EventLog, clock: Clock) -> None:
    here, there = catalogue_over(log, clock), catalogue_over(log, clock)

    async def scenario() -> None:
        assert await here.published(TENANT, "hello") is None
        published = (await there.publish(TENANT, document(), cause())).flow
        assert await here.published(TENANT, "hello") is None
        clock.now += STALE_SECONDS
        found = await here.published(TENANT, "hello")
        assert found is not None
        assert found.version == published.version

    asyncio.run(scenario())


def test_a_fresh_look_up_asks_nobody(
    catalogue: Catalogue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await catalogue.publish(TENANT, document(), cause())
        first = await catalogue.published(TENANT, "hello")
        monkeypatch.setattr(flows, "get", _refuse)
        clock.now += STALE_SECONDS * 0.99
        assert await catalogue.published(TENANT, "hello") is first

    asyncio.run(scenario())


def _refuse(*_: object) -> None:
    raise AssertionError("the store was asked")


def test_many_stale_look_ups_make_one_read(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = flows.get

    def counted(store: Any, tenant: str, flow_id: str) -> Any:
        reads.append(flow_id)
        return read(store, tenant, flow_id)

    async def scenario() -> None:
        await catalogue.publish(TENANT, document(), cause())
        monkeypatch.setattr(flows, "get", counted)
        found = await asyncio.gather(*(catalogue.published(TENANT, "hello") for _ in range(50)))
        assert all(flow is found[0] for flow in found)

    asyncio.run(scenario())
    assert reads == ["hello"]


def test_a_read_that_began_before_a_publication_is_not_kept(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    read = flows.get

    def slow(store: Any, tenant: str, flow_id: str) -> Any:
        row = read(store, tenant, flow_id)
        began.set()
        assert go_on.wait(30)
        return row

    async def scenario() -> None:
        old = (await catalogue.publish(TENANT, document("one"), cause())).flow
        monkeypatch.setattr(flows, "get", slow)
        early = asyncio.create_task(catalogue.published(TENANT, "hello"))
        assert await asyncio.to_thread(began.wait, 30)
        new = (await catalogue.publish(TENANT, document("two"), cause())).flow
        monkeypatch.setattr(flows, "get", read)
        go_on.set()
        asked_before, asked_after = await early, await catalogue.published(TENANT, "hello")
        assert asked_before is not None
        assert asked_after is not None
        assert (asked_before.version, asked_after.version) == (old.version, new.version)

    asyncio.run(scenario())


def test_a_look_up_given_up_does_not_end_the_one_others_wait_for(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    read = flows.get

    def slow(store: Any, tenant: str, flow_id: str) -> Any:
        began.set()
        assert go_on.wait(30)
        return read(store, tenant, flow_id)

    async def scenario() -> None:
        await catalogue.publish(TENANT, document(), cause())
        monkeypatch.setattr(flows, "get", slow)
        hasty = asyncio.create_task(catalogue.published(TENANT, "hello"))
        patient = asyncio.create_task(catalogue.published(TENANT, "hello"))
        assert await asyncio.to_thread(began.wait, 30)
        hasty.cancel()
        go_on.set()
        assert await patient is not None
        with pytest.raises(asyncio.CancelledError):
            await hasty

    asyncio.run(scenario())


def test_parallel_publications_of_one_flow_all_land(catalogue: Catalogue, log: EventLog) -> None:
    async def scenario() -> None:
        texts = [f"version {number}" for number in range(5)]
        made = await asyncio.gather(*(catalogue.publish(TENANT, document(text), cause()) for text in texts))
        latest = await catalogue.published(TENANT, "hello")
        assert latest is not None
        assert latest.version in {publication.flow.version for publication in made}
        assert all(publication.changed for publication in made)

    asyncio.run(scenario())
    assert [recorded.originator_version for recorded in log.read(STREAM)] == [1, 2, 3, 4, 5]


def test_the_caches_are_bounded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "LATEST_MAX", 2)
    reads: list[str] = []
    read = flows.get

    def counted(store: Any, tenant: str, flow_id: str) -> Any:
        reads.append(flow_id)
        return read(store, tenant, flow_id)

    async def scenario() -> None:
        monkeypatch.setattr(flows, "get", counted)
        for flow_id in ("a", "b", "c", "a"):
            assert await catalogue.published(TENANT, flow_id) is None

    asyncio.run(scenario())
    assert reads == ["a", "b", "c", "a"]
