"""/api/admin/batches over real sockets and real hosts: from a file to results, and everything in between."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx_sse
import msgspec
import pyarrow.parquet
import pytest

from tests.contracts.live_server import LiveServer, flow, poll

BATCHES = "/api/admin/batches"
EXECUTIONS = "/api/admin/executions"
AUDIT = "/api/audit/executions"

GREETING = flow(
    "batch-greeting",
    {"id": "greet", "kind": "template", "template": "Hello {{ inputs.who }}"},
    inputs={"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}}},
)
WAITING = flow(
    "batch-waiting",
    {"id": "ask", "kind": "wait_for_signal", "signal": "go"},
)
"""Each of its executions waits until it is told to go on."""

PICKY = flow(
    "batch-picky",
    {
        "id": "each",
        "kind": "map",
        "over": "inputs.items",
        "chunk": {"size": 2},
        "each": {"kind": "template", "template": "{{ 10 // item }}"},
    },
    output="${nodes.each}",
)
PEOPLE = b'{"who":"Ada"}\n{"who":7}\n{"who":"Grace"}\n'


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    live_server.publish(GREETING, WAITING, PICKY)
    with live_server.client() as client:
        yield client


def new_batch(admin: httpx.Client, **body: Any) -> str:
    answer = admin.post(BATCHES, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["batch_id"])


Holds = Callable[[dict[str, Any]], bool]


def until(admin: httpx.Client, batch_id: str, holds: Holds) -> dict[str, Any]:
    return poll(admin, f"{BATCHES}/{batch_id}", holds)


def runs(count: int) -> Holds:
    return lambda batch: batch["counts"]["running"] == count


def is_completed(execution: dict[str, Any]) -> bool:
    return execution["status"] == "completed"


def is_empty(page: dict[str, Any]) -> bool:
    return not page["executions"]


def has_ended(batch: dict[str, Any]) -> bool:
    return batch["status"] in ("completed", "failed", "cancelled")


def lines(admin: httpx.Client, batch_id: str) -> list[Any]:
    answer = admin.get(f"{BATCHES}/{batch_id}/results")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/jsonl")
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def children(admin: httpx.Client, batch_id: str, **query: Any) -> list[dict[str, Any]]:
    """The executions of its items."""
    params = {"correlation_id": batch_id, "source": "flow", "limit": 500, **query}
    return admin.get(AUDIT, params=params).json()["executions"]


def test_a_file_becomes_results_in_its_order_and_a_bad_row_a_failed_item(admin: httpx.Client) -> None:
    answer = admin.post(
        BATCHES, data={"flow": "batch-greeting", "name": "people"}, files={"inputs": ("people.jsonl", PEOPLE)}
    )
    assert answer.status_code == 201, answer.text
    batch_id = answer.json()["batch_id"]
    assert answer.headers["location"] == f"{BATCHES}/{batch_id}"
    ended = until(admin, batch_id, has_ended)
    assert ended["status"] == "completed"
    assert ended["name"] == "people"
    assert ended["counts"] == {
        "total": 3,
        "queued": 0,
        "running": 0,
        "completed": 2,
        "failed": 1,
        "cancelled": 0,
    }
    first, bad, last = lines(admin, batch_id)
    assert (first, last) == ({"index": 0, "output": "Hello Ada"}, {"index": 2, "output": "Hello Grace"})
    assert "who: the value is not of type" in bad["error"]["message"]
    [item] = admin.get(f"{BATCHES}/{batch_id}/items", params={"status": "failed"}).json()["items"]
    assert (item["index"], item["input"]) == (1, {"who": 7})
    assert item["error"] == bad["error"]
    # The bad row was never started.
    assert len(children(admin, batch_id)) == 2
    parquet: Any = pyarrow.parquet
    file = admin.get(f"{BATCHES}/{batch_id}/results", params={"format": "parquet"}).content
    assert parquet.read_table(io.BytesIO(file)).column("output").to_pylist() == [
        '"Hello Ada"',
        None,
        '"Hello Grace"',
    ]


def test_progress_is_streamed_to_the_end_and_resumes_behind_the_last_event(admin: httpx.Client) -> None:
    batch_id = new_batch(admin, flow="batch-greeting", inputs=[{"who": str(n)} for n in range(20)])
    with httpx_sse.connect_sse(admin, "GET", f"{BATCHES}/{batch_id}/events") as stream:
        events = [event for event in stream.iter_sse() if event.data]
    assert events
    last = events[-1].json()
    assert last["status"] == "completed"
    assert last["counts"]["completed"] == 20
    done = [event.json()["counts"]["completed"] for event in events]
    assert done == sorted(done)
    headers = {"Last-Event-ID": events[-1].id}
    with httpx_sse.connect_sse(admin, "GET", f"{BATCHES}/{batch_id}/events", headers=headers) as stream:
        assert [event for event in stream.iter_sse() if event.data] == []


def test_a_paused_batch_begins_no_item_until_it_is_resumed(admin: httpx.Client) -> None:
    batch_id = new_batch(admin, flow="batch-waiting", inputs=[{}] * 6, concurrency=2)
    running = until(admin, batch_id, runs(2))
    assert running["counts"]["queued"] == 4
    paused = admin.post(f"{BATCHES}/{batch_id}/pause", json={})
    assert paused.status_code == 200, paused.text
    assert paused.json()["status"] == "paused"
    for child in children(admin, batch_id):
        told = admin.post(f"{EXECUTIONS}/{child['execution_id']}/signal", json={"name": "go"})
        assert told.status_code == 200
    ended = until(admin, batch_id, lambda batch: bool(batch["counts"]["completed"] == 2))
    assert (ended["status"], ended["counts"]["queued"]) == ("paused", 4)
    assert len(children(admin, batch_id)) == 2
    resumed = admin.post(f"{BATCHES}/{batch_id}/resume", json={})
    assert resumed.json()["status"] == "running"
    until(admin, batch_id, runs(2))
    cancelled = admin.post(f"{BATCHES}/{batch_id}/cancel", json={"reason": "seen enough"})
    assert cancelled.status_code == 200
    ended = until(admin, batch_id, has_ended)
    assert ended["status"] == "cancelled"
    counts = ended["counts"]
    assert counts["completed"] + counts["failed"] + counts["cancelled"] == 6
    assert counts["completed"] == 2
    poll(admin, f"{AUDIT}?correlation_id={batch_id}&status=waiting", is_empty)
    again = admin.post(f"{BATCHES}/{batch_id}/pause", json={})
    assert again.status_code == 409


def test_failed_items_are_retried_in_a_further_round(admin: httpx.Client, live_server: LiveServer) -> None:
    batch_id = new_batch(admin, flow="batch-waiting", inputs=[{"n": n} for n in range(3)], concurrency=3)
    until(admin, batch_id, runs(3))
    first, *others = sorted(children(admin, batch_id), key=lambda child: str(child["created_at"]))
    admin.post(f"{EXECUTIONS}/{first['execution_id']}/signal", json={"name": "go", "payload": "done"})
    for child in others:
        admin.post(f"{EXECUTIONS}/{child['execution_id']}/cancel", json={})
    ended = until(admin, batch_id, has_ended)
    assert (ended["counts"]["completed"], ended["counts"]["failed"]) == (1, 2)
    headers = {"Idempotency-Key": f"retry-{batch_id}"}
    again = [admin.post(f"{BATCHES}/{batch_id}/retry-failed", json={}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in again] == [200, 200]
    assert len(again[1].json()["rounds"]) == 2
    until(admin, batch_id, runs(2))
    for child in children(admin, batch_id, status="waiting"):
        admin.post(f"{EXECUTIONS}/{child['execution_id']}/signal", json={"name": "go", "payload": "second"})
    whole = until(admin, batch_id, has_ended)
    assert (whole["counts"]["completed"], whole["counts"]["failed"]) == (3, 0)
    outputs = [line["output"] for line in lines(admin, batch_id)]
    assert sorted(outputs) == ["done", "second", "second"]
    assert admin.post(f"{BATCHES}/{batch_id}/retry-failed", json={}).status_code == 409


def test_a_source_that_can_not_be_read_fails_the_batch_and_says_why(admin: httpx.Client) -> None:
    batch_id = new_batch(admin, flow="batch-greeting", source="no/such/file.jsonl")
    ended = until(admin, batch_id, has_ended)
    assert ended["status"] == "failed"
    assert ended["error"]


def test_the_failed_items_of_a_flows_own_map_run_again_alone(admin: httpx.Client) -> None:
    started = admin.post(
        "/v1/executions/batch-picky/async", json={"input_data": {"items": [1, 0, 2, 0, 5]}}
    ).json()["execution_id"]
    poll(admin, f"{AUDIT}/{started}", is_completed)
    page = admin.get(f"{EXECUTIONS}/{started}/failed-items").json()
    assert [(item["index"], item["input"]) for item in page["items"]] == [(1, 0), (3, 0)]
    again = admin.post(f"{EXECUTIONS}/{started}/rerun-failed", json={})
    assert again.status_code == 202, again.text
    assert again.json()["items"] == 2
    ended = poll(admin, f"{AUDIT}/{again.json()['execution_id']}", is_completed)
    assert (ended["output"]["items"], ended["output"]["failed"]) == (2, 2)
