"""/api/audit/executions over real sockets: lists, timelines, events, past states; and who may see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx_sse
import pytest

from tests.contracts.live_server import LiveServer, flow, poll

AUDIT = "/api/audit/executions"

CHAIN = flow(
    "audit-chain",
    {"id": "greet", "kind": "template", "template": "Hello {{ inputs.name }}"},
    {"id": "shout", "kind": "select", "value": "${nodes.greet}"},
)
FLAKY = flow(
    "audit-flaky",
    {
        "id": "flaky",
        "kind": "template",
        "template": "{{ 1 // 0 if execution.attempt < 3 else 'third time' }}",
        "retry": {"attempts": 3, "backoff_seconds": 0.05, "jitter": 0},
    },
)
BROKEN = flow("audit-broken", {"id": "bad", "kind": "template", "template": "{{ 1 // inputs.zero }}"})
WAITING = flow("audit-waiting", {"id": "ask", "kind": "wait_for_signal", "signal": "go"})
MAPPED = flow(
    "audit-mapped",
    {
        "id": "each",
        "kind": "map",
        "over": "inputs.items",
        "each": {"kind": "template", "template": "{{ item }}"},
    },
)


LARGE = flow("audit-large", {"id": "big", "kind": "template", "template": "{{ 'x' * 200000 }}"})


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    live_server.publish(CHAIN, FLAKY, BROKEN, WAITING, MAPPED, LARGE)
    live_server.publish(CHAIN, tenant="audit-acme")
    with live_server.client() as client:
        yield client


def has_status(status: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found["status"] == status


def has_ended(found: dict[str, Any]) -> bool:
    return found["ended_at"] is not None


def start(client: httpx.Client, flow_id: str, **inputs: Any) -> str:
    answer = client.post(f"/v1/executions/{flow_id}/async", json={"input_data": inputs})
    assert answer.status_code == 202, answer.text
    execution_id: str = answer.json()["execution_id"]
    return execution_id


def ended(client: httpx.Client, execution_id: str) -> dict[str, Any]:
    return poll(client, f"{AUDIT}/{execution_id}", has_ended)


def all_events(client: httpx.Client, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = client.get(path, params={"after": after, "limit": limit}).json()
        found += page["events"]
        after = page["next_after"]
    return found


def streamed(client: httpx.Client, path: str, **headers: str) -> list[httpx_sse.ServerSentEvent]:
    with httpx_sse.connect_sse(client, "GET", path, headers=headers) as source:
        assert source.response.status_code == 200
        return [event for event in source.iter_sse() if event.data]


# --- one execution ----------------------------------------------------------------------------------------


def test_an_execution_is_shown_with_its_nodes(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    found = ended(admin, execution_id)
    assert (found["status"], found["progress"], found["source"]) == ("completed", 100.0, "executions")
    assert (found["input"], found["output"]) == ({"name": "Ada"}, "Hello Ada")
    assert [node["node_id"] for node in found["nodes"]] == ["greet", "shout"]
    for node in found["nodes"]:
        assert (node["status"], node["attempt"]) == ("completed", 1)
        assert node["started_at"] <= node["ended_at"]
        assert node["where"]
    assert found["created_by"] == "first"


def test_every_attempt_of_a_node_is_in_its_timeline(admin: httpx.Client) -> None:
    found = ended(admin, start(admin, "audit-flaky"))
    [node] = found["nodes"]
    assert (found["status"], found["retry_count"], node["attempt"]) == ("completed", 2, 3)
    assert [attempt["status"] for attempt in node["attempts"]] == ["failed", "failed", "completed"]
    assert [attempt["error"] is None for attempt in node["attempts"]] == [False, False, True]
    assert node["attempts"][0]["error"]["type"] == "ZeroDivisionError"
    assert node["attempts"][0]["retry_at"] <= node["attempts"][1]["started_at"]


def test_a_payload_that_is_kept_as_a_blob_is_shown_whole(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-large", note="y" * 100_000)
    found = ended(admin, execution_id)
    assert found["output"] == "x" * 200_000
    assert found["input"] == {"note": "y" * 100_000}
    state = admin.get(f"{AUDIT}/{execution_id}/state").json()["state"]
    assert state["output"] is None
    assert state["output_ref"]["size"] == 200_002


def test_a_failure_names_node_and_error(admin: httpx.Client) -> None:
    found = ended(admin, start(admin, "audit-broken", zero=0))
    assert (found["status"], found["failed_node"], found["output"]) == ("failed", "bad", None)
    assert found["error"]["type"] == "ZeroDivisionError"
    assert found["nodes"][0]["error"].startswith("ZeroDivisionError: ")


def test_the_items_of_a_map_are_counted(admin: httpx.Client) -> None:
    found = ended(admin, start(admin, "audit-mapped", items=["a", "b", "c"]))
    nothing_said = {"rate": None, "seconds_left": None}
    assert found["nodes"][0]["items"] == {"done": 3, "total": 3, "failed": 0, **nothing_said}


def test_a_waiting_node_says_what_it_waits_for(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-waiting")
    found = poll(admin, f"{AUDIT}/{execution_id}", has_status("waiting"))
    assert (found["nodes"][0]["status"], found["nodes"][0]["waits_for"]) == ("waiting", "go")
    assert found["ended_at"] is None


# --- events -----------------------------------------------------------------------------------------------


def test_events_come_in_pages_in_order_chained_by_hash(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    version = ended(admin, execution_id)["version"]
    whole = all_events(admin, f"{AUDIT}/{execution_id}/events", 1000)
    assert [event["version"] for event in whole] == list(range(1, version + 1))
    assert [event["position"] for event in whole] == sorted(event["position"] for event in whole)
    assert [event["prev"] for event in whole] == ["", *(event["hash"] for event in whole[:-1])]
    assert whole[0]["type"] == "execution.queued"
    assert whole[0]["data"]["input"] == {"name": "Ada"}
    assert whole[-1]["type"] == "execution.completed"
    for size in (1, 2, 3):
        assert all_events(admin, f"{AUDIT}/{execution_id}/events", size) == whole


def test_the_stream_of_an_ended_execution_replays_and_closes(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    ended(admin, execution_id)
    whole = all_events(admin, f"{AUDIT}/{execution_id}/events", 1000)
    sent = streamed(admin, f"{AUDIT}/{execution_id}/events/stream")
    assert [event.json() for event in sent] == whole
    assert [int(event.id) for event in sent] == [event["position"] for event in whole]


def test_a_cut_stream_resumes_behind_the_last_event_seen(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    ended(admin, execution_id)
    path = f"{AUDIT}/{execution_id}/events/stream"
    whole = streamed(admin, path)
    rest = streamed(admin, path, **{"Last-Event-ID": whole[2].id})
    by_query = streamed(admin, f"{path}?last_event_id={whole[2].id}")
    assert (
        [event.id for event in rest] == [event.id for event in by_query] == [event.id for event in whole[3:]]
    )


def test_a_stream_goes_on_live_to_the_end(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-waiting")
    seen: list[str] = []
    with httpx_sse.connect_sse(admin, "GET", f"{AUDIT}/{execution_id}/events/stream") as source:
        for event in source.iter_sse():
            if not event.data:
                continue
            seen.append(event.json()["type"])
            if seen[-1] == "execution.node_waiting":
                path = f"/api/admin/executions/{execution_id}/signal"
                assert admin.post(path, json={"name": "go"}).status_code == 200
    assert seen[-1] == "execution.completed"
    assert seen == [event["type"] for event in all_events(admin, f"{AUDIT}/{execution_id}/events", 100)]


# --- past states ------------------------------------------------------------------------------------------


def test_the_state_as_of_each_version_is_the_fold_of_the_events_so_far(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    latest = ended(admin, execution_id)["version"]
    path = f"{AUDIT}/{execution_id}/state"
    states = [admin.get(path, params={"version": n}).json() for n in range(1, latest + 1)]
    assert [state["version"] for state in states] == list(range(1, latest + 1))
    assert states[0]["state"]["status"] == "queued"
    assert states[0]["state"]["nodes"] == {}
    assert states[-1]["state"]["status"] == "completed"
    assert states[-1] == admin.get(path).json()
    progress = [state["state"]["progress"] for state in states]
    assert progress == sorted(progress)


def test_a_version_that_does_not_exist_yet_is_refused(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    ended(admin, execution_id)
    for version in ("999", "0", "x"):
        answer = admin.get(f"{AUDIT}/{execution_id}/state", params={"version": version})
        assert answer.status_code == 422
        assert answer.json()["error"]["details"][0]["field"] == "version"


# --- verification -----------------------------------------------------------------------------------------


def test_an_execution_is_verified(admin: httpx.Client) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    version = ended(admin, execution_id)["version"]
    found = admin.get(f"{AUDIT}/{execution_id}/verification").json()
    last = all_events(admin, f"{AUDIT}/{execution_id}/events", 1000)[-1]
    assert found == {
        "execution_id": execution_id,
        "ok": True,
        "events": version,
        "status": "completed",
        "head": last["hash"],
        "violations": [],
    }


# --- lists ------------------------------------------------------------------------------------------------


def listed(client: httpx.Client, **query: Any) -> list[str]:
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = client.get(AUDIT, params={**query, "cursor": cursor})
        assert answer.status_code == 200, answer.text
        found += [each["execution_id"] for each in answer.json()["executions"]]
        cursor = answer.json()["next_cursor"]
    return found


def test_filters_narrow_the_list(admin: httpx.Client) -> None:
    good = start(admin, "audit-chain", name="needle-in-input")
    bad = start(admin, "audit-broken", zero=0)
    good_row, bad_row = ended(admin, good), ended(admin, bad)
    assert listed(admin, text="NEEDLE-in") == [good]
    assert bad in listed(admin, flow="audit-broken")
    assert good not in listed(admin, flow="audit-broken")
    assert bad in listed(admin, status="failed,timed_out")
    assert good not in listed(admin, status="failed,timed_out")
    assert good in listed(admin, source="executions")
    assert listed(admin, source="carrier-pigeon") == []
    assert good in listed(admin, created_from=good_row["created_at"])
    assert good not in listed(admin, created_until=good_row["created_at"])
    assert bad in listed(admin, created_from=bad_row["created_at"], text=bad)
    assert listed(admin, correlation_id="nobody") == []


def test_pages_stay_stable_while_executions_are_added(admin: httpx.Client) -> None:
    before = [start(admin, "audit-chain", name="stable") for _ in range(5)]
    for execution_id in before:
        ended(admin, execution_id)
    query = {"text": '"stable"', "flow": "audit-chain", "limit": 2}
    first = admin.get(AUDIT, params=query).json()
    added = start(admin, "audit-chain", name="stable")
    ended(admin, added)
    rest = listed_from(admin, first["next_cursor"], **query)
    seen = [each["execution_id"] for each in first["executions"]] + rest
    assert seen == before[::-1]
    assert added not in seen


def listed_from(client: httpx.Client, cursor: str | None, **query: Any) -> list[str]:
    found: list[str] = []
    while cursor is not None:
        page = client.get(AUDIT, params={**query, "cursor": cursor}).json()
        found += [each["execution_id"] for each in page["executions"]]
        cursor = page["next_cursor"]
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "nearly"),
        ("created_from", "yesterday"),
        ("cursor", "!!!"),
        ("cursor", "e30"),
        ("limit", "501"),
        ("text", "x" * 201),
    ],
)
def test_a_broken_filter_is_named(admin: httpx.Client, name: str, value: str) -> None:
    answer = admin.get(AUDIT, params={name: value})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0]["field"] == name


# --- who may see what -------------------------------------------------------------------------------------


def test_another_tenants_execution_answers_like_one_that_does_not_exist(
    admin: httpx.Client, live_server: LiveServer
) -> None:
    execution_id = start(admin, "audit-chain", name="Ada")
    ended(admin, execution_id)
    with live_server.client(live_server.make_key("run", "audit", tenant="audit-acme")) as acme:
        own = start(acme, "audit-chain", name="acme")
        ended(acme, own)
        assert listed(acme) == [own]
        for path in ("", "/events", "/events/stream", "/state", "/verification"):
            foreign = acme.get(f"{AUDIT}/{execution_id}{path}")
            unknown = acme.get(f"{AUDIT}/not-a-uuid{path}")
            assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)
            assert foreign.status_code == 404
        assert acme.get(AUDIT, params={"tenant": "default"}).status_code == 403
    assert own in listed(admin)
    assert listed(admin, tenant="audit-acme", text=own) == [own]


def test_the_api_takes_an_audit_key(live_server: LiveServer) -> None:
    with live_server.client(live_server.make_key("run", "read")) as client:
        answer = client.get(AUDIT)
        assert answer.status_code == 403
        assert answer.json() == {"error": {"code": "forbidden", "message": "API key lacks permission."}}


def test_the_audit_only_reads(admin: httpx.Client) -> None:
    answer = admin.post(AUDIT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
