"""Ability contract, acceptance scenarios 1 to 5 and 18, over a real server."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.contracts.ability.wire import assert_error, form, post, run, status_of, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

KEYS = [
    "request_id",
    "chat_room_id",
    "status",
    "failure_reason",
    "results",
    "artifact_metadata_json",
    "request_params_json",
    "result_metadata_json",
    "requested_time",
    "updated_time",
]


def test_a_run_is_accepted_and_polled_to_its_end(client: httpx.Client) -> None:
    """Scenario 1."""
    response = post(client, "my-ability", '{"inputData": "Hello"}', debug="false", callback_url="")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r'"[0-9a-f-]{36}"', response.text)
    request_id = response.json()
    assert str(uuid.UUID(request_id)) == request_id
    assert response.headers["location"] == f"/api/ability/my-ability/{request_id}/status"
    assert status_of(client, "my-ability", request_id)["status"] in ("PENDING", "PROCESSING", "COMPLETED")
    done = wait_for(client, "my-ability", request_id)
    assert list(done) == KEYS
    assert done["results"] == {"output": "Analysed: Hello."}
    assert done["status"] == "COMPLETED"
    assert (done["chat_room_id"], done["failure_reason"], done["artifact_metadata_json"]) == (
        None,
        None,
        None,
    )
    assert done["request_params_json"] == '{"inputData":"Hello"}'
    assert done["result_metadata_json"] is None
    for name in ("requested_time", "updated_time"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", done[name])
        moment = datetime.fromisoformat(done[name]).replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)


def test_status_and_result_are_one_body_that_is_not_stored(client: httpx.Client) -> None:
    request_id = run(client, "my-ability", {"inputData": "x"})
    wait_for(client, "my-ability", request_id)
    path = f"/api/ability/my-ability/{request_id}"
    shown, result, slashed = (client.get(path + tail) for tail in ("/status", "/result", "/status/"))
    assert shown.content == result.content == slashed.content
    assert shown.headers["cache-control"] == "no-store"


def test_params_keep_their_order_and_their_letters(client: httpx.Client) -> None:
    given = '{"z": 1.0, "inputData": "Grüße \\u00e9", "a": [1, {"b": null}],  "n": 18446744073709551615}'
    request_id = run(client, "my-ability", given)
    shown = status_of(client, "my-ability", request_id)["request_params_json"]
    assert shown == '{"z":1.0,"inputData":"Grüße é","a":[1,{"b":null}],"n":18446744073709551615}'


def test_large_params_come_back_whole(client: httpx.Client) -> None:
    text = "ü" * 100_000
    request_id = run(client, "awkward", {"text": text})
    done = wait_for(client, "awkward", request_id)
    assert done["request_params_json"] == '{"text":"' + text + '"}'
    assert done["results"] == {"output": text}


def test_a_result_that_is_no_object_is_wrapped(client: httpx.Client) -> None:
    done = wait_for(client, "other-ability", run(client, "other-ability"))
    assert done["results"] == {"output": "text"}


def test_debug_adds_what_the_nodes_did(client: httpx.Client) -> None:
    request_id = run(client, "my-ability", {"inputData": "x"}, debug="TRUE")
    done = wait_for(client, "my-ability", request_id)
    metadata: dict[str, Any] = httpx.Response(200, text=done["result_metadata_json"]).json()
    assert [(node["node_id"], node["status"], node["attempts"]) for node in metadata["nodes"]] == [
        ("analyse", "completed", 1),
        ("phrase", "completed", 1),
    ]
    assert all(node["duration_ms"] >= 0 for node in metadata["nodes"])
    assert "usage" in metadata


def test_a_form_may_be_urlencoded_or_carry_its_params_as_a_file(client: httpx.Client) -> None:
    url = "/api/ability/my-ability"
    urlencoded = client.post(url, data={"params_json": '{"inputData": "x"}', "debug": "0"})
    as_file = client.post(url, files={"params_json": ("p.json", b'{"inputData": "x"}', "application/json")})
    for response in (urlencoded, as_file):
        assert response.status_code == 200, response.text
        done = wait_for(client, "my-ability", response.json())
        assert done["results"] == {"output": "Analysed: x."}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (None, "params_json"),
        ("", "params_json"),
        ("[]", "params_json"),
        ("{bad", "params_json"),
        ('{"inputData": NaN}', "params_json"),
        ('{"inputData": "\\ud800 "}', "params_json"),
        ('{"a":' + "[" * 100_000, "params_json"),
        ("{}", "params_json"),
        ('{"inputData": "x", "n": 18446744073709551616}', "params_json"),
        ('{"inputData": 7}', "inputData"),
        ('{"inputData": "x", "$files": []}', "$files"),
    ],
)
def test_bad_params_start_nothing(
    client: httpx.Client, server: LiveServer, params: str | None, field: str
) -> None:
    """Scenario 2."""
    before = server.stored_execution_ids("my-ability")
    parts = [("debug", (None, "false"))] if params is None else form(params)
    details = assert_error(client.post("/api/ability/my-ability", files=parts), 400, "INVALID_PARAMS_JSON")
    assert details[0]["field"] == field
    assert details[0]["message"]
    streamed = client.post("/api/ability/my-ability/sse", files=parts)
    assert_error(streamed, 400, "INVALID_PARAMS_JSON")
    assert server.stored_execution_ids("my-ability") == before


@pytest.mark.parametrize("debug", ["maybe", "2", "yes"])
def test_another_debug_is_refused(client: httpx.Client, debug: str) -> None:
    assert_error(post(client, "other-ability", {}, debug=debug), 400, "INVALID_DEBUG")


def test_params_beyond_their_bound_are_too_large(client: httpx.Client) -> None:
    response = post(client, "awkward", '{"text": "' + "x" * (1024 * 1024) + '"}')
    assert_error(response, 413, "PAYLOAD_TOO_LARGE")


def test_a_bad_key_gives_one_answer(server: LiveServer) -> None:
    """Scenario 3."""
    url = f"{server.url}/api/ability/my-ability"
    answers = [
        httpx.post(url, files=form({}), headers=headers)
        for headers in ({}, {"X-API-KEY": "wrong"}, {"X-API-KEY": server.make_key("run", revoke=True) + "x"})
    ]
    for answer in answers:
        assert_error(answer, 401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == "ApiKey"
    assert len({answer.content for answer in answers}) == 1
    for name in ("x-api-key", "X-API-KEY"):
        good = httpx.post(url, files=form({"inputData": "x"}), headers={name: server.first_key})
        assert good.status_code == 200


def test_a_key_without_the_scope_is_forbidden(server: LiveServer) -> None:
    with server.client(server.make_key("read")) as reader:
        assert_error(post(reader, "my-ability", {}), 403, "FORBIDDEN")


def test_what_belongs_to_others_answers_like_what_does_not_exist(
    client: httpx.Client, their_client: httpx.Client
) -> None:
    """Scenario 4."""
    theirs = run(their_client, "theirs")
    random_id = str(uuid.uuid4())
    for ability, wrong in (("theirs", "nothing-here"), ("their-ability", "nothing-here")):
        ours, none = (post(client, each, {"inputData": "x"}) for each in (ability, wrong))
        assert_error(ours, 404, "ABILITY_NOT_FOUND")
        assert ours.content == none.content
    for path in ("/{}/status", "/{}/result"):
        url = "/api/ability/my-ability" + path
        ours, none, odd = (client.get(url.format(each)) for each in (theirs, random_id, "not-a-uuid"))
        assert_error(ours, 404, "REQUEST_NOT_FOUND")
        assert ours.content == none.content == odd.content
    assert_error(client.get(f"/api/ability/theirs/{theirs}/status"), 404, "ABILITY_NOT_FOUND")
    assert_error(client.delete(f"/api/ability/my-ability/{theirs}"), 404, "REQUEST_NOT_FOUND")
    assert status_of(their_client, "theirs", theirs)["status"] in ("PENDING", "PROCESSING")
    assert their_client.delete(f"/api/ability/theirs/{theirs}").json() is True


def test_a_request_is_only_known_under_its_own_ability(client: httpx.Client) -> None:
    """Scenario 5."""
    request_id = run(client, "long")
    for method, tail in (("GET", "/status"), ("GET", "/result"), ("DELETE", "")):
        response = client.request(method, f"/api/ability/my-ability/{request_id}{tail}")
        assert_error(response, 404, "REQUEST_NOT_FOUND")
    response = client.delete("/api/ability/my-ability", params={"request_ids": [request_id]})
    assert_error(response, 404, "REQUEST_NOT_FOUND")
    assert status_of(client, "long", request_id)["status"] in ("PENDING", "PROCESSING")
    assert client.delete(f"/api/ability/long/{request_id}").json() is True


def test_a_run_of_another_contract_is_unknown_here(client: httpx.Client) -> None:
    started = client.post("/v1/executions/other-ability/async", json={})
    assert started.status_code == 202
    execution_id = started.json()["execution_id"]
    assert_error(client.get(f"/api/ability/other-ability/{execution_id}/status"), 404, "REQUEST_NOT_FOUND")
    request_id = run(client, "other-ability")
    assert client.get(f"/v1/executions/{request_id}").status_code == 404


def test_what_is_wrong_with_the_request_itself_has_this_envelope(client: httpx.Client) -> None:
    """Scenario 18, without the limit."""
    put = client.put("/api/ability/my-ability")
    assert_error(put, 405, "METHOD_NOT_ALLOWED")
    assert {"POST", "DELETE"} <= {each.strip() for each in put.headers["allow"].split(",")}
    assert_error(client.get("/api/ability/x/y/z/unknown"), 404, "NOT_FOUND")
    assert_error(client.get("/api/ability"), 404, "NOT_FOUND")
    url = "/api/ability/my-ability"
    assert_error(client.post(url, json={"params_json": "{}"}), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert_error(client.post(url), 415, "UNSUPPORTED_MEDIA_TYPE")
    broken = client.post(url, content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"})
    assert_error(broken, 400, "INVALID_PARAMS_JSON")


def test_the_601st_call_in_a_minute_is_refused(server: LiveServer) -> None:
    """Scenario 18, the limit."""
    with server.client(server.make_key("run", "read", requests_per_minute=600)) as limited:
        path = f"/api/ability/my-ability/{uuid.uuid4()}/status"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(limited.get, [path] * 600))
        assert {answer.status_code for answer in answers} == {404}
        assert answers[0].headers["ratelimit-limit"] == "600"
        refused = limited.get(path)
        assert_error(refused, 429, "RATE_LIMITED")
        assert int(refused.headers["retry-after"]) >= 1
