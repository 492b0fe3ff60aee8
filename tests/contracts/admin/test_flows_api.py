"""/api/admin/flows over real sockets: publish, check, list, show, disable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contracts.live_server import LiveServer, flow

FLOWS = "/api/admin/flows"
YAML = """\
heliograph: 1
id: admin-yaml
name: From YAML
nodes:
  - {id: greet, kind: template, template: "Hello {{ inputs.name }}"}
  - {id: shout, kind: select, value: "${nodes.greet}"}
"""


def document(flow_id: str, text: str = "Hello") -> dict[str, Any]:
    return flow(flow_id, {"id": "greet", "kind": "template", "template": text})


@pytest.fixture(scope="module")
def admin(live_server: LiveServer) -> Iterator[httpx.Client]:
    with live_server.client() as client:
        yield client


def test_a_new_flow_is_created_and_can_be_started_at_once(admin: httpx.Client) -> None:
    answer = admin.post(FLOWS, json=document("admin-new"))
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{FLOWS}/admin-new"
    published = answer.json()
    assert published["changed"] is True
    assert published["enabled"] is True
    assert published["tenant"] == "default"
    started = admin.post("/v1/executions/admin-new/async", json={})
    assert started.status_code == 202


def test_publishing_the_same_content_again_says_that_nothing_changed(admin: httpx.Client) -> None:
    first = admin.post(FLOWS, json=document("admin-same"))
    again = admin.post(FLOWS, json=document("admin-same"))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "changed": False}


def test_yaml_and_json_give_the_same_version(admin: httpx.Client) -> None:
    yaml = admin.post(FLOWS, content=YAML, headers={"Content-Type": "application/yaml"})
    same = flow(
        "admin-yaml",
        {"id": "greet", "kind": "template", "template": "Hello {{ inputs.name }}"},
        {"id": "shout", "kind": "select", "value": "${nodes.greet}"},
        name="From YAML",
    )
    assert yaml.status_code == 201, yaml.text
    json = admin.post(FLOWS, json=same)
    assert json.status_code == 200
    assert json.json()["version"] == yaml.json()["version"]


def test_every_broken_rule_is_named_by_node_field_and_rule(admin: httpx.Client) -> None:
    broken = flow(
        "admin-broken",
        {"id": "first", "kind": "template", "template": "{{ nodes.gone }}"},
        {"id": "second", "kind": "select", "value": 1, "wat": 2},
    )
    answer = admin.post(FLOWS, json=broken)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid_input"
    named = {(detail["node"], detail["field"]) for detail in error["details"]}
    assert named == {("first", "template"), ("second", "wat")}
    assert all(detail["rule"] for detail in error["details"])
    assert admin.get(f"{FLOWS}/admin-broken").status_code == 404


@pytest.mark.parametrize("text", ["{bad", "- a list", "id: [", ""])
def test_what_is_no_definition_is_refused(admin: httpx.Client, text: str) -> None:
    answer = admin.post(FLOWS, content=text, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0]["rule"]


def test_another_media_type_is_refused(admin: httpx.Client) -> None:
    answer = admin.post(FLOWS, content=YAML, headers={"Content-Type": "text/html"})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_a_check_publishes_nothing(admin: httpx.Client) -> None:
    checked = admin.post("/api/admin/validate", json=document("admin-checked"))
    assert checked.status_code == 200
    assert checked.json()["valid"] is True
    assert checked.json()["flow_id"] == "admin-checked"
    assert admin.get(f"{FLOWS}/admin-checked").status_code == 404
    assert admin.post("/api/admin/validate", json={"heliograph": 1}).status_code == 422


def test_a_flow_shows_versions_definition_and_graph(admin: httpx.Client) -> None:
    one = admin.post(FLOWS, json=document("admin-shown", "one")).json()["version"]
    chain = flow(
        "admin-shown",
        {"id": "greet", "kind": "template", "template": "two"},
        {"id": "end", "kind": "select", "value": "${nodes.greet}"},
    )
    two = admin.post(FLOWS, json=chain).json()["version"]
    shown = admin.get(f"{FLOWS}/admin-shown").json()
    assert [version["version"] for version in shown["versions"]] == [two, one]
    assert shown["shown_version"] == shown["flow"]["version"] == two
    assert shown["definition"] == chain
    assert [node["id"] for node in shown["graph"]["nodes"]] == ["greet", "end"]
    assert shown["graph"]["edges"] == [{"from": "greet", "to": "end"}]
    assert shown["mermaid"].startswith("flowchart TD\n")
    assert "n0 --> n1" in shown["mermaid"]
    old = admin.get(f"{FLOWS}/admin-shown", params={"version": one}).json()
    assert old["definition"] == document("admin-shown", "one")
    assert admin.get(f"{FLOWS}/admin-shown", params={"version": "0" * 16}).status_code == 404


def test_flows_are_listed_in_pages(admin: httpx.Client) -> None:
    for name in ("admin-page-a", "admin-page-b", "admin-page-c"):
        admin.post(FLOWS, params={"tenant": "pages"}, json=document(name))
    first = admin.get(FLOWS, params={"tenant": "pages", "limit": 2}).json()
    rest = admin.get(FLOWS, params={"tenant": "pages", "limit": 2, "cursor": first["next_cursor"]}).json()
    listed = [entry["flow_id"] for page in (first, rest) for entry in page["flows"]]
    assert listed == ["admin-page-a", "admin-page-b", "admin-page-c"]
    assert rest["next_cursor"] is None


def test_a_disabled_flow_can_not_be_started_until_it_is_enabled(admin: httpx.Client) -> None:
    admin.post(FLOWS, json=document("admin-switched"))
    start = "/v1/executions/admin-switched/async"
    disabled = admin.post(f"{FLOWS}/admin-switched/disable")
    assert disabled.status_code == 200
    assert disabled.json()["enabled"] is False
    assert admin.post(start, json={}).status_code == 404
    assert admin.get(f"{FLOWS}/admin-switched").json()["flow"]["enabled"] is False
    assert admin.post(f"{FLOWS}/admin-switched/enable").json()["enabled"] is True
    assert admin.post(start, json={}).status_code == 202


def test_an_unknown_flow_can_not_be_shown_or_switched(admin: httpx.Client) -> None:
    for answer in (
        admin.get(f"{FLOWS}/admin-nowhere"),
        admin.post(f"{FLOWS}/admin-nowhere/disable"),
        admin.post(f"{FLOWS}/admin-nowhere/enable"),
        admin.get(f"{FLOWS}/admin-nowhere", params={"tenant": "other"}),
    ):
        assert answer.status_code == 404
        assert answer.json() == {"error": {"code": "flow_not_found", "message": "Flow not found."}}


def test_a_repeat_by_idempotency_key_gets_the_same_answer(admin: httpx.Client) -> None:
    headers = {"Idempotency-Key": "admin-publish-1"}
    first = admin.post(FLOWS, json=document("admin-idempotent"), headers=headers)
    again = admin.post(FLOWS, json=document("admin-idempotent"), headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    other = admin.post(FLOWS, json=document("admin-idempotent", "x"), headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_flows_of_another_tenant_are_published_for_it(admin: httpx.Client, live_server: LiveServer) -> None:
    answer = admin.post(FLOWS, params={"tenant": "acme"}, json=document("admin-acme"))
    assert answer.json()["tenant"] == "acme"
    assert admin.get(f"{FLOWS}/admin-acme").status_code == 404
    with live_server.client(live_server.make_key("run", tenant="acme")) as acme:
        assert acme.post("/v1/executions/admin-acme/async", json={}).status_code == 202


def test_a_tenant_whose_name_breaks_the_rule_is_refused(admin: httpx.Client) -> None:
    for tenant in ("", "a:b", "x" * 65):
        answer = admin.post(FLOWS, params={"tenant": tenant}, json=document("admin-nobody"))
        assert answer.status_code == 422
        assert answer.json()["error"]["details"][0]["field"] == "tenant"


def test_the_api_takes_an_admin_key(live_server: LiveServer) -> None:
    with live_server.client(live_server.make_key("run", "read", "audit")) as client:
        answer = client.post(FLOWS, json=document("admin-forbidden"))
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "forbidden"
    with live_server.client("hg_wrong") as client:
        answer = client.get(FLOWS)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "ApiKey"
        assert answer.json()["error"]["code"] == "unauthenticated"


def test_faults_of_the_prefix_have_one_envelope(admin: httpx.Client) -> None:
    for path, method, status, code in (
        ("/api/admin/nowhere", "GET", 404, "not_found"),
        (FLOWS, "PATCH", 405, "method_not_allowed"),
    ):
        answer = admin.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
        assert answer.headers["x-correlation-id"]
    assert admin.get(FLOWS, params={"limit": "many"}).json()["error"]["details"] == [
        {"field": "limit", "rule": "must be a whole number from 1 to 500"}
    ]


def test_the_openapi_document_has_an_example_of_every_body(admin: httpx.Client) -> None:
    paths = admin.get("/openapi.json").json()["paths"]
    ours = {path: item for path, item in paths.items() if path.startswith(("/api/admin", "/api/audit"))}
    assert len(ours) >= 16
    for path, item in ours.items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            answers = operation["responses"]
            [success] = [answers[status] for status in answers if status in ("200", "201", "202")][:1]
            for part in (success, operation.get("requestBody", {})):
                for media_type in part.get("content", {}).values():
                    # Bytes are named, but can't be shown.
                    is_bytes = media_type["schema"].get("format") == "binary"
                    assert is_bytes or media_type["example"] is not None, (path, method)
