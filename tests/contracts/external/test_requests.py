"""External contract, acceptance scenarios 4, 6, 19 and 20, and gateway rules: how requests are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.contracts.external.wire import PREFIX, UNKNOWN, Api, refusal
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def test_every_answer_names_the_version(server: LiveServer, api: Api) -> None:
    """Scenario 4: success, created, and each kind of refusal; streams are in the helper of all streams."""
    created = api.post("/tasks", {"content": "x"})
    answers = [api.get("/tasks"), created, api.get("/health")]
    assert {answer.headers["x-api-version"] for answer in answers} == {"1.0"}
    refusal(httpx.get(f"{server.url}{PREFIX}/tasks"), 401, "UNAUTHORIZED")
    refusal(api.get("/nowhere"), 404, "NOT_FOUND")
    refusal(api.get(""), 404, "NOT_FOUND")
    refusal(api.get(f"/tasks/{UNKNOWN}"), 404, "NOT_FOUND")
    wrong = api.client.put(f"{PREFIX}/tasks")
    refusal(wrong, 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(wrong.headers["allow"].split(", "))
    with server.client(server.make_key("read")) as reader:
        refusal(Api(reader).post("/tasks", {"content": "x"}), 403, "FORBIDDEN")
    large = api.post("/tasks", content=b" " * (1024 * 1024 + 1), headers={"content-type": "application/json"})
    refusal(large, 413, "PAYLOAD_TOO_LARGE")


def test_bad_pages_limits_and_statuses_are_refused(api: Api) -> None:
    """Scenario 6."""
    for path in ("/tasks", "/agents"):
        for field, value in (("limit", "0"), ("limit", "101"), ("page", "0"), ("page", "x"), ("page", "-1")):
            body = refusal(api.get(path, params={field: value}), 400, "INVALID_REQUEST")
            assert [detail["field"] for detail in body["details"]] == [field]
    body = refusal(api.get("/tasks", params={"status": "foo"}), 400, "INVALID_REQUEST")
    assert body["details"][0]["field"] == "status"
    both = refusal(api.get("/tasks", params={"page": "0", "limit": "0"}), 400, "INVALID_REQUEST")
    assert len(both["details"]) == 2


def test_pages_are_counted_and_newest_first(server: LiveServer) -> None:
    """Scenario 6: 25 tasks make two pages; a page past the end is empty."""
    with server.client(server.make_key("run", "read", tenant="external-pages")) as client:
        paged = Api(client)
        with ThreadPoolExecutor(5) as pool:
            ids = list(pool.map(paged.task, [f"task {number}" for number in range(24)]))
        ids.append(paged.task("the last"))
        first = paged.data(paged.get("/tasks"))
        assert first["pagination"] == {"page": 1, "limit": 20, "total": 25, "totalPages": 2}
        assert (len(first["tasks"]), first["tasks"][0]["id"]) == (20, ids[-1])
        second = paged.data(paged.get("/tasks", params={"page": "2"}))
        shown = [task["id"] for task in first["tasks"] + second["tasks"]]
        assert sorted(shown) == sorted(ids)
        past = paged.data(paged.get("/tasks", params={"page": "99"}))
        assert (past["tasks"], past["pagination"]["total"]) == ([], 25)
        pending = paged.data(paged.get("/tasks", params={"status": "pending", "limit": "1"}))
        assert pending["pagination"]["total"] == 25
        for status in ("running", "completed", "failed", "cancelled"):
            assert paged.data(paged.get("/tasks", params={"status": status}))["pagination"]["total"] == 0


def test_broken_rules_of_a_task_are_listed_by_field(api: Api) -> None:
    """Sections 2 and 5.2."""
    body = refusal(api.post("/tasks", {"title": "x" * 201, "content": "  "}), 400, "INVALID_REQUEST")
    assert {detail["field"] for detail in body["details"]} == {"title", "content"}
    assert all(detail["message"] for detail in body["details"])
    for wrong in ({}, {"content": None}, {"content": 7}, {"content": "x" * 32_769}):
        refusal(api.post("/tasks", wrong), 400, "INVALID_REQUEST")
    refusal(api.post("/tasks"), 400, "INVALID_REQUEST")
    task = api.shown(api.task("  A content that is longer than thirty characters  "))
    assert task["content"] == "A content that is longer than thirty characters"
    assert task["title"] == task["content"][:30]
    assert (task["status"], task["taskType"], task["result"]) == ("pending", "mcp", None)
    assert api.shown(api.task("y", title=" T "))["title"] == "T"


def test_bad_json_and_other_media_types_are_refused(api: Api) -> None:
    """Scenario 20."""
    as_json = {"content-type": "application/json"}
    refusal(api.post("/tasks", content=b'{"content":', headers=as_json), 400, "INVALID_REQUEST")
    refusal(api.post("/tasks", content=b"[1]", headers=as_json), 400, "INVALID_REQUEST")
    text = {"content-type": "text/plain"}
    refusal(api.post("/tasks", content=b"hello", headers=text), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_another_tenants_task_is_like_an_unknown_one(api: Api, their_api: Api) -> None:
    """Scenario 20, and rule G3: the same bytes."""
    task_id = api.task("mine")
    for method, tail in (("GET", ""), ("POST", "/analyze"), ("POST", "/execute"), ("GET", "/executions")):
        answers = [
            their_api.client.request(method, f"{PREFIX}/tasks/{identity}{tail}")
            for identity in (task_id, UNKNOWN, "no-id-at-all", "a%00b", "x" * 300)
        ]
        assert len({answer.content for answer in answers}) == 1
        refusal(answers[0], 404, "NOT_FOUND")
    theirs = their_api.data(their_api.get("/tasks", params={"limit": "100"}))["tasks"]
    assert task_id not in [task["id"] for task in theirs]


def test_the_601st_call_in_a_minute_is_refused(server: LiveServer) -> None:
    """Scenario 19."""
    with server.client(server.make_key("read", requests_per_minute=600)) as limited:
        for _ in range(600):
            assert limited.get(f"{PREFIX}/info").status_code == 200
        refused = limited.get(f"{PREFIX}/info")
    refusal(refused, 429, "RATE_LIMIT_EXCEEDED")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit-remaining"] == "0"


def test_a_repeated_creation_gives_the_same_task(api: Api) -> None:
    """Rule G6."""
    headers = {"idempotency-key": "external-create-1"}
    first = api.post("/tasks", {"content": "once"}, headers=headers)
    again = api.post("/tasks", {"content": "once"}, headers=headers)
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again.headers["idempotency-replayed"] == "true"
    other = api.post("/tasks", {"content": "other"}, headers=headers)
    refusal(other, 422, "IDEMPOTENCY_KEY_REUSED")
    bad = api.post("/tasks", {"content": "x"}, headers={"idempotency-key": "a b"})
    assert refusal(bad, 400, "INVALID_REQUEST")["details"][0]["field"] == "Idempotency-Key"
