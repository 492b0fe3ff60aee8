"""What executions are said to wait for, from the table of executions alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import queues
from gateway.catalogue import Catalogue
from gateway.context import Gateway
from gateway.queues import QueueStatus
from projections import execution_summary
from projections.store import ReadStore
from runtime import events
from runtime.administration import Cause
from runtime.event_log import EventLog, store_env
from runtime.ids import SECOND, Micros
from tests.conformance.histories import START, Story

NOW = Micros(START + 30 * SECOND)


class Installation:
    """A store with flows and executions, and as much of a gateway as is asked here."""

    def __init__(self) -> None:
        self.log = EventLog.open(store_env("memory://"))
        store = ReadStore.over(self.log)
        catalogue = Catalogue(self.log, store)
        self.gateway = cast("Gateway", SimpleNamespace(store=store, catalogue=catalogue, clock=lambda: NOW))
        self.versions: dict[str, str] = {}
        self.count = 0

    def publish(self, flow_id: str, queue: Any) -> None:
        nodes = [{"id": "a", "kind": "template", "template": "x"}]
        document = {"heliograph": 1, "id": flow_id, "queue": queue, "nodes": nodes}
        cause = Cause(at=Micros(START))
        published = asyncio.run(self.gateway.catalogue.publish("acme", document, cause))
        self.versions[flow_id] = published.flow.version

    def execution(self, flow_id: str, started_at: int | None = None, **fields: Any) -> str:
        self.count += 1
        story = Story(self.count)
        about = {"flow_id": flow_id, "flow_version": self.versions[flow_id], "at": START + self.count}
        append = story.tell(story.queued(None, **{**about, **fields}))
        if started_at is not None:
            start = events.Started(
                originator_id=story.id, originator_version=2, at=START + started_at, queue_slot=self.count
            )
            append.events = (*append.events, *story.tell(start).events)
            append.state = story.state
        [outcome] = self.log.append([append])
        assert isinstance(outcome, tuple)
        return story.id

    def statuses(self, flow_id: str | None = None) -> list[QueueStatus]:
        return asyncio.run(queues.statuses(self.gateway, None, flow_id, 50))

    def waits_for(self, execution_id: str) -> str | None:
        row = execution_summary.get(self.gateway.store, execution_id)
        assert row is not None
        return asyncio.run(queues.waits_for(self.gateway, row))


@pytest.fixture
def installation() -> Iterator[Installation]:
    made = Installation()
    yield made
    made.log.close()


def test_a_short_queue_is_told_with_its_limit(installation: Installation) -> None:
    installation.publish("bound", {"concurrency": 1})
    running = installation.execution("bound", started_at=5, queue_key="*")
    first, second = (installation.execution("bound", queue_key="*", priority=each) for each in (0, 5))
    [status] = installation.statuses()
    assert (status.row.running, status.row.waiting, status.waits_for) == (1, 2, "slot")
    assert status.row.oldest_at == START + 2
    assert installation.waits_for(second) == "one of the 1 slots of its queue '*', 1 are held"
    assert installation.waits_for(first) == (
        "one of the 1 slots of its queue '*', 1 are held; 1 come before it"
    )
    assert installation.waits_for(running) is None


def test_a_rate_is_told_with_the_time_it_lets_the_next_start(installation: Installation) -> None:
    installation.publish("paced", {"rate": "2/minute"})
    for at in (10 * SECOND, 20 * SECOND):
        installation.execution("paced", started_at=at, queue_key="*")
    waiting = installation.execution("paced", queue_key="*")
    [status] = installation.statuses("paced")
    assert (status.window_starts, status.waits_for) == (2, "rate")
    assert status.next_start_at == START + 70 * SECOND
    assert installation.waits_for(waiting) == "the rate of its queue '*', 2/minute"


def test_starts_before_the_window_of_a_rate_do_not_count(installation: Installation) -> None:
    installation.publish("paced", {"rate": "1/second"})
    installation.execution("paced", started_at=10 * SECOND, queue_key="*")
    waiting = installation.execution("paced", queue_key="*")
    [status] = installation.statuses()
    assert (status.window_starts, status.next_start_at, status.waits_for) == (0, None, "place")
    assert installation.waits_for(waiting) == "a place on its host, first in its queue '*'"


def test_executions_without_a_key_wait_for_a_place(installation: Installation) -> None:
    installation.publish("plain", {"priority": 1})
    waiting = installation.execution("plain")
    [status] = installation.statuses()
    assert (status.row.queue_key, status.row.waiting, status.waits_for) == ("", 1, "place")
    assert installation.waits_for(waiting) == "a place on its host"


def test_the_queue_that_waits_longest_comes_first_and_idle_ones_last(installation: Installation) -> None:
    installation.publish("bound", {"concurrency": 9})
    installation.execution("bound", started_at=1, queue_key="idle")
    installation.execution("bound", queue_key="old")
    installation.execution("bound", queue_key="new")
    assert [status.row.queue_key for status in installation.statuses()] == ["old", "new", "idle"]
