"""Ability contract, acceptance scenarios 7 to 11 (streams), over a real server."""

from __future__ import annotations

import socket
import time

import httpx
import msgspec
import pytest

from tests.contracts.ability.flows import AWKWARD, BULKY_CHARS, WIDE
from tests.contracts.ability.wire import (
    Heard,
    assert_error,
    open_plain,
    open_standard,
    parse_plain,
    plain,
    post,
    standard,
    status_of,
    wait_for,
)
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

SSE = {"Accept": "text/event-stream"}


def types(heard: list[Heard]) -> list[str]:
    return [each.type for each in heard]


def test_the_two_framings_carry_the_same_events(client: httpx.Client) -> None:
    """Scenario 7."""
    framed = standard(client, "my-ability", {"inputData": "x"})
    lines = plain(client, "my-ability", {"inputData": "x"})
    assert types(framed) == types(lines) == ["node_output", "node_output", "final_response"]
    ids = [each.id for each in framed]
    assert ids == sorted(set(ids), key=lambda each: each or 0)
    for each in framed[:2]:
        assert each.message["seq"] == each.id
        assert list(each.message) == ["request_id", "seq", "node_id", "node_name", "output"]
    unstable = ("request_id", "seq")
    assert [{k: v for k, v in each.message.items() if k not in unstable} for each in framed] == [
        {k: v for k, v in each.message.items() if k not in unstable} for each in lines
    ]
    first, _, last = framed
    assert (first.message["node_id"], first.message["node_name"]) == ("analyse", "Analyse")
    assert last.message["results"] == {"output": "Analysed: x."}
    assert last.message["status"] == "COMPLETED"
    request_id = last.message["request_id"]
    assert status_of(client, "my-ability", request_id)["results"] == last.message["results"]


@pytest.mark.parametrize(
    ("accept", "query", "is_standard"),
    [
        ("*/*", "", False),
        ("application/json", "", False),
        ("text/event-stream", "", True),
        ("application/json, Text/Event-Stream;q=0.9", "", True),
        ("*/*", "?framing=sse", True),
        ("text/event-stream", "?framing=plain", False),
    ],
)
def test_the_framing_is_chosen_by_accept_or_query(
    client: httpx.Client, accept: str, query: str, is_standard: bool
) -> None:
    url = f"/api/ability/other-ability/sse{query}"
    response = client.post(url, files={"params_json": (None, "{}")}, headers={"Accept": accept})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["vary"] == "Accept"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert len(response.headers["x-ability-request-id"]) == 36
    if is_standard:
        assert response.text.startswith("retry: 3000\n\nid: ")
    else:
        assert response.text.startswith("node_output:\n{")
        assert "\nid:" not in response.text
        assert "retry:" not in response.text


def test_awkward_outputs_arrive_intact_in_both_framings(client: httpx.Client) -> None:
    """Scenario 8."""
    for heard in (
        plain(client, "awkward", {"text": AWKWARD}),
        standard(client, "awkward", {"text": AWKWARD}),
    ):
        assert heard[0].message["output"] == AWKWARD
        assert heard[-1].message["results"] == {"output": AWKWARD}


def test_plain_frames_are_written_one_by_one_with_their_distance(server: LiveServer) -> None:
    request = httpx.Request(
        "POST",
        f"{server.url}/api/ability/many/sse",
        files={"params_json": (None, "{}")},
        headers={"X-API-Key": server.first_key, "Connection": "close"},
    )
    began = time.monotonic()
    chunks = raw_chunks(request)
    frames = [chunk for chunk in chunks if chunk.strip()]
    assert len(frames) == WIDE + 1
    assert all(each.startswith(b"node_output:\n{") for each in frames[:-1])
    assert frames[-1].startswith(b"final_response:\n{")
    assert all(each.endswith(b"}\n\n") and each.count(b"\n") == 3 for each in frames)
    # The reader may lag behind the writer here and there, but all together it can't be faster.
    assert time.monotonic() - began >= WIDE * 0.010


def raw_chunks(request: httpx.Request) -> list[bytes]:
    """The answer's chunks as the server wrote them: clients join what arrives together."""
    head = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port or 80), timeout=60) as connection:
        connection.sendall(f"{head}\r\n".encode() + request.read())
        with connection.makefile("rb") as answer:
            assert b" 200 " in answer.readline()
            while answer.readline().strip():
                pass
            chunks: list[bytes] = []
            while size := int(answer.readline(), 16):
                chunks.append(answer.read(size))
                answer.readline()
            return chunks


def test_a_long_output_is_a_preview_in_the_plain_framing_only(client: httpx.Client) -> None:
    text = client.post("/api/ability/bulky-ability/sse", files={"params_json": (None, "{}")}).text
    # The final frame is never cut, so it takes several reads: read the whole instead.
    frames = (each.encode() for each in text.split("\n\n") if each)
    cut, small, final = parse_plain(frames)
    assert cut.message["truncated"] is True
    assert set(cut.message["output"]) == {"ü"}
    assert len(msgspec.json.encode(cut.message)) <= 15 * 1024
    assert len(msgspec.json.encode(cut.message)) > 14 * 1024
    assert "truncated" not in small.message
    assert final.message["results"] == {"text": "ü" * BULKY_CHARS}
    whole = standard(client, "bulky-ability")
    assert whole[0].message["output"] == "ü" * BULKY_CHARS
    assert "truncated" not in whole[0].message


def test_debug_adds_input_duration_and_attempt(client: httpx.Client) -> None:
    first, second, _ = standard(client, "my-ability", {"inputData": "x"}, debug="true")
    assert first.message["input"] == {"inputs": {"inputData": "x"}, "nodes": {}}
    assert second.message["input"]["nodes"] == {"analyse": "Analysed: x"}
    assert first.message["attempt"] == 1
    assert first.message["duration_ms"] >= 0


def test_a_failing_node_ends_the_stream_with_one_error(client: httpx.Client) -> None:
    """Scenario 9."""
    for heard in (plain(client, "failing"), standard(client, "failing")):
        assert types(heard) == ["node_output", "error"]
        error = heard[-1].message
        assert list(error) == ["request_id", "status", "code", "failure_reason", "node_id"]
        assert (error["status"], error["code"], error["node_id"]) == ("FAILED", "NODE_FAILED", "bad")
        assert error["failure_reason"].startswith("bad: ")
        assert "\n" not in error["failure_reason"]
        shown = status_of(client, "failing", error["request_id"])
        assert (shown["status"], shown["failure_reason"]) == ("FAILED", error["failure_reason"])
        assert shown["results"] is None


def test_a_run_out_of_time_is_a_timeout(client: httpx.Client) -> None:
    [error] = plain(client, "late-ability")
    assert (error.message["status"], error.message["code"]) == ("FAILED", "TIMEOUT")
    assert error.message["failure_reason"].startswith("TIMEOUT")
    shown = status_of(client, "late-ability", error.message["request_id"])
    assert (shown["status"], shown["failure_reason"]) == ("FAILED", error.message["failure_reason"])


def test_a_dropped_stream_does_not_stop_the_run_and_can_be_resumed(client: httpx.Client) -> None:
    """Scenario 10."""
    headers = {**SSE, "Idempotency-Key": "drop-1"}
    with open_standard(client, "short-rest", {}, headers) as (response, events):
        request_id = response.headers["x-ability-request-id"]
        first = next(events)
        assert first.type == "node_output"
    done = wait_for(client, "short-rest", request_id)
    assert done["results"] == {"said": "begun, ended"}
    resumed = standard(client, "short-rest", {}, {**headers, "Last-Event-ID": str(first.id)})
    whole = standard(client, "short-rest", {}, headers)
    assert whole[0] == first
    assert resumed == whole[1:]
    assert resumed[-1].message["request_id"] == request_id


def test_a_repeated_stream_joins_the_run_and_another_body_is_refused(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "join-1"}
    with open_plain(client, "short-rest", {}, headers) as (first, events):
        next(events)
        with open_standard(client, "short-rest", {}, {**SSE, **headers}) as (second, again):
            assert second.headers["idempotency-replayed"] == "true"
            assert second.headers["x-ability-request-id"] == first.headers["x-ability-request-id"]
            heard = list(again)
        assert heard[-1].type == "final_response"
        assert list(events)[-1].type == "final_response"
    other = client.post(
        "/api/ability/short-rest/sse", files={"params_json": (None, '{"a": 1}')}, headers=headers
    )
    assert_error(other, 422, "IDEMPOTENCY_KEY_REUSED")


def test_deleting_ends_the_stream_at_once(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 11."""
    with open_plain(client, "long", {}) as (response, events), server.client() as other:
        request_id = response.headers["x-ability-request-id"]
        assert next(events).message["node_id"] == "before"
        deleted = other.delete(f"/api/ability/long/{request_id}")
        assert (deleted.status_code, deleted.text) == (200, "true")
        assert status_of(other, "long", request_id)["status"] == "CANCELED"
        [error] = events
    assert error.type == "error"
    assert (error.message["status"], error.message["code"]) == ("CANCELED", "CANCELED")
    assert error.message["failure_reason"] is None
    assert status_of(client, "long", request_id)["status"] == "CANCELED"


def test_silence_is_filled_with_what_each_framing_can_bear(client: httpx.Client) -> None:
    form = {"params_json": (None, "{}")}
    plain_text = client.post("/api/ability/short-rest/sse", files=form).text
    assert "}\n\n\n" in plain_text  # a lone line feed
    assert ":" not in plain_text.split("\n")[2]
    standard_text = client.post("/api/ability/short-rest/sse", files=form, headers=SSE).text
    assert "\n: keep-alive\n\n" in standard_text


def test_a_stream_beyond_the_keys_places_starts_nothing(server: LiveServer) -> None:
    with server.client(server.make_key("run", "read", open_streams_max=1)) as limited:
        before = server.stored_execution_ids("other-ability")
        with open_plain(limited, "long", {}) as (response, events):
            next(events)
            refused = limited.post("/api/ability/other-ability/sse", files={"params_json": (None, "{}")})
            assert_error(refused, 429, "RATE_LIMITED")
            assert server.stored_execution_ids("other-ability") == before
            limited.delete(f"/api/ability/long/{response.headers['x-ability-request-id']}")
            list(events)
        for _ in range(3):  # refusals and failures give their place back
            bad = limited.post("/api/ability/my-ability/sse", files={"params_json": (None, "{}")})
            assert_error(bad, 400, "INVALID_PARAMS_JSON")
        assert types(plain(limited, "other-ability")) == ["node_output", "final_response"]


def test_errors_before_the_first_byte_are_json(client: httpx.Client) -> None:
    for headers in ({}, SSE):
        response = client.post(
            "/api/ability/nothing-here/sse", files={"params_json": (None, "{}")}, headers=headers
        )
        assert_error(response, 404, "ABILITY_NOT_FOUND")
    response = post(client, "my-ability", {"inputData": "x"}, callback_url="http://127.0.0.1/")
    assert_error(response, 400, "INVALID_CALLBACK_URL")
