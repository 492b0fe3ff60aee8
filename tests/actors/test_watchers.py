"""The host's side of the feed: who gets what, and what happens at its bounds."""

import asyncio

import pytest

from actors import watchers
from actors.messages import Delta
from actors.watchers import Watchers
from runtime.codec import encode
from runtime.event_log import Recorded
from runtime.events import MessageRecorded
from runtime.ids import Position
from tests.actors.household import run


def event(execution_id: str, version: int, topic: str = "execution.node_started") -> Recorded:
    return Recorded(Position(version), execution_id, version, topic, b"{}")


def test_a_gateway_gets_the_events_of_what_it_watches_in_order() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.watch("g1", ["e1"])
        feed.watch("g2", ["e2"])
        feed.publish([event("e1", 1), event("e2", 1), event("e1", 2), event("e3", 1)])
        assert list((await feed.poll("g1", 0)).items) == [event("e1", 1), event("e1", 2)]
        assert (await feed.poll("g2", 0)).items == (event("e2", 1),)
        assert (await feed.poll("g1", 0)).items == ()

    run(story())


def test_a_poll_waits_for_news() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.watch("g1", ["e1"])
        poll = asyncio.ensure_future(feed.poll("g1", 60))
        await asyncio.sleep(0)
        feed.delta(Delta("e2", "n", "model-1", 0, "not watched"))
        assert not poll.done()
        feed.delta(Delta("e1", "n", "model-1", 0, "hello"))
        assert (await poll).items == (Delta("e1", "n", "model-1", 0, "hello"),)

    run(story())


def message(execution_id: str, version: int, step: str) -> Recorded:
    recorded = MessageRecorded(
        originator_id=execution_id, originator_version=version, at=1, node_id="n", step=step, role="assistant"
    )
    return Recorded(Position(version), execution_id, version, MessageRecorded.TOPIC, encode(recorded, ""))


def test_who_comes_late_gets_the_text_on_its_way_as_one_piece() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.delta(Delta("e1", "n", "model-1", 0, "hel"))
        feed.delta(Delta("e1", "n", "model-1", 3, "lo"))
        feed.watch("g1", ["e1"])
        feed.delta(Delta("e1", "n", "model-1", 5, "!"))
        assert (await feed.poll("g1", 0)).items == (
            Delta("e1", "n", "model-1", 0, "hello"),
            Delta("e1", "n", "model-1", 5, "!"),
        )

    run(story())


def test_text_that_is_in_the_log_is_not_told_to_who_comes_late() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.delta(Delta("e1", "n", "model-1", 0, "done"))
        feed.delta(Delta("e1", "n", "guard-1", 0, "on its way"))
        feed.delta(Delta("e2", "n", "model-1", 0, "gone"))
        feed.publish([message("e1", 2, "model-1"), event("e2", 2, "execution.completed")])
        feed.watch("g1", ["e1", "e2"])
        assert (await feed.poll("g1", 0)).items == (Delta("e1", "n", "guard-1", 0, "on its way"),)

    run(story())


def test_a_step_that_begins_again_voids_its_text() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.delta(Delta("e1", "n", "model-1", 0, "first try"))
        feed.delta(Delta("e1", "n", "model-1", 0, "second"))
        feed.watch("g1", ["e1"])
        assert (await feed.poll("g1", 0)).items == (Delta("e1", "n", "model-1", 0, "second"),)

    run(story())


def test_the_end_of_an_execution_ends_its_watch() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.watch("g1", ["e1"])
        feed.publish([event("e1", 1, "execution.completed")])
        feed.publish([event("e1", 2)])
        assert len((await feed.poll("g1", 0)).items) == 1

    run(story())


def test_an_unwatched_execution_is_no_longer_told() -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.watch("g1", ["e1", "e2"])
        feed.unwatch("g1", ["e1", "unknown"])
        feed.unwatch("nobody", ["e2"])
        feed.publish([event("e1", 1), event("e2", 1)])
        assert (await feed.poll("g1", 0)).items == (event("e2", 1),)

    run(story())


def test_at_the_bound_everything_waiting_is_dropped_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "WAITING_ITEMS_MAX", 10)

    async def story() -> None:
        feed = Watchers("i")
        feed.watch("slow", ["e1"])
        feed.watch("quick", ["e1"])
        for version in range(1, 9):
            feed.publish([event("e1", version)])
        assert len((await feed.poll("quick", 0)).items) == 8
        for version in range(9, 13):
            feed.publish([event("e1", version)])
        slow, quick = await feed.poll("slow", 0), await feed.poll("quick", 0)
        assert slow.lagged
        assert len(slow.items) <= 10
        assert not quick.lagged
        assert [item.originator_version for item in quick.items if isinstance(item, Recorded)] == [
            9,
            10,
            11,
            12,
        ]
        assert not (await feed.poll("slow", 0)).lagged

    run(story())


def test_a_silent_gateway_is_forgotten_and_learns_it_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        feed = Watchers("i")
        feed.watch("silent", ["e1"])
        feed.watch("other", ["e2"])
        before = (await feed.poll("silent", 0)).incarnation
        monkeypatch.setattr(watchers, "SILENT_SECONDS_MAX", -1.0)
        await feed.poll("other", 0)
        feed.publish([event("e1", 1)])
        assert not feed.has_news("silent")
        monkeypatch.setattr(watchers, "SILENT_SECONDS_MAX", 60.0)
        after = await feed.poll("silent", 0)
        assert after.items == ()
        assert after.incarnation != before, "its watches are gone, and it must send them again"

    run(story())


def test_every_waiting_poll_can_be_let_go() -> None:
    async def story() -> None:
        feed = Watchers("i")
        polls = [asyncio.ensure_future(feed.poll(name, 60)) for name in ("g1", "g2")]
        await asyncio.sleep(0)
        feed.wake_all()
        assert [batch.items for batch in await asyncio.gather(*polls)] == [(), ()]

    run(story())
