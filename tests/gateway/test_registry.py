"""The registry on real stores: what it shows, what it refuses, and two of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.registry import CLAIM_SECONDS, CREATE, Registry, Resource
from projections.inline_rebuild import check
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.errors import AlreadyExists, InvalidInput, NotFound, Refused
from runtime.event_log import EventLog, store_env
from runtime.ids import SECOND, Micros, TenantId, resource_stream
from runtime.verification import pages, verify

Open = Callable[[], Registry]


class Clock:
    def __init__(self) -> None:
        self.at = Micros(1_000 * SECOND)

    def __call__(self) -> Micros:
        return self.at


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres), "memory"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    match request.param:
        case "sqlite":
            return store_env(f"sqlite:///{tmp_path}/log.db")
        case "postgres":
            return store_env(request.getfixturevalue("postgres_url"))
        case _:
            return store_env("memory://")


@pytest.fixture
def log(env: dict[str, str]) -> Iterator[EventLog]:
    opened = EventLog.open(env)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_registry(env: dict[str, str], log: EventLog, clock: Clock) -> Iterator[Open]:
    """Opens one with connections of its own, as another gateway has them."""
    opened: list[EventLog] = []

    def open_another() -> Registry:
        own = EventLog.open(env)
        opened.append(own)
        store = ReadStore.over(own)
        for statement in CREATE:
            store.execute(statement)
        return Registry(own, store, clock)

    yield open_another
    for one in opened:
        one.close()


@pytest.fixture
def registry(open_registry: Open) -> Registry:
    return open_registry()


def cause(at: int = 10, by: str = "key-1") -> Cause:
    return Cause(at=Micros(at), by=by, cause="req-1")


def document_of(resource: Resource | None) -> dict[str, Any]:
    assert resource is not None
    return resource.document


def test_a_change_shows_in_the_very_next_read_of_another_gateway(open_registry: Open) -> None:
    async def scenario() -> None:
        here, there = open_registry(), open_registry()
        made = await here.create("acme", "agent", {"name": "Ada"}, cause())
        assert await there.get("acme", "agent", made.resource_id) == made
        changed = await there.change(
            "acme", "agent", made.resource_id, lambda _: {"name": "Bo", "n": 1}, cause(20, "key-2")
        )
        assert (changed.version, changed.document, changed.updated_at) == (2, {"name": "Bo", "n": 1}, 20)
        assert (changed.created_by, changed.created_at) == ("key-1", 10)
        assert await here.get("acme", "agent", made.resource_id) == changed

    asyncio.run(scenario())


def test_every_change_is_recorded_with_who_made_it(registry: Registry, log: EventLog) -> None:
    async def scenario() -> None:
        await registry.create("acme", "skill", {"name": "x"}, cause(), "s1")
        await registry.change("acme", "skill", "s1", lambda _: {"name": "y"}, cause(20, "key-2"))
        await registry.change("acme", "skill", "s1", lambda _: {"name": "y"}, cause(30, "key-3"))
        await registry.delete("acme", "skill", "s1", cause(40, "key-4"))

    asyncio.run(scenario())
    history = log.read(resource_stream(TenantId("acme"), "skill", "s1"))
    assert [(one.topic, one.event().by, one.event().cause) for one in history] == [
        ("resource.created", "key-1", "req-1"),
        ("resource.changed", "key-2", "req-1"),
        ("resource.deleted", "key-4", "req-1"),
    ]
    assert verify(pages(lambda after, limit: log.feed(after, limit))).is_clean
    assert list(check(ReadStore.over(log))) == []


def test_a_deleted_resource_is_gone_for_good(registry: Registry) -> None:
    async def scenario() -> None:
        made = await registry.create("acme", "agent", {"name": "Ada"}, cause(), "a1")
        assert (await registry.delete("acme", "agent", "a1", cause())).document == made.document
        assert await registry.get("acme", "agent", "a1") is None
        assert await registry.get_many("acme", "agent", ["a1"]) == []
        assert await registry.listing("acme", "agent") == ([], 0)
        with pytest.raises(NotFound):
            await registry.delete("acme", "agent", "a1", cause())
        with pytest.raises(NotFound):
            await registry.change("acme", "agent", "a1", lambda _: {"a": 1}, cause())
        with pytest.raises(AlreadyExists):
            await registry.create("acme", "agent", {}, cause(), "a1")

    asyncio.run(scenario())


def test_tenants_and_kinds_do_not_see_each_other(registry: Registry) -> None:
    async def scenario() -> None:
        await registry.create("acme", "agent", {"name": "Ada"}, cause(), "same")
        await registry.create("acme", "skill", {"name": "Sk"}, cause(), "same")
        await registry.create("other", "agent", {"name": "Bo"}, cause(), "same")
        assert document_of(await registry.get("acme", "agent", "same")) == {"name": "Ada"}
        assert document_of(await registry.get("acme", "skill", "same")) == {"name": "Sk"}
        assert await registry.get("third", "agent", "same") is None
        assert [one.document["name"] for one in (await registry.listing("acme", "agent"))[0]] == ["Ada"]
        with pytest.raises(NotFound):
            await registry.change("third", "agent", "same", lambda _: {"name": "Eve"}, cause())
        assert await registry.get("acme", "agent", "a\x00b") is None

    asyncio.run(scenario())


def test_a_refused_change_changes_nothing(registry: Registry, log: EventLog) -> None:
    def refuse(resource: Resource) -> Mapping[str, Any]:
        raise Refused(f"not while {resource.document['name']}")

    async def scenario() -> None:
        await registry.create("acme", "agent", {"name": "Ada"}, cause(), "a1")
        with pytest.raises(Refused, match="not while Ada"):
            await registry.change("acme", "agent", "a1", refuse, cause())
        with pytest.raises(InvalidInput):
            await registry.change("acme", "agent", "a1", lambda _: {"x": "y" * 300_000}, cause())
        assert document_of(await registry.get("acme", "agent", "a1")) == {"name": "Ada"}

    asyncio.run(scenario())
    assert len(log.read("resource:acme:agent:a1")) == 1


def test_pages_follow_the_age_and_count_them_all(registry: Registry) -> None:
    async def scenario() -> None:
        for number in range(7):
            await registry.create("acme", "task", {"n": number}, cause(at=100 + number // 2), f"t{number}")
        oldest, total = await registry.listing("acme", "task", limit=3)
        newest, _ = await registry.listing("acme", "task", limit=3, offset=2, newest_first=True)
        past, still = await registry.listing("acme", "task", limit=3, offset=50)
        assert ([one.resource_id for one in oldest], total) == (["t0", "t1", "t2"], 7)
        assert [one.resource_id for one in newest] == ["t4", "t3", "t2"]
        assert (past, still) == ([], 7)
        assert await registry.count("acme", "task") == 7

    asyncio.run(scenario())


def test_lists_are_filtered_by_name_parent_and_label(registry: Registry) -> None:
    async def scenario() -> None:
        for identity, document in {
            "s1": {"name": "One", "tags": ["Web", "50%"], "parent": "p1"},
            "s2": {"title": "Two", "categories": ["web-site"], "parent": "p2"},
            "s3": {"name": "One", "tags": "web", "parent": 3},
            "s4": {"tags": ['we"b', "\x00"]},
        }.items():
            await registry.create("acme", "skill", document, cause(), identity)

        async def ids(**filters: Any) -> list[str]:
            found, total = await registry.listing("acme", "skill", **filters)
            assert total == len(found)
            return [one.resource_id for one in found]

        assert await ids(name="One") == ["s1", "s3"]
        assert await ids(name="Two") == ["s2"]
        assert await ids(parent="p2") == ["s2"]
        assert await ids(labels=["WEB"]) == ["s1"], "a whole tag, in any case; only of a list of tags"
        assert await ids(labels=["web-site", "50%", "5_%"]) == ["s1", "s2"]
        assert await ids(labels=['we"b']) == ["s4"]
        assert await ids(name="One", labels=["nothing"]) == []

    asyncio.run(scenario())


def test_many_are_read_in_the_order_asked_for(registry: Registry) -> None:
    async def scenario() -> None:
        for name in "abc":
            await registry.create("acme", "skill", {"name": name}, cause(), name)
        found = await registry.get_many("acme", "skill", ["c", "nope", "a", "c"])
        assert [one.resource_id for one in found] == ["c", "a"]
        assert await registry.get_many("acme", "skill", []) == []

    asyncio.run(scenario())


def test_public_ones_are_seen_by_every_tenant(registry: Registry) -> None:
    async def scenario() -> None:
        await registry.create("acme", "agent", {"status": "public"}, cause(1), "a1")
        await registry.create("acme", "agent", {"status": "private"}, cause(2), "a2")
        await registry.create("other", "agent", {"status": "draft"}, cause(3), "a3")
        found, total = await registry.listing("other", "agent", shared=True)
        assert ([one.resource_id for one in found], total) == (["a1", "a3"], 2)
        shared = await registry.get_shared("agent", "a1")
        assert shared is not None
        assert shared.tenant == "acme"
        assert await registry.get_shared("agent", "a2") is None
        await registry.delete("acme", "agent", "a1", cause())
        assert await registry.get_shared("agent", "a1") is None

    asyncio.run(scenario())


def test_two_gateways_that_change_one_resource_lose_no_change(open_registry: Open) -> None:
    def add(number: int) -> Callable[[Resource], Mapping[str, Any]]:
        return lambda resource: {"seen": [*resource.document["seen"], number]}

    async def scenario() -> Resource | None:
        here, there = open_registry(), open_registry()
        await here.create("acme", "conversation", {"seen": []}, cause(), "c1")
        await asyncio.gather(
            *(
                (here if number % 2 else there).change("acme", "conversation", "c1", add(number), cause())
                for number in range(12)
            )
        )
        return await here.get("acme", "conversation", "c1")

    found = asyncio.run(scenario())
    assert found is not None
    assert sorted(found.document["seen"]) == list(range(12))
    assert found.version == 13


def test_one_of_two_gateways_creates_an_id(open_registry: Open) -> None:
    async def scenario() -> tuple[object, object]:
        here, there = open_registry(), open_registry()
        return await asyncio.gather(
            here.create("acme", "agent", {"by": "here"}, cause(), "a1"),
            there.create("acme", "agent", {"by": "there"}, cause(), "a1"),
            return_exceptions=True,
        )

    outcomes = asyncio.run(scenario())
    assert sorted(type(one).__name__ for one in outcomes) == ["AlreadyExists", "Resource"]


def test_one_of_two_gateways_gets_a_name(open_registry: Open) -> None:
    async def scenario() -> None:
        here, there = open_registry(), open_registry()
        got = await asyncio.gather(
            here.claim_name("acme", "agent", "ada", "a1"), there.claim_name("acme", "agent", "ada", "a2")
        )
        assert sorted(got) == [False, True]
        winner = "a1" if got[0] else "a2"
        assert await there.claim_name("acme", "agent", "ada", winner), "claiming it again is harmless"
        assert await there.claim_name("other", "agent", "ada", "a3"), "another tenant has names of its own"

    asyncio.run(scenario())


def test_a_name_is_free_again_once_released_deleted_or_never_used(registry: Registry, clock: Clock) -> None:
    async def scenario() -> None:
        claim = registry.claim_name
        assert await claim("acme", "agent", "released", "a1")
        await registry.release_name("acme", "agent", "released", "somebody-else")
        assert not await claim("acme", "agent", "released", "a2")
        await registry.release_name("acme", "agent", "released", "a1")
        assert await claim("acme", "agent", "released", "a2")

        await registry.create("acme", "agent", {"name": "deleted"}, cause(), "a3")
        assert await claim("acme", "agent", "deleted", "a3")
        assert await claim("acme", "agent", "unused", "a4")
        clock.at = Micros(clock.at + CLAIM_SECONDS * SECOND - 1)
        assert not await claim("acme", "agent", "unused", "a5"), "its resource may still come"
        assert not await claim("acme", "agent", "deleted", "a5")
        clock.at = Micros(clock.at + 1)
        assert await claim("acme", "agent", "unused", "a5")
        assert not await claim("acme", "agent", "deleted", "a5"), "a live resource keeps its name for good"
        await registry.delete("acme", "agent", "a3", cause())
        assert await claim("acme", "agent", "deleted", "a5")

    asyncio.run(scenario())
