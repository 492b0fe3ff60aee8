"""Queues of a real server: one tenant's flood holds up nobody, and `kill -9` frees no slot that is held."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from projections.store import ReadStore
from runtime import events
from runtime.event_log import EventLog
from runtime.events import Event
from runtime.verification import pages, verify
from tests.cli.command import heliograph
from tests.contracts.executions.wire import start, wait_for
from tests.contracts.live_server import flow, poll
from tests.faults.server import FaultyServer
from tests.sandbox import Sandbox

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance]

PLACES = 4
FLOOD = 2_000
FEW = 10
LIMIT = 2

SHORT = flow("short", {"id": "rest", "kind": "sleep", "seconds": 0.05})
KEYED = flow(
    "keyed",
    {"id": "rest", "kind": "sleep", "seconds": 0.2},
    {"id": "rest_more", "kind": "sleep", "seconds": 0.2, "needs": ["rest"]},
    queue={"key": "{{ inputs.key }}", "concurrency": LIMIT},
)
GATED = flow(
    "gated",
    {"id": "gate", "kind": "wait_for_signal", "signal": "go"},
    queue={"concurrency": 1},
)


@pytest.fixture(scope="module")
def server(sandbox: Sandbox) -> Iterator[FaultyServer]:
    server = FaultyServer(sandbox.root / "queues", local=True, running_max=str(PLACES), shutdown_seconds="1")
    server.start()
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


def _is_waiting(shown: dict[str, Any]) -> bool:
    return shown["status"] == "waiting"


def events_of(log: EventLog, kinds: tuple[type[Event], ...]) -> list[Event]:
    found = (recorded.event() for recorded in pages(log.feed) if recorded.topic.startswith("execution."))
    return [event for event in found if isinstance(event, kinds)]


def test_a_keyed_queue_is_never_exceeded_however_often_the_server_dies(server: FaultyServer) -> None:
    server.publish(KEYED, GATED)
    with server.client() as client:
        refused = client.post("/v1/executions/keyed/async", json={"input_data": {}})
        assert (refused.status_code, "queue.key" in refused.text) == (422, True)
        held, waits = start(client, "gated"), start(client, "gated")
        ids = [start(client, "keyed", key=f"k{number % 2}") for number in range(12)]
        poll(client, f"/api/audit/executions/{held}", _is_waiting)
    for number in (1, 7):
        with server.client() as client:
            wait_for(client, ids[number], "COMPLETED")
        server.kill()
        server.start()
    with server.client() as client:
        for one in ids:
            wait_for(client, one, "COMPLETED")
        # Others came and went meanwhile; the one that waits for the slot still does, and is told why.
        shown = client.get(f"/api/audit/executions/{waits}").json()
        assert shown["status"] == "queued"
        assert shown["waits_for"] == "one of the 1 slots of its queue '*', 1 are held"
        [queue] = client.get("/api/admin/queues", params={"flow": "gated"}).json()["queues"]
        assert (queue["key"], queue["running"], queue["waiting"], queue["waits_for"]) == ("*", 1, 1, "slot")
        assert client.get("/api/admin/queues", params={"tenant": "nobody"}).json() == {"queues": []}
        shown_by = heliograph(server.folder, "queues", "--url", server.url, "--api-key", server.first_key)
        assert shown_by.out.split("\t")[:7] == ["default", "gated", "*", "1 of 1", "1", "", "a slot"], (
            shown_by
        )
    reader = server.make_key("run", "read", "audit")
    with server.client(reader) as client:
        assert client.get("/api/admin/queues").status_code == 403
    with server.client() as client:
        client.post(f"/api/admin/executions/{held}/signal", json={"name": "go"})
        poll(client, f"/api/audit/executions/{waits}", _is_waiting)
        client.post(f"/api/admin/executions/{waits}/signal", json={"name": "go"})
        wait_for(client, waits, "COMPLETED")
    with server.log() as log:
        assert verify(pages(log.feed), settled=True).violations == []
        assert _most_open(log) == {"gated": 1, "keyed": LIMIT}


def _most_open(log: EventLog) -> dict[str, int]:
    """By flow, how many executions of one of its queues were open at once, at most."""
    queue_of: dict[str, tuple[str, str]] = {}
    open_in: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    most: Counter[str] = Counter()
    for event in events_of(log, (events.Queued, events.Started, *events.TERMINAL_EVENTS)):
        if isinstance(event, events.Queued):
            queue_of[event.originator_id] = (event.flow_id, event.queue_key)
            continue
        queue = queue_of[event.originator_id]
        if isinstance(event, events.Started):
            open_in[queue].add(event.originator_id)
            most[queue[0]] = max(most[queue[0]], len(open_in[queue]))
        else:
            open_in[queue].discard(event.originator_id)
    return dict(most)


def test_a_flood_of_one_tenant_delays_another_by_a_bounded_number_of_starts(server: FaultyServer) -> None:
    for tenant in ("flood", "few"):
        server.publish(SHORT, tenant=tenant)
    many = server.make_key("run", "read", tenant="flood")
    few = server.make_key("run", "read", tenant="few")

    def start_some(count: int) -> None:
        with server.client(many) as client:
            for _ in range(count):
                start(client, "short")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start_some, [FLOOD // 4] * 4))
    with server.client(few) as client:
        ids = [start(client, "short") for _ in range(FEW)]
        for one in ids:
            wait_for(client, one, "COMPLETED")
    with server.log() as log:
        told = events_of(log, (events.Queued, events.Started))
        [(waiting,)] = ReadStore.over(log).query(
            "SELECT COUNT(*) FROM executions WHERE tenant = 'flood' AND started_at IS NULL"
        )
    assert waiting > FLOOD // 4, "the flood still waited when the few had ended"
    at = {(type(event), event.originator_id): place for place, event in enumerate(told)}
    for one in ids:
        queued, started = at[events.Queued, one], at[events.Started, one]
        between = [event for event in told[queued:started] if isinstance(event, events.Started)]
        others = [event for event in between if event.originator_id not in ids]
        assert len(others) <= FEW, "the tenants take turns, one start each"
