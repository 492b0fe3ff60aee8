"""Ability contract, acceptance scenarios 16 and 17 (uploads, idempotency), over a real server."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.contracts.ability.wire import Files, assert_error, post, run, status_of, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

TEXT = "text/plain"


def unfinished_files(server: LiveServer) -> list[Path]:
    return [path for path in (server.folder / "blobs").rglob("incoming/*") if path.is_file()]


def test_a_node_reads_the_exact_bytes_under_safe_names(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 16, what is stored."""
    contents = [os.urandom(300_000), b"", b"same name \x00 other bytes"]
    files: Files = [
        ("files", ("../../etc/passwd", contents[0], TEXT)),
        ("files", ("a b.txt", contents[1], TEXT)),
        ("files[]", ("a b.txt", contents[2], "image/png")),
    ]
    request_id = run(client, "files", {"a": 1}, files)
    done = wait_for(client, "files", request_id)
    assert done["status"] == "COMPLETED", done
    assert done["request_params_json"] == '{"a":1}'
    found = done["results"]["files"]
    assert [each["name"] for each in found] == ["passwd", "a b.txt", "a b-2.txt"]
    assert [each["sha256"] for each in found] == [hashlib.sha256(each).hexdigest() for each in contents]
    metadata = msgspec.json.decode(done["artifact_metadata_json"])
    assert metadata["outputs"] == []
    assert metadata["inputs"] == [each["told"] for each in found]
    for number, descriptor in enumerate(metadata["inputs"]):
        assert list(descriptor) == ["file_id", "name", "content_type", "size", "sha256", "uri"]
        assert descriptor["uri"] == f"artifact://{request_id}/{descriptor['file_id']}"
        assert descriptor["size"] == len(contents[number])
    assert [each["content_type"] for each in metadata["inputs"]] == [TEXT, TEXT, "image/png"]
    assert unfinished_files(server) == []


def test_a_request_cannot_read_the_files_of_another(client: httpx.Client) -> None:
    request_id = run(client, "files", {}, [("files", ("secret.txt", b"secret", TEXT))])
    done = wait_for(client, "files", request_id)
    [theirs] = msgspec.json.decode(done["artifact_metadata_json"])["inputs"]
    assert_error(post(client, "files", {"$files": [theirs]}), 400, "INVALID_PARAMS_JSON")


def test_too_many_or_too_large_files_run_nothing(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 16, the limits."""
    before = server.stored_execution_ids("files")
    eleven: Files = [("files", (f"{number}.txt", b"x", TEXT)) for number in range(11)]
    assert_error(post(client, "files", {}, eleven), 413, "PAYLOAD_TOO_LARGE")
    large: Files = [("files", ("large.bin", b"x" * (25 * 1024 * 1024 + 1), TEXT))]
    assert_error(post(client, "files", {}, large), 413, "PAYLOAD_TOO_LARGE")
    # The answer comes before the key is looked at, and before any byte of the body.
    connection = HTTPConnection(client.base_url.host, client.base_url.port, timeout=10)
    with closing(connection):
        connection.putrequest("POST", "/api/ability/files")
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.putheader("Content-Length", str(200 * 1024 * 1024))
        connection.endheaders()
        answer = connection.getresponse()
        declared = httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    assert_error(declared, 413, "PAYLOAD_TOO_LARGE")
    assert server.stored_execution_ids("files") == before
    assert unfinished_files(server) == []


def test_files_of_a_refused_request_leave_nothing(client: httpx.Client, server: LiveServer) -> None:
    blobs = sorted((server.folder / "blobs").rglob("*"))
    files: Files = [("files", ("unique.txt", os.urandom(1_000), TEXT))]
    assert_error(post(client, "my-ability", {}, files), 400, "INVALID_PARAMS_JSON")
    assert_error(post(client, "files", "[]", files), 400, "INVALID_PARAMS_JSON")
    assert_error(post(client, "files", {}, files, debug="x"), 400, "INVALID_DEBUG")
    assert_error(
        post(client, "files", {}, files, callback_url="http://10.0.0.1/"), 400, "INVALID_CALLBACK_URL"
    )
    assert [path for path in sorted((server.folder / "blobs").rglob("*")) if path.is_file()] == [
        path for path in blobs if path.is_file()
    ]


def test_the_same_key_and_body_run_once(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 17."""
    headers = {"Idempotency-Key": "same-1"}
    files: Files = [("files", ("a.txt", b"content", TEXT))]
    first = post(client, "files", {"a": 1}, files, headers)
    again = post(client, "files", '{ "a":1 }', files, headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    for changed in (
        post(client, "files", {"a": 2}, files, headers),
        post(client, "files", {"a": 1}, [("files", ("a.txt", b"other", TEXT))], headers),
        post(client, "files", {"a": 1}, files, headers, debug="true"),
    ):
        assert_error(changed, 422, "IDEMPOTENCY_KEY_REUSED")
    assert server.stored_execution_ids("files").count(first.json()) == 1
    assert unfinished_files(server) == []


def test_the_same_key_at_the_same_time_runs_once(client: httpx.Client, server: LiveServer) -> None:
    headers = {"Idempotency-Key": "race-1"}
    before = len(server.stored_execution_ids("other-ability"))
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(post, client, "other-ability", {}, (), headers) for _ in range(8)]
        answers = [each.result() for each in posts]
    accepted = {answer.json() for answer in answers if answer.status_code == 200}
    assert len(accepted) == 1
    for answer in answers:
        if answer.status_code != 200:
            assert_error(answer, 409, "IDEMPOTENCY_IN_PROGRESS")
            assert answer.headers["retry-after"] == "1"
    assert len(server.stored_execution_ids("other-ability")) == before + 1
    assert status_of(client, "other-ability", accepted.pop())["request_params_json"] == "{}"
