"""/api/admin/secrets and /api/admin/mcp-servers: what is kept, what is shown, who may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import SettingFault
from runtime.agent_spec import McpServer
from runtime.ids import Position, TenantId, resource_stream
from runtime.verification import pages, verify
from tests.gateway.running_app import Running, running

SECRETS = "/api/admin/secrets"
SERVERS = "/api/admin/mcp-servers"
VALUE = "ghp-the-value-nobody-may-see"
STDIO = {"name": "Files", "transport": "stdio", "command": ["files-server", "--root", "."]}
HTTP = {
    "name": "tickets",
    "description": "Tickets.",
    "category": "work",
    "transport": "http",
    "url": "https://mcp.example.org/mcp",
    "headers": {"Authorization": "Bearer {secret:tickets-token}"},
}


def in_app(scenario: Callable[[Running], Awaitable[None]]) -> None:
    async def run() -> None:
        async with running() as app:
            await scenario(app)

    asyncio.run(run())


async def key_with(app: Running, *scopes: str, tenant: str = "default") -> dict[str, str]:
    answer = await app.client.post("/api/admin/keys", json={"name": "k", "scopes": scopes, "tenant": tenant})
    return {"X-API-Key": answer.json()["secret"]}


async def set_secret(app: Running, name: str, value: str = VALUE, **query: str) -> dict[str, Any]:
    answer = await app.client.put(f"{SECRETS}/{name}", json={"value": value}, params=query)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def add(app: Running, document: dict[str, Any]) -> dict[str, Any]:
    answer = await app.client.post(SERVERS, json=document)
    assert answer.status_code == 201, answer.text
    return answer.json()


def files_below(folder: str) -> dict[str, bytes]:
    """What stands in each file, by its name."""
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- secrets ------------------------------------------------------------------------------------------------


def test_a_secret_is_set_listed_replaced_and_removed() -> None:
    async def scenario(app: Running) -> None:
        answer = await app.client.put(f"{SECRETS}/github", json={"value": VALUE})
        assert answer.status_code == 201
        first = answer.json()
        answer = await app.client.put(f"{SECRETS}/github", json={"value": "another"})
        assert answer.status_code == 200
        second = answer.json()
        assert first["fingerprint"] != second["fingerprint"]
        assert (await app.client.get(SECRETS)).json() == {"secrets": [second]}
        answer = await app.client.delete(f"{SECRETS}/github")
        assert (answer.status_code, answer.json()["fingerprint"]) == (200, "")
        assert (await app.client.get(SECRETS)).json() == {"secrets": []}
        answer = await app.client.delete(f"{SECRETS}/github")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "secret_not_found")
        assert (await app.client.put(f"{SECRETS}/github", json={"value": "again"})).status_code == 201

    in_app(scenario)


def test_the_log_says_who_set_and_removed_a_secret_and_never_what_it_is() -> None:
    async def scenario(app: Running) -> None:
        kept = await set_secret(app, "github")
        await app.client.delete(f"{SECRETS}/github")
        log = app.gateway.log
        history = log.read(resource_stream(TenantId("default"), "secret", "github"))
        assert [(one.topic, one.event().by) for one in history] == [
            ("resource.created", "first"),
            ("resource.changed", "first"),
        ]
        everything = b"".join(one.data for one in log.feed(Position(0), 1_000))
        assert kept["fingerprint"].encode() in everything
        assert VALUE.encode() not in everything
        assert verify(pages(log.feed)).is_clean

    in_app(scenario)


def test_no_answer_holds_a_value_and_nothing_at_rest_does() -> None:
    async def scenario(app: Running) -> None:
        set_answer = await app.client.put(f"{SECRETS}/github", json={"value": VALUE})
        listed = await app.client.get(SECRETS)
        broken = await app.client.put(f"{SECRETS}/github", json={"value": VALUE, "more": VALUE})
        assert broken.status_code == 422
        for answer in (set_answer, listed, broken):
            assert VALUE not in answer.text
        files = files_below(app.settings.data_dir)
        assert "github" in files
        assert VALUE.encode() not in b"".join(files.values())

    in_app(scenario)


def test_secrets_are_the_tenants_own_and_take_an_admin_key() -> None:
    async def scenario(app: Running) -> None:
        await set_secret(app, "github", tenant="other")
        assert (await app.client.get(SECRETS)).json() == {"secrets": []}
        shown = await app.client.get(SECRETS, params={"tenant": "other"})
        assert [one["name"] for one in shown.json()["secrets"]] == ["github"]
        for scope in ("run", "read", "audit"):
            headers = await key_with(app, scope, tenant="other")
            for method, path in (("GET", SECRETS), ("PUT", f"{SECRETS}/x"), ("DELETE", f"{SECRETS}/github")):
                answer = await app.client.request(method, path, headers=headers, json={"value": "x"})
                assert answer.status_code == 403, (scope, method)

    in_app(scenario)


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("github", {}, "body"),
        ("github", {"value": ""}, "value"),
        ("github", {"value": 7}, "value"),
        ("github", {"value": "é" * 40_000}, "value"),
        ("a b", {"value": "x"}, "name"),
        ("..x", {"value": "x"}, "name"),
    ],
)
def test_a_secret_that_breaks_a_rule_is_refused_by_field(name: str, body: dict[str, Any], field: str) -> None:
    async def scenario(app: Running) -> None:
        answer = await app.client.put(f"{SECRETS}/{name}", json=body)
        assert answer.status_code == 422
        assert field in answer.json()["error"]["details"][0]["field"]
        assert (await app.client.get(SECRETS)).json() == {"secrets": []}

    in_app(scenario)


def test_a_bad_key_of_the_secrets_stops_the_server_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_SECRET_KEY", "not-a-key")

    async def run() -> None:
        async with running():
            pass

    with pytest.raises(SettingFault, match="HELIOGRAPH_SECRET_KEY") as fault:
        asyncio.run(run())
    assert "not-a-key" not in str(fault.value)


# --- MCP servers --------------------------------------------------------------------------------------------


def test_a_server_is_authenticated_once_every_secret_it_names_is_set() -> None:
    async def scenario(app: Running) -> None:
        added = await add(app, {**HTTP, "auth_params": ["client-id"]})
        assert added["auth_params"] == added["missing_secrets"] == ["client-id", "tickets-token"]
        assert (added["auth_required"], added["auth_verified"]) == (True, False)
        await set_secret(app, "client-id")
        path = f"{SERVERS}/{added['server_id']}"
        shown = (await app.client.get(path)).json()
        assert (shown["auth_verified"], shown["missing_secrets"]) == (False, ["tickets-token"])
        await set_secret(app, "tickets-token")
        assert (await app.client.get(path)).json()["auth_verified"] is True
        await app.client.delete(f"{SECRETS}/client-id")
        assert (await app.client.get(path)).json()["auth_verified"] is False
        open_one = await add(app, STDIO)
        assert (open_one["auth_required"], open_one["auth_verified"]) == (False, False)

    in_app(scenario)


def test_servers_are_listed_shown_by_id_or_name_replaced_and_removed() -> None:
    async def scenario(app: Running) -> None:
        files, tickets = await add(app, STDIO), await add(app, HTTP)
        listed = (await app.client.get(SERVERS)).json()["mcp_servers"]
        assert listed == [files, tickets]
        assert (await app.client.get(f"{SERVERS}/FILES")).json() == files
        tools = [{"name": "read", "description": "Reads a file.", "input_schema": {"type": "object"}}]
        changed = {
            **STDIO,
            "name": "Documents",
            "allow": ["read"],
            "tools": tools,
            "tags": ["disk"],
            "timeout_seconds": 5,
        }
        answer = await app.client.put(f"{SERVERS}/files", json=changed)
        assert answer.status_code == 200, answer.text
        assert {**files, **changed, "updated_at": answer.json()["updated_at"]} == answer.json()
        assert (await app.client.get(f"{SERVERS}/files")).status_code == 404
        again = await add(app, STDIO)
        assert again["server_id"] != files["server_id"], "the name it gave up is free"
        assert (await app.client.delete(f"{SERVERS}/documents")).status_code == 200
        assert (await app.client.delete(f"{SERVERS}/documents")).status_code == 404
        names = [one["name"] for one in (await app.client.get(SERVERS)).json()["mcp_servers"]]
        assert names == ["tickets", "Files"]

    in_app(scenario)


def test_names_are_unique_in_any_case() -> None:
    async def scenario(app: Running) -> None:
        await add(app, STDIO)
        other = await add(app, HTTP)
        answer = await app.client.post(SERVERS, json={**STDIO, "name": "fILES"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        answer = await app.client.put(f"{SERVERS}/{other['server_id']}", json={**HTTP, "name": "files"})
        assert answer.status_code == 409
        same = await app.client.put(f"{SERVERS}/{other['server_id']}", json={**HTTP, "name": "Tickets"})
        assert same.json()["name"] == "Tickets"

    in_app(scenario)


def test_a_repeat_by_its_key_adds_one_server() -> None:
    async def scenario(app: Running) -> None:
        headers = {"Idempotency-Key": "k1"}
        first = await app.client.post(SERVERS, json=HTTP, headers=headers)
        again = await app.client.post(SERVERS, json=HTTP, headers=headers)
        assert (first.status_code, first.json()) == (again.status_code, again.json())
        assert len((await app.client.get(SERVERS)).json()["mcp_servers"]) == 1

    in_app(scenario)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"transport": "carrier-pigeon"}, "transport"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command"),
        ({"url": "https://example.org"}, "url"),
        ({"headers": {"a": "b"}}, "headers"),
        ({"transport": "http", "command": [], "url": "ftp://example.org"}, "url"),
        ({"transport": "http", "url": "https://example.org"}, "command"),
        ({"name": " x"}, "name"),
        ({"name": ""}, "name"),
        ({"auth_params": ["../x"]}, "auth_params"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"tools": [{"name": ""}]}, "tools[0].name"),
        ({"whatever": 1}, "body"),
    ],
)
def test_a_server_that_breaks_a_rule_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    async def scenario(app: Running) -> None:
        answer = await app.client.post(SERVERS, json={**STDIO, **change})
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["details"][0]["field"].startswith(field)
        assert (await app.client.get(SERVERS)).json() == {"mcp_servers": []}

    in_app(scenario)


def test_servers_are_the_tenants_own_and_take_an_admin_key() -> None:
    async def scenario(app: Running) -> None:
        added = await add(app, STDIO)
        other = await key_with(app, "admin", tenant="other")
        assert (await app.client.get(SERVERS, headers=other)).json() == {"mcp_servers": []}
        path = f"{SERVERS}/{added['server_id']}"
        assert (await app.client.get(path, headers=other)).status_code == 404
        assert (await app.client.put(path, headers=other, json={"broken": 1})).status_code == 404
        runner = await key_with(app, "run", "read")
        for method in ("POST", "GET"):
            answer = await app.client.request(method, SERVERS, headers=runner, json=STDIO)
            assert answer.status_code == 403

    in_app(scenario)


def test_a_run_gets_the_server_with_its_secrets_still_named() -> None:
    async def scenario(app: Running) -> None:
        await add(app, {**HTTP, "allow": ["search"], "timeout_seconds": 9})
        await set_secret(app, "tickets-token")
        [entry] = await app.gateway.mcp_servers.named("default", ["nothing", "TICKETS", "tickets"])
        assert entry.tool == McpServer(
            name="tickets",
            url="https://mcp.example.org/mcp",
            headers={"Authorization": "Bearer {secret:tickets-token}"},
            allow=("search",),
            timeout_seconds=9.0,
        )
        assert (entry.auth_verified, entry.is_usable) == (True, True)

    in_app(scenario)
