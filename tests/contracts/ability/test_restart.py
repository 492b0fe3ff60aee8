"""Ability contract, acceptance scenarios 13 (a queued request) and 19, on a server of their own."""

from __future__ import annotations

import httpx
import pytest

from tests.contracts.ability.flows import HELD, OTHER, SHORT_REST
from tests.contracts.ability.wire import RECEIVER_ADDRESS, receiving, run, status_of, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


def test_queued_requests_and_a_killed_gateway(own_server: LiveServer) -> None:
    """One server for both, because each start takes seconds."""
    server = own_server
    server.start(
        running_max="1", hosts="1", callback_allow=RECEIVER_ADDRESS, ability_auth_failure_status="403"
    )
    server.publish(HELD, OTHER, SHORT_REST)
    with server.client() as client:
        _a_running_and_a_queued_request_are_cancelled_together(client, str(server.folder / "release"))
    with server.client("wrong") as stranger:
        assert stranger.delete("/api/ability/held-ability/x").status_code == 403
    with receiving(204) as receiver:
        _a_killed_gateway_keeps_its_word(server, receiver.url)
        [callback] = receiver.wait_for(1)
        assert b'"status":"COMPLETED"' in callback.body


def _a_running_and_a_queued_request_are_cancelled_together(client: httpx.Client, path: str) -> None:
    """Scenario 13: one place for running executions, and it is taken."""
    completed = run(client, "other-ability")
    assert wait_for(client, "other-ability", completed)["status"] == "COMPLETED"
    running, queued = (run(client, "held-ability", {"path": path}) for _ in range(2))
    wait_for(client, "held-ability", running, "PROCESSING")
    assert status_of(client, "held-ability", queued)["status"] == "PENDING"
    response = client.delete("/api/ability/held-ability", params={"request_ids": [running, queued]})
    assert (response.status_code, response.text) == (200, "true")
    assert {status_of(client, "held-ability", each)["status"] for each in (running, queued)} == {"CANCELED"}


def _a_killed_gateway_keeps_its_word(server: LiveServer, url: str) -> None:
    """Scenario 19: killed after the 200, with everything it had started."""
    with server.client() as client:
        request_id = run(client, "short-rest", callback_url=url)
    server.kill()
    server.start(hosts="1", callback_allow=RECEIVER_ADDRESS)
    with server.client() as client:
        done = wait_for(client, "short-rest", request_id)
        assert done["results"] == {"said": "begun, ended"}
