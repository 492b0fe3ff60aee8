"""The companion paths of the workflows contract (3.13): agents, skills, guardrails, health."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.wire import UNKNOWN, Api

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

BODIES: dict[str, dict[str, Any]] = {
    "agents": {
        "name": "Analyst",
        "description": "Looks into things",
        "system_prompt": "You are an analyst.",
        "model": "gpt-4.1",
    },
    "skills": {"name": "Triage", "instructions": "Sort by harm.", "tags": ["incident"]},
    "guardrails": {
        "name": "No secrets",
        "guardrail_type": "prompt",
        "tags": ["safe"],
        "prompt_config": {"forbidden_patterns": ["password"], "max_length": 100},
    },
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_companion_is_made_read_changed_and_deleted(api: Api, client: httpx.Client, kind: str) -> None:
    path = f"/api/{kind}"
    made = api.call("POST", path, 201, json=BODIES[kind])
    given = {name: value for name, value in BODIES[kind].items() if not name.endswith("_config")}
    assert made | given == made
    one = f"{path}/{made['id']}"
    assert api.call("GET", one, 200) == made
    assert made["id"] in [each["id"] for each in api.call("GET", path, 200)]
    changed = api.call("PUT", one, 200, json={"description": "other"})
    assert changed == {**made, "description": "other", "updated_at": changed["updated_at"]}
    assert changed["updated_at"] > made["updated_at"]
    gone = client.delete(one)
    assert (gone.status_code, gone.content) == (204, b"")
    for method in ("GET", "DELETE"):
        named = kind.removesuffix("s").capitalize()
        assert api.call(method, one, 404) == {"detail": f"{named} not found"}


@pytest.mark.parametrize("kind", BODIES)
def test_a_companion_of_another_tenant_is_unknown(api: Api, their_api: Api, kind: str) -> None:
    made = api.call("POST", f"/api/{kind}", 201, json=BODIES[kind])
    one = f"/api/{kind}/{made['id']}"
    for method in ("GET", "PUT", "DELETE"):
        body: dict[str, Any] = {"json": {"name": "mine"}} if method == "PUT" else {}
        theirs = their_api.client.request(method, one, **body)
        nobodys = their_api.client.request(method, f"/api/{kind}/{UNKNOWN}", **body)
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.content == nobodys.content
    assert api.call("GET", one, 200) == made


def test_lists_can_be_narrowed_to_a_tag(server: LiveServer) -> None:
    with server.client(server.make_key("run", "read", tenant="workflows-tags")) as client:
        api = Api(client)
        api.skill(name="other", tags=["night"])
        wanted = api.skill(name="this", tags=["Day", "shift"])
        assert [each["id"] for each in api.call("GET", "/api/skills?tag=day", 200)] == [wanted]


def test_a_guardrail_that_cannot_be_checked_is_refused(api: Api) -> None:
    """Of its own making: a pattern that is none would pass everything, or nothing."""
    for rules in ({"forbidden_patterns": ["(["]}, None):
        body = {"name": "g", "guardrail_type": "prompt", "prompt_config": rules}
        [detail] = api.call("POST", "/api/guardrails", 422, json=body)["detail"]
        assert detail["type"] == "value_error"
    guardrail_id = api.guardrail("prompt", max_length=5)
    body = {"prompt_config": {"required_patterns": ["(["]}}
    [detail] = api.call("PUT", f"/api/guardrails/{guardrail_id}", 422, json=body)["detail"]
    assert detail["type"] == "value_error"
    assert api.call("GET", f"/api/guardrails/{guardrail_id}", 200)["prompt_config"]["max_length"] == 5


def test_an_agents_tools_are_checked(api: Api) -> None:
    tool = {"kind": "http", "name": "look", "url": "https://example.com/{id}"}
    agent_id = api.agent(tool_definitions=[tool])
    assert api.call("GET", f"/api/agents/{agent_id}", 200)["tool_definitions"] == [tool]
    body = {"name": "a", "tool_definitions": [{"kind": "telepathy"}]}
    [detail] = api.call("POST", "/api/agents", 422, json=body)["detail"]
    assert (detail["type"], detail["loc"]) == ("value_error", ["body", "tool_definitions"])


def test_health_needs_no_key(server: LiveServer) -> None:
    health = httpx.get(f"{server.url}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"


@pytest.mark.parametrize("kind", BODIES)
def test_a_companions_bundle_comes_back_as_it_went(server: LiveServer, kind: str) -> None:
    with server.client(server.make_key("run", "read", tenant=f"workflows-{kind}")) as client:
        api = Api(client)
        path = f"/api/{kind}"
        old = api.call("POST", path, 201, json=BODIES[kind])["id"]
        bundle = api.call("GET", f"{path}/export", 200)
        assert bundle["resource_type"] == kind.removesuffix("s")
        [new] = api.call("POST", f"{path}/import", 201, json=bundle)["ids"]
        assert new != old
        assert api.call("GET", f"{path}/{new}/export", 200)["items"] == bundle["items"]
        [detail] = api.call("POST", f"{path}/import", 422, json={"items": [{}]})["detail"][:1]
        assert (detail["type"], detail["loc"]) == ("missing", ["body", "items", 0, "name"])


def test_a_change_leaves_alone_what_other_contracts_put_there(api: Api) -> None:
    """3.13: agents share one registry."""
    tool = {"kind": "http", "name": "look", "url": "https://example.com/{id}"}
    agent_id = api.agent(tool_definitions=[tool])
    changed = api.call("PUT", f"/api/agents/{agent_id}", 200, json={"name": "renamed", "model": None})
    assert (changed["name"], changed["tool_definitions"]) == ("renamed", [tool])
    replaced = api.call("PUT", f"/api/agents/{agent_id}", 200, json={"tool_definitions": []})
    assert replaced["tool_definitions"] == []
