"""Executions contract, acceptance scenarios 17, 18 and 21: who sees what, and how faults look."""

from __future__ import annotations

import httpx
import pytest

from tests.contracts.executions.wire import events, start, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

UNKNOWN = "0190a000-0000-7000-8000-000000000000"


def test_whatever_is_not_visible_is_one_identical_404(server: LiveServer, client: httpx.Client) -> None:
    """Scenario 17: another tenant's, unknown and malformed ids (a purged one: test_restart)."""
    execution_id = start(client, "endless")
    with server.client(server.make_key("run", "read", tenant="b")) as stranger:
        answers = [
            stranger.request(method, f"/v1/executions/{identifier}{tail}")
            for identifier in (execution_id, UNKNOWN, "not-a-uuid", execution_id.upper())
            for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/stream"))
        ]
    assert {answer.status_code for answer in answers} == {404}
    assert {answer.content for answer in answers} == {b'{"detail":"Execution not found."}'}
    assert client.delete(f"/v1/executions/{execution_id}").json()["cancelled"] is True


def test_an_ability_run_is_invisible_here(server: LiveServer, client: httpx.Client) -> None:
    """Scenario 17: an ability's request id."""
    run = client.post("/api/ability/greeting", data={"params_json": '{"query": "x"}'})
    assert run.status_code == 200, run.text
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/stream")):
        answer = client.request(method, f"/v1/executions/{run.json()}{tail}")
        assert (answer.status_code, answer.content) == (404, b'{"detail":"Execution not found."}')


def test_unpublished_and_unknown_flows_are_one_404(server: LiveServer, client: httpx.Client) -> None:
    """Scenario 18: a flow of another tenant stands for an unpublished one."""
    server.publish(
        {"heliograph": 1, "id": "theirs", "nodes": [{"id": "a", "kind": "template", "template": "x"}]},
        tenant="b",
    )
    answers = [client.post(f"/v1/executions/{name}/async") for name in ("theirs", "nobodys", "Greeting")]
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (404, b'{"detail":"Chatbot not found."}')
    }


def test_wrong_methods_are_405_with_allow(client: httpx.Client) -> None:
    """Scenario 21, and section 4."""
    answer = client.post("/v1/executions/x")
    assert answer.status_code == 405
    assert {"GET", "DELETE"} <= set(answer.headers["allow"].split(", "))
    assert answer.json() == {"detail": "Method not allowed."}
    assert client.get("/v1/executions/x/async").headers["allow"] == "POST"


def test_the_601st_call_in_a_minute_is_429(server: LiveServer) -> None:
    """Scenario 21."""
    with server.client(server.make_key("read", requests_per_minute=600)) as limited:
        for number in range(600):
            answer = limited.get(f"/v1/executions/{UNKNOWN}")
            assert answer.status_code == 404
            assert answer.headers["ratelimit-remaining"] == str(599 - number)
        refused = limited.get(f"/v1/executions/{UNKNOWN}")
    assert refused.status_code == 429
    assert refused.json() == {"detail": "Rate limit exceeded."}
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit-limit"] == "600"
    assert refused.headers["ratelimit-policy"] == "600;w=60"


def test_bad_keys_get_one_identical_401(server: LiveServer, client: httpx.Client) -> None:
    """G2."""
    good = server.first_key
    expired = server.make_key("admin", expires_at=1)
    refused = [
        httpx.get(f"{server.url}/v1/executions/x", headers=headers)
        for headers in (
            {},
            {"X-API-Key": "hg_wrong"},
            {"X-API-Key": expired},
            {"X-API-Key": good, "Authorization": "Bearer other"},
            {"Authorization": "Basic eDp5"},
            {"X-API-Key": ""},
        )
    ]
    assert {(answer.status_code, answer.content) for answer in refused} == {
        (401, b'{"detail":"API key is missing or invalid."}')
    }
    assert {answer.headers["www-authenticate"] for answer in refused} == {"ApiKey"}
    for headers in ({"x-api-KEY": good}, {"Authorization": f"bearer {good}"}):
        assert httpx.get(f"{server.url}/v1/executions/x", headers=headers).status_code == 404


def test_a_key_without_the_scope_is_403(server: LiveServer) -> None:
    """G1: scope before anything about the resource."""
    with server.client(server.make_key("read")) as reader:
        answer = reader.post("/v1/executions/nobodys/async")
        assert (answer.status_code, answer.json()) == (403, {"detail": "API key lacks permission."})
        assert reader.get(f"/v1/executions/{UNKNOWN}").status_code == 404


def test_unknown_paths_oversized_bodies_and_media_types_keep_the_envelope(client: httpx.Client) -> None:
    """G1 and section 2."""
    unknown = client.get("/v1/executions/a/b/c")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not found."})
    large = client.post("/v1/executions/greeting/async", content=b" " * (1024 * 1024 + 1))
    assert (large.status_code, large.json()) == (413, {"detail": "Request body too large."})
    streamed = client.post(
        "/v1/executions/greeting/async",
        content=iter([b" " * 600_000, b" " * 600_000]),
        headers={"content-type": "application/json"},
    )
    assert (streamed.status_code, streamed.json()) == (413, {"detail": "Request body too large."})
    form = client.post("/v1/executions/greeting/async", data={"a": "b"})
    assert (form.status_code, form.json()) == (415, {"detail": "Unsupported media type."})
    slash = client.get("/v1/executions/x/")
    assert (slash.status_code, slash.json()) == (404, {"detail": "Execution not found."})


def test_every_answer_has_a_correlation_id(client: httpx.Client) -> None:
    """G4: taken over when it is printable, else made."""
    given = client.get("/v1/executions/x", headers={"x-correlation-id": "story-7"})
    assert given.headers["x-correlation-id"] == "story-7"
    made = [
        client.get(path).headers["x-correlation-id"] for path in ("/health", "/nowhere", "/v1/executions/x")
    ]
    assert len(set(made)) == 3


def test_open_streams_of_a_key_are_bounded(server: LiveServer, client: httpx.Client) -> None:
    """G5."""
    execution_id = start(client, "endless")
    key = server.make_key("read", open_streams_max=1)
    with server.client(key) as limited, server.client(key) as other:
        with limited.stream("GET", f"/v1/executions/{execution_id}/stream") as stream:
            lines = stream.iter_lines()  # kept: httpx closes the response with its iterator
            next(lines)
            refused = other.get(f"/v1/executions/{execution_id}/stream")
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        client.delete(f"/v1/executions/{execution_id}")
        assert events(client, execution_id)


def test_unfinished_executions_of_a_tenant_are_bounded(server: LiveServer) -> None:
    """G5."""
    server.publish(
        {"heliograph": 1, "id": "rest", "nodes": [{"id": "rest", "kind": "sleep", "seconds": 600}]},
        tenant="c",
    )
    with server.client(server.make_key("run", "read", tenant="c", unfinished_executions_max=2)) as limited:
        ids = [start(limited, "rest") for _ in range(2)]
        refused = limited.post("/v1/executions/rest/async")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        for execution_id in ids:
            limited.delete(f"/v1/executions/{execution_id}")
            wait_for(limited, execution_id, "CANCELLED")


def test_the_same_idempotency_key_starts_once(server: LiveServer, client: httpx.Client) -> None:
    """G6."""
    before = len(server.stored_execution_ids("strict"))
    headers = {"idempotency-key": "order-1"}
    body = {"input_data": {"query": "x"}}
    first = client.post("/v1/executions/strict/async", json=body, headers=headers)
    again = client.post("/v1/executions/strict/async", json=body, headers=headers)
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(server.stored_execution_ids("strict")) == before + 1
    other = client.post("/v1/executions/strict/async", json={"input_data": {"query": "y"}}, headers=headers)
    assert other.status_code == 422
    assert other.json() == {"detail": "Idempotency-Key reused with a different request."}
    unprintable = client.post("/v1/executions/strict/async", json=body, headers={"idempotency-key": "a b"})
    assert unprintable.status_code == 422
