"""Workflows contract, acceptance scenarios 1 to 4, 12 to 15 and what 16, 17, 21 say without a run."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.wire import SEED, UNKNOWN, Api

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def test_the_seeds_create_body_is_echoed_with_defaults_for_the_rest(api: Api) -> None:
    """Scenario 1."""
    agent_id = api.agent()
    made = api.call("POST", "/api/workflows", 201, json={"agent_id": agent_id, **SEED})
    assert made | {"agent_id": agent_id, **SEED} == made
    defaults: dict[str, Any] = {
        "title": None,
        "status": "active",
        "current_turn": 0,
        "session_id": None,
        "skill_ids": [],
        "guardrail_ids": [],
        "repo_url": None,
        "repo_branch": None,
        "repo_token_name": None,
        "credential_overrides": {},
        "webhook_url": None,
        "error_webhook_url": None,
        "usage": None,
        "logs": [],
        "messages": [],
        "task_count": 0,
        "last_task_status": None,
        "last_task_at": None,
        "github_user": "first admin key",
    }
    assert made | defaults == made
    assert made["created_at"] == made["updated_at"]
    assert made["created_at"].endswith("+00:00")
    assert api.get(made["id"]) == made


def test_fields_left_out_have_the_contracts_defaults(api: Api) -> None:
    """Section 3.1; the model is the agent's, else the server's."""
    plain = api.get(api.workflow(unknown_field="ignored"))
    expected = {
        "model": "scripted",
        "max_turns": 5,
        "output_format": "json",
        "reasoning_effort": None,
        "infinite_session": True,
        "caveman": False,
        "bypass_memory": False,
        "auto_memory": False,
        "tsv_tool_results": False,
    }
    assert plain | expected == plain
    assert api.get(api.workflow(api.agent(model="gpt-of-agent")))["model"] == "gpt-of-agent"


def test_bad_values_are_404_400_and_422(api: Api) -> None:
    """Scenario 2."""
    agent_id = api.agent()
    unknown = api.call("POST", "/api/workflows", 404, json={"agent_id": UNKNOWN})
    assert unknown == {"detail": "Agent not found"}
    format_ = api.call("POST", "/api/workflows", 400, json={"agent_id": agent_id, "output_format": "xml"})
    assert format_ == {"detail": "output_format must be 'json' or 'markdown'"}
    turns = api.call("POST", "/api/workflows", 422, json={"agent_id": agent_id, "max_turns": "x"})
    assert turns == {
        "detail": [
            {
                "type": "int_parsing",
                "loc": ["body", "max_turns"],
                "msg": "Input should be a valid integer, unable to parse string as an integer",
                "input": "x",
            }
        ]
    }
    [missing] = api.call("POST", "/api/workflows", 422, json={"title": "t"})["detail"]
    assert missing == {
        "type": "missing",
        "loc": ["body", "agent_id"],
        "msg": "Field required",
        "input": {"title": "t"},
    }


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"max_turns": 0}, "greater_than_equal"),
        ({"max_turns": 201}, "less_than_equal"),
        ({"reasoning_effort": "extreme"}, "literal_error"),
        ({"title": 5}, "string_type"),
        ({"skill_ids": "x"}, "list_type"),
        ({"caveman": None}, "bool_type"),
        ({"webhook_url": "http://10.0.0.1"}, "value_error"),
        ({"error_webhook_url": "ftp://example.com/"}, "value_error"),
    ],
)
def test_fields_out_of_bounds_are_422(api: Api, fields: dict[str, Any], kind: str) -> None:
    """Section 3.1; the webhook of scenario 17."""
    agent_id = api.agent()
    [detail] = api.call("POST", "/api/workflows", 422, json={"agent_id": agent_id, **fields})["detail"]
    [name] = fields
    assert (detail["type"], detail["loc"]) == (kind, ["body", name])
    workflow_id = api.workflow(agent_id)
    [again] = api.call("PUT", f"/api/workflows/{workflow_id}", 422, json=fields)["detail"]
    assert (again["type"], again["loc"]) == (kind, ["body", name])


def test_bodies_that_are_no_json_objects_are_422(api: Api, client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    for content, kind in ((b"{", "json_invalid"), (b"[]", "model_attributes_type"), (b"", "missing")):
        answer = client.post("/api/workflows", content=content, headers=headers)
        assert answer.status_code == 422
        assert [(each["type"], each["loc"]) for each in answer.json()["detail"]] == [(kind, ["body"])]
    plain = client.post("/api/workflows", content=b"{}", headers={"content-type": "text/plain"})
    assert (plain.status_code, plain.json()) == (415, {"detail": "Unsupported Media Type"})


def test_another_tenant_sees_nothing(api: Api, their_api: Api) -> None:
    """Scenario 3."""
    workflow_id = api.workflow()
    for method, path in (
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("POST", "/prompt"),
        ("POST", "/halt"),
        ("GET", "/stream"),
        ("GET", "/export"),
        ("POST", f"/skills/{UNKNOWN}"),
        ("DELETE", f"/skills/{UNKNOWN}"),
    ):
        body: dict[str, Any] = {"json": {"prompt": "x"}} if method in ("PUT", "POST") else {}
        theirs = their_api.client.request(method, f"/api/workflows/{workflow_id}{path}", **body)
        nobodys = their_api.client.request(method, f"/api/workflows/{UNKNOWN}{path}", **body)
        assert (theirs.status_code, theirs.content) == (404, b'{"detail":"Workflow not found"}'), path
        assert (theirs.status_code, theirs.content) == (nobodys.status_code, nobodys.content)
    assert their_api.call("GET", "/api/workflows", 200) == []
    assert their_api.call("GET", "/api/workflows/export", 200)["items"] == []
    assert api.get(workflow_id)["id"] == workflow_id
    their_api.call("POST", "/api/workflows", 404, json={"agent_id": api.agent()})


def test_put_changes_only_what_it_names(api: Api) -> None:
    """Scenario 4."""
    workflow_id = api.workflow(title="before", model="gpt-4.1")
    before = api.get(workflow_id)
    after = api.call("PUT", f"/api/workflows/{workflow_id}", 200, json={"title": "t"})
    assert after["updated_at"] > before["updated_at"]
    assert after == {**before, "title": "t", "updated_at": after["updated_at"]}
    paused = api.call("PUT", f"/api/workflows/{workflow_id}", 400, json={"status": "paused"})
    assert paused == {"detail": "status must be 'active' or 'inactive'"}
    nulls = {"title": None, "model": None, "max_turns": None, "reasoning_effort": None, "webhook_url": None}
    reset = api.call("PUT", f"/api/workflows/{workflow_id}", 200, json=nulls)
    assert (reset["title"], reset["model"], reset["max_turns"]) == (None, "scripted", 5)


def test_an_inactive_workflow_refuses_prompts_and_halts(api: Api) -> None:
    """Scenario 4 and section 3.7."""
    workflow_id = api.workflow()
    shown = api.call("PUT", f"/api/workflows/{workflow_id}", 200, json={"status": "inactive"})
    assert shown["status"] == "inactive"
    refused = api.call("POST", f"/api/workflows/{workflow_id}/prompt", 400, json={"prompt": "x"})
    assert refused == {"detail": "Workflow is inactive"}
    halt = api.call("POST", f"/api/workflows/{workflow_id}/halt", 400)
    assert halt == {"detail": "Workflow is inactive, cannot halt"}
    assert api.get(workflow_id)["task_count"] == 0


def test_lists_are_paged_oldest_first(server: LiveServer) -> None:
    """Section 3.2."""
    with server.client(server.make_key("run", "read", tenant="workflows-pages")) as client:
        api = Api(client)
        agent_id = api.agent()
        ids = [api.workflow(agent_id, title=str(number)) for number in range(3)]
        everything = client.get("/api/workflows")
        assert [each["id"] for each in everything.json()] == ids
        assert everything.headers["x-total-count"] == "3"
        page = client.get("/api/workflows", params={"limit": 1, "offset": 1})
        assert [each["id"] for each in page.json()] == ids[1:2]
        assert page.headers["x-total-count"] == "3"
        [detail] = client.get("/api/workflows", params={"limit": 501}).json()["detail"]
        assert (detail["type"], detail["loc"]) == ("less_than_equal", ["query", "limit"])


def test_skills_are_installed_and_removed_once(api: Api) -> None:
    """Scenario 12."""
    workflow_id, skill_id = api.workflow(), api.skill()
    path = f"/api/workflows/{workflow_id}/skills/{skill_id}"
    assert api.call("POST", path, 200)["skill_ids"] == [skill_id]
    assert api.call("POST", path, 409) == {"detail": "Skill already installed"}
    assert api.call("DELETE", path, 200)["skill_ids"] == []
    assert api.call("DELETE", path, 404) == {"detail": "Skill not installed in this workflow"}
    unknown = api.call("POST", f"/api/workflows/{workflow_id}/skills/{UNKNOWN}", 404)
    assert unknown == {"detail": "Skill not found"}


def test_a_bundle_comes_back_as_it_went(server: LiveServer) -> None:
    """Scenario 13."""
    with server.client(server.make_key("run", "read", tenant="workflows-bundles")) as client:
        api = Api(client)
        agent_id = api.agent()
        old = [
            api.workflow(agent_id, title="one", **SEED, webhook_url="https://example.com/"),
            api.workflow(agent_id, repo_url="https://example.com/r", credential_overrides={"A": "b"}),
        ]
        bundle = api.call("GET", "/api/workflows/export", 200)
        assert (bundle["version"], bundle["resource_type"]) == ("1.0", "workflow")
        assert not {"id", "status", "webhook_url", "credential_overrides"} & set(bundle["items"][0])
        made = api.call("POST", "/api/workflows/import", 201, json=bundle)
        assert (made["created"], made["errors"]) == (2, [])
        assert not set(made["ids"]) & set(old)
        again = [api.call("GET", f"/api/workflows/{each}/export", 200)["items"][0] for each in made["ids"]]
        assert again == bundle["items"]


def test_an_import_makes_what_it_can_and_tells_the_rest(api: Api) -> None:
    """Scenario 14."""
    agent_id = api.agent()
    before = len(api.call("GET", "/api/workflows", 200))
    items: list[dict[str, Any]] = [
        {"agent_id": UNKNOWN, "model": "m"},
        {"agent_id": agent_id, "model": "m", "title": "good"},
        {"agent_id": agent_id, "model": "m", "title": "bad", "output_format": "xml"},
    ]
    made = api.call("POST", "/api/workflows/import", 201, json={"items": items})
    assert made["created"] == 1
    assert made["errors"] == [
        f"untitled: agent_id '{UNKNOWN}' not found",
        "bad: output_format must be 'json' or 'markdown'",
    ]
    assert [api.get(each)["title"] for each in made["ids"]] == ["good"]
    without_model = {"items": [items[1], {"agent_id": agent_id}]}
    [detail] = api.call("POST", "/api/workflows/import", 422, json=without_model)["detail"]
    assert (detail["type"], detail["loc"]) == ("missing", ["body", "items", 1, "model"])
    many = {"items": [{"agent_id": agent_id, "model": "m"}] * 501}
    [detail] = api.call("POST", "/api/workflows/import", 422, json=many)["detail"]
    assert (detail["type"], detail["loc"]) == ("too_long", ["body", "items"])
    assert len(api.call("GET", "/api/workflows", 200)) == before + 1


def test_export_is_no_id_and_a_slash_changes_nothing(api: Api, client: httpx.Client) -> None:
    """Scenario 15."""
    assert "items" in api.call("GET", "/api/workflows/export", 200)
    put = client.put("/api/workflows/export", json={})
    assert (put.status_code, put.headers["allow"]) == (405, "GET, HEAD")
    with_slash, without = client.get("/api/workflows/"), client.get("/api/workflows")
    assert (with_slash.status_code, with_slash.content) == (200, without.content)


def test_a_deleted_workflow_is_gone(api: Api, client: httpx.Client) -> None:
    """Scenario 16, without a run."""
    workflow_id, skill_id = api.workflow(), api.skill()
    path = f"/api/workflows/{workflow_id}"
    deleted = client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for method, tail in (("GET", ""), ("GET", "/stream"), ("POST", f"/skills/{skill_id}"), ("DELETE", "")):
        assert api.call(method, path + tail, 404) == {"detail": "Workflow not found"}


def test_failures_keep_the_envelope(server: LiveServer, client: httpx.Client) -> None:
    """Scenario 21."""
    patched = client.patch("/api/workflows/x")
    assert (patched.status_code, patched.json()) == (405, {"detail": "Method Not Allowed"})
    assert {"GET", "PUT", "DELETE"} <= set(patched.headers["allow"].split(", "))
    for prefix in ("workflows", "agents", "skills", "guardrails", "tasks"):
        for path in (f"/api/{prefix}", f"/api/{prefix}/x"):
            refused = httpx.get(server.url + path)
            assert (refused.status_code, refused.json()) == (401, {"detail": "Invalid or missing API key"})
            assert refused.headers["www-authenticate"] == "ApiKey"
        nowhere = client.get(f"/api/{prefix}/a/b/c/d")
        assert (nowhere.status_code, nowhere.json()) == (404, {"detail": "Not Found"})
    with server.client(server.make_key("read", requests_per_minute=600)) as limited:
        for _ in range(600):
            assert limited.get("/api/skills/x").status_code == 404
        refused = limited.get("/api/skills/x")
    assert (refused.status_code, refused.json()) == (429, {"detail": "Rate limit exceeded"})
    assert int(refused.headers["retry-after"]) >= 1


def test_a_repeated_create_makes_one_workflow(api: Api, client: httpx.Client) -> None:
    """G6."""
    body = {"agent_id": api.agent(), "title": "once"}
    headers = {"idempotency-key": "workflow-once"}
    first = client.post("/api/workflows", json=body, headers=headers)
    again = client.post("/api/workflows", json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    bundle = {"items": [{"agent_id": body["agent_id"], "model": "m"}]}
    headers = {"idempotency-key": "import-once"}
    imported = [client.post("/api/workflows/import", json=bundle, headers=headers).json() for _ in range(2)]
    assert imported[0] == imported[1]


def test_a_repeated_install_is_answered_as_before(api: Api, client: httpx.Client) -> None:
    """G6: any POST."""
    workflow_id, skill_id = api.workflow(), api.skill()
    path, headers = f"/api/workflows/{workflow_id}/skills/{skill_id}", {"idempotency-key": "install"}
    first = client.post(path, headers=headers)
    again = client.post(path, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert client.post(path).status_code == 409
