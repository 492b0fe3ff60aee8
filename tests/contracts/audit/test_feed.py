"""/api/audit/events over real sockets: everything recorded, as pages and as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import httpx_sse
import pytest

from tests.contracts.live_server import LiveServer, flow, poll

FEED = "/api/audit/events"
HELLO = flow("feed-hello", {"id": "greet", "kind": "template", "template": "Hello"})


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    live_server.publish(HELLO)
    live_server.publish(HELLO, tenant="feed-tenant")
    with live_server.client() as client:
        yield client


def has_ended(found: dict[str, Any]) -> bool:
    return found["ended_at"] is not None


def run(client: httpx.Client, watcher: httpx.Client) -> str:
    answer = client.post("/v1/executions/feed-hello/async", json={})
    assert answer.status_code == 202, answer.text
    execution_id: str = answer.json()["execution_id"]
    poll(watcher, f"/api/audit/executions/{execution_id}", has_ended)
    return execution_id


def pages(client: httpx.Client, after: int = 0, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    position: int | None = after
    while position is not None:
        page = client.get(FEED, params={"after": position, **query}).json()
        found += page["events"]
        assert page["next_after"] is None or page["next_after"] > position
        position = page["next_after"]
    return found


def last_position(client: httpx.Client) -> int:
    """The position up to which the feed was read."""
    found = pages(client, limit=1000)
    return int(found[-1]["position"])


def test_the_feed_holds_everything_in_the_order_of_the_log(admin: httpx.Client) -> None:
    before = last_position(admin)
    execution_id = run(admin, admin)
    found = pages(admin, before, limit=3)
    positions = [event["position"] for event in found]
    assert positions == sorted(set(positions))
    own = [event for event in found if event["stream"] == execution_id]
    assert [event["version"] for event in own] == list(range(1, len(own) + 1))
    assert own[-1]["type"] == "execution.completed"
    assert pages(admin, before, limit=1000)[: len(found)] == found


def test_the_feed_can_be_narrowed_to_types(admin: httpx.Client) -> None:
    before = last_position(admin)
    run(admin, admin)
    found = pages(admin, before, type="execution.queued,execution.completed")
    assert {event["type"] for event in found} == {"execution.queued", "execution.completed"}
    refused = admin.get(FEED, params={"type": "execution.dreamt"})
    assert refused.status_code == 422


def test_administration_is_in_the_feed_without_secrets(admin: httpx.Client) -> None:
    before = last_position(admin)
    made = admin.post("/api/admin/keys", json={"name": "audited", "scopes": ["read"]}).json()
    found = pages(admin, before)
    [created] = [event for event in found if event["type"] == "api_key.created"]
    assert created["by"] == "first"
    assert created["data"]["name"] == "audited"
    assert made["secret"] not in str(found)


def test_a_tenant_sees_its_own_events_only(admin: httpx.Client, live_server: LiveServer) -> None:
    before = last_position(admin)
    foreign = run(admin, admin)
    with live_server.client(live_server.make_key("run", "audit", tenant="feed-tenant")) as tenant:
        own = run(tenant, admin)
        found = pages(tenant, 0, limit=2)
        streams = {event["stream"] for event in found}
        assert own in streams
        assert "flow:feed-tenant:feed-hello" in streams
        assert foreign not in streams
        assert not any(stream.startswith("key:") for stream in streams)
        assert all(event["data"].get("tenant", "feed-tenant") == "feed-tenant" for event in found)
        assert tenant.get(FEED, params={"tenant": "default"}).status_code == 403
    narrowed = {event["stream"] for event in pages(admin, before, tenant="feed-tenant")}
    assert narrowed == {own}


def test_an_empty_page_says_up_to_where_it_is_complete(admin: httpx.Client) -> None:
    before = last_position(admin)
    page = admin.get(FEED, params={"after": before + 1_000_000}).json()
    assert page == {"events": [], "next_after": None, "last_position": before + 1_000_000}


def test_the_stream_replays_from_a_position_and_goes_on_live(admin: httpx.Client) -> None:
    before = last_position(admin)
    first = run(admin, admin)
    seen: list[dict[str, Any]] = []
    second = ""
    headers = {"Last-Event-ID": str(before)}
    with httpx_sse.connect_sse(admin, "GET", f"{FEED}/stream", headers=headers) as source:
        for event in source.iter_sse():
            if not event.data:
                continue
            record = event.json()
            assert int(event.id) == record["position"] > before
            seen.append(record)
            ended = record["type"] == "execution.completed"
            if ended and record["stream"] == first:
                second = run(admin, admin)
            elif ended and record["stream"] == second:
                break
    positions = [record["position"] for record in seen]
    assert positions == sorted(set(positions))
    assert seen == pages(admin, before, limit=1000)[: len(seen)]
