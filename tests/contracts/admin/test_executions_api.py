"""/api/admin/executions over real sockets: cancel, pause, resume, signal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer, flow, poll

ADMIN = "/api/admin/executions"
AUDIT = "/api/audit/executions"

WAITING = flow(
    "admin-waiting",
    {"id": "ask", "kind": "wait_for_signal", "signal": "approved"},
    {"id": "after", "kind": "select", "value": "${nodes.ask}"},
)


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    live_server.publish(WAITING)
    with live_server.client() as client:
        yield client


def has_status(status: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found["status"] == status


def start(admin: httpx.Client) -> str:
    answer = admin.post("/v1/executions/admin-waiting/async", json={})
    assert answer.status_code == 202, answer.text
    execution_id: str = answer.json()["execution_id"]
    poll(admin, f"{AUDIT}/{execution_id}", has_status("waiting"))
    return execution_id


def send(
    admin: httpx.Client, execution_id: str, verb: str, body: Any = None, **headers: str
) -> httpx.Response:
    return admin.post(f"{ADMIN}/{execution_id}/{verb}", json=body or {}, headers=headers)


def events(admin: httpx.Client, execution_id: str) -> list[dict[str, Any]]:
    return admin.get(f"{AUDIT}/{execution_id}/events", params={"limit": 1000}).json()["events"]


def test_a_signal_lets_the_waiting_node_go_on_with_its_payload(admin: httpx.Client) -> None:
    execution_id = start(admin)
    sent = send(admin, execution_id, "signal", {"name": "approved", "payload": {"by": "ada"}})
    assert sent.status_code == 200
    assert sent.json()["previous_status"] == "waiting"
    ended = poll(admin, f"{AUDIT}/{execution_id}", has_status("completed"))
    assert ended["output"] == {"by": "ada"}


def test_a_repeated_signal_is_recorded_once(admin: httpx.Client) -> None:
    execution_id = start(admin)
    for _ in range(2):
        sent = send(admin, execution_id, "signal", {"name": "other", "signal_id": "s-1"})
        assert sent.status_code == 200
    received = [
        event for event in events(admin, execution_id) if event["type"] == "execution.signal_received"
    ]
    assert len(received) == 1
    assert received[0]["by"] == "first"


def test_an_idempotency_key_makes_a_signal_one_signal(admin: httpx.Client) -> None:
    execution_id = start(admin)
    headers = {"Idempotency-Key": f"signal-{execution_id}"}
    first = send(admin, execution_id, "signal", {"name": "other"}, **headers)
    again = send(admin, execution_id, "signal", {"name": "other"}, **headers)
    assert first.json() == again.json()
    types = [event["type"] for event in events(admin, execution_id)]
    assert types.count("execution.signal_received") == 1


def test_pause_and_resume_are_recorded_and_shown(admin: httpx.Client) -> None:
    execution_id = start(admin)
    paused = send(admin, execution_id, "pause")
    assert paused.status_code == 200
    assert paused.json()["status"] == "paused"
    resumed = send(admin, execution_id, "resume")
    assert resumed.json()["previous_status"] == "paused"
    assert resumed.json()["status"] == "waiting"
    assert send(admin, execution_id, "resume").status_code == 409


def test_cancel_ends_an_execution_and_is_refused_after_the_end(admin: httpx.Client) -> None:
    execution_id = start(admin)
    cancelled = send(admin, execution_id, "cancel", {"reason": "wrong input"})
    assert cancelled.status_code == 200
    poll(admin, f"{AUDIT}/{execution_id}", has_status("cancelled"))
    [request] = [
        event for event in events(admin, execution_id) if event["type"] == "execution.cancellation_requested"
    ]
    assert request["data"]["reason"] == "wrong input"
    for verb, body in (("cancel", {}), ("pause", {}), ("signal", {"name": "approved"})):
        refused = send(admin, execution_id, verb, body)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "conflict"
        assert "cancel" in refused.json()["error"]["message"]


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "signal"])
def test_an_unknown_execution_is_not_found(admin: httpx.Client, verb: str) -> None:
    answer = send(admin, "not-a-uuid", verb, {"name": "x"} if verb == "signal" else {})
    assert answer.status_code == 404
    assert answer.json() == {"error": {"code": "execution_not_found", "message": "Execution not found."}}


def test_a_signal_needs_a_name(admin: httpx.Client) -> None:
    execution_id = start(admin)
    assert send(admin, execution_id, "signal").status_code == 422
    assert send(admin, execution_id, "signal", {"name": "", "x": 1}).status_code == 422


def test_messages_take_an_admin_key(admin: httpx.Client, live_server: LiveServer) -> None:
    execution_id = start(admin)
    with live_server.client(live_server.make_key("run", "read", "audit")) as client:
        assert send(client, execution_id, "cancel").status_code == 403
