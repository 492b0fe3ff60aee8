"""Ability contract, acceptance scenarios 14 and 15 (callbacks), over a real server and real receivers."""

from __future__ import annotations

import httpx
import pytest
from standardwebhooks import Webhook

from tests.contracts.ability.wire import assert_error, post, receiving, run, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def secret_of(server: LiveServer) -> str:
    return (server.folder / "webhook-secret").read_text().strip()


@pytest.mark.slow
def test_a_failing_receiver_is_tried_again_with_the_same_message(
    client: httpx.Client, server: LiveServer
) -> None:
    """Scenario 14. The pauses are the contract's: 5 s and 25 s, give or take a fifth."""
    with receiving(500, 500, 204) as receiver:
        request_id = run(client, "my-ability", {"inputData": "x"}, callback_url=receiver.url)
        before = wait_for(client, "my-ability", request_id)
        callbacks = receiver.wait_for(3)
        shown = client.get(f"/api/ability/my-ability/{request_id}/status").content
    headers = [{name.lower(): value for name, value in each.headers.items()} for each in callbacks]
    assert len({each["webhook-id"] for each in headers}) == 1
    assert [each["webhook-attempt"] for each in headers] == ["1", "2", "3"]
    for each, callback in zip(headers, callbacks, strict=True):
        assert callback.body == shown
        assert each["content-type"] == "application/json"
        # The library also refuses a time stamp that is not of now.
        assert Webhook(secret_of(server)).verify(callback.body, dict(each)) == before
    stamps = [int(each["webhook-timestamp"]) for each in headers]
    assert 4 <= stamps[1] - stamps[0] <= 12
    assert 20 <= stamps[2] - stamps[1] <= 40


def test_every_kind_of_end_is_told(client: httpx.Client) -> None:
    with receiving(204) as receiver:
        failed = run(client, "failing", callback_url=receiver.url)
        cancelled = run(client, "long", callback_url=receiver.url)
        assert client.delete(f"/api/ability/long/{cancelled}").json() is True
        with client.stream(
            "POST",
            "/api/ability/other-ability/sse",
            files={"params_json": (None, "{}"), "callback_url": (None, receiver.url)},
        ) as stream:
            streamed = stream.headers["x-ability-request-id"]
            stream.read()
        bodies = [httpx.Response(200, content=each.body).json() for each in receiver.wait_for(3)]
    by_id = {body["request_id"]: body for body in bodies}
    assert {request_id: body["status"] for request_id, body in by_id.items()} == {
        failed: "FAILED",
        cancelled: "CANCELED",
        streamed: "COMPLETED",
    }
    assert by_id[failed]["failure_reason"].startswith("bad: ")
    assert client.get(f"/api/ability/failing/{failed}/status").json() == by_id[failed]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/",
        "http://localhost/",
        "http://[::1]:8080/",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "http://10.0.0.1:8080/x",
        "https://user:secret@example.com/",
        "https://example.com:22/",
        "ftp://example.com/",
        "not a url",
        "https://example.com/" + "x" * 2_048,
    ],
)
def test_a_callback_url_out_of_bounds_starts_nothing(
    client: httpx.Client, server: LiveServer, url: str
) -> None:
    """Scenario 15; `localhost` is the name that resolves to a private address. Its second half, a name that
    turns private later, is in `tests/gateway/test_webhooks.py` and `test_egress_transport.py`."""
    before = server.stored_execution_ids("other-ability")
    details = assert_error(post(client, "other-ability", {}, callback_url=url), 400, "INVALID_CALLBACK_URL")
    assert [each["field"] for each in details] == ["callback_url"]
    assert server.stored_execution_ids("other-ability") == before
