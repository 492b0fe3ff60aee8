"""/api/admin/keys over real sockets: create, list, revoke."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer

KEYS = "/api/admin/keys"


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    with live_server.client() as client:
        yield client


def create(admin: httpx.Client, *scopes: str, **fields: Any) -> dict[str, Any]:
    answer = admin.post(KEYS, json={"name": "test", "scopes": scopes or ("read",), **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def all_keys(admin: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = admin.get(KEYS, params={"cursor": cursor, "limit": 3, **query}).json()
        found += page["keys"]
        cursor = page["next_cursor"]
    return found


def test_a_new_key_works_at_once_within_its_scopes(admin: httpx.Client, live_server: LiveServer) -> None:
    key = create(admin, "read", "audit")
    with live_server.client(key["secret"]) as client:
        assert client.get("/api/audit/executions").status_code == 200
        assert client.get(KEYS).status_code == 403
        assert client.post("/v1/executions/none/async", json={}).status_code == 403


def test_a_key_for_others_gets_the_default_limits(admin: httpx.Client, live_server: LiveServer) -> None:
    key = create(admin, "audit")
    assert key["limits"] == {
        "requests_per_minute": 600,
        "open_streams_max": 50,
        "unfinished_executions_max": 1000,
    }
    with live_server.client(key["secret"]) as client:
        answer = client.get("/api/audit/executions")
        assert answer.headers["ratelimit-limit"] == "600"
        assert answer.headers["ratelimit-policy"] == "600;w=60"


def test_limits_can_be_set_and_lifted(admin: httpx.Client, live_server: LiveServer) -> None:
    key = create(admin, "audit", limits={"requests_per_minute": 2, "unfinished_executions_max": None})
    assert key["limits"] == {
        "requests_per_minute": 2,
        "open_streams_max": 50,
        "unfinished_executions_max": None,
    }
    with live_server.client(key["secret"]) as client:
        codes = [client.get("/api/audit/executions").status_code for _ in range(3)]
        assert codes == [200, 200, 429]


def test_a_secret_is_shown_once_and_rests_nowhere(admin: httpx.Client, live_server: LiveServer) -> None:
    secret = create(admin, "read", tenant="secretive")["secret"]
    listed = admin.get(KEYS, params={"tenant": "secretive"})
    assert len(listed.json()["keys"]) == 1
    assert secret not in listed.text
    with sqlite3.connect(live_server.folder / "heliograph.db") as database:
        dump = "\n".join(database.iterdump())
    assert "secretive" in dump
    assert secret not in dump
    assert secret not in live_server.printed()


def test_a_repeat_by_idempotency_key_shows_the_key_without_its_secret(
    admin: httpx.Client, live_server: LiveServer
) -> None:
    headers = {"Idempotency-Key": "admin-key-1"}
    body = {"name": "once", "scopes": ["read"], "tenant": "once"}
    first = admin.post(KEYS, json=body, headers=headers)
    again = admin.post(KEYS, json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == {**first.json(), "secret": None}
    assert again.headers["idempotency-replayed"] == "true"
    assert len(all_keys(admin, tenant="once")) == 1
    with sqlite3.connect(live_server.folder / "heliograph.db") as database:
        assert first.json()["secret"] not in "\n".join(database.iterdump())


def test_keys_are_listed_in_pages(admin: httpx.Client) -> None:
    made = {create(admin, "read", tenant="many")["key_id"] for _ in range(7)}
    listed = [key["key_id"] for key in all_keys(admin, tenant="many")]
    assert len(listed) == 7
    assert set(listed) == made


def test_a_revoked_key_is_refused_at_once(admin: httpx.Client, live_server: LiveServer) -> None:
    key = create(admin, "audit")
    with live_server.client(key["secret"]) as client:
        assert client.get("/api/audit/executions").status_code == 200
        revoked = admin.delete(f"{KEYS}/{key['key_id']}")
        assert revoked.status_code == 200
        assert revoked.json()["state"] == "revoked"
        refused = client.get("/api/audit/executions")
    with live_server.client("hg_never_made") as client:
        unknown = client.get("/api/audit/executions")
    assert (refused.status_code, refused.content) == (unknown.status_code, unknown.content)
    assert refused.status_code == 401


def test_revoking_twice_changes_nothing(admin: httpx.Client) -> None:
    key = create(admin, "read")
    first = admin.delete(f"{KEYS}/{key['key_id']}").json()
    assert admin.delete(f"{KEYS}/{key['key_id']}").json() == first


def test_an_unknown_key_can_not_be_revoked(admin: httpx.Client) -> None:
    answer = admin.delete(f"{KEYS}/nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "key_not_found"


def test_the_last_admin_key_can_not_be_revoked(admin: httpx.Client, live_server: LiveServer) -> None:
    for key in all_keys(admin):
        if "admin" in key["scopes"] and key["key_id"] != "first" and key["state"] == "active":
            assert admin.delete(f"{KEYS}/{key['key_id']}").status_code == 200
    create(admin, "admin", expires_in_seconds=3600)  # it ends by itself, so it doesn't count
    refused = admin.delete(f"{KEYS}/first")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "conflict"
    other = create(admin, "admin")
    assert admin.delete(f"{KEYS}/{other['key_id']}").status_code == 200
    assert admin.get(KEYS).status_code == 200


def test_a_key_with_an_end_stops_working_then(admin: httpx.Client, live_server: LiveServer) -> None:
    key = create(admin, "audit", expires_in_seconds=1)
    deadline = time.monotonic() + 30
    with live_server.client(key["secret"]) as client:
        while client.get("/api/audit/executions").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get("/api/audit/executions").status_code == 401
    [listed] = [each for each in all_keys(admin) if each["key_id"] == key["key_id"]]
    assert listed["state"] == "expired"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"scopes": ["write"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"name": ""}, "name"),
        ({"tenant": "no spaces"}, "tenant"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
        ({"limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"limits": {"unknown": 1}}, "limits"),
        ({"unknown": 1}, "body"),
    ],
)
def test_a_broken_field_is_named(admin: httpx.Client, fields: dict[str, Any], field: str) -> None:
    answer = admin.post(KEYS, json={"name": "test", "scopes": ["read"], **fields})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0]["field"] == field


def test_a_body_is_needed(admin: httpx.Client) -> None:
    assert admin.post(KEYS).status_code == 422
