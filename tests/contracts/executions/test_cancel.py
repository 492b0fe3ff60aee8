"""Executions contract, acceptance scenarios 10 to 12: cancel. (9 is in test_restart.)"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.contracts.executions.wire import events, start, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def test_the_first_cancel_of_a_running_execution_wins_and_shows_at_once(client: httpx.Client) -> None:
    """Scenario 10."""
    execution_id = start(client, "endless")
    wait_for(client, execution_id, "RUNNING")
    first = client.delete(f"/v1/executions/{execution_id}")
    shown = client.get(f"/v1/executions/{execution_id}").json()
    second = client.delete(f"/v1/executions/{execution_id}")
    assert first.status_code == second.status_code == 200
    assert first.json() == {
        "execution_id": execution_id,
        "cancelled": True,
        "message": "Execution cancelled successfully.",
        "previous_status": "RUNNING",
    }
    assert shown["status"] == "CANCELLED"
    assert shown["completed_at"] is not None
    assert second.json() == {
        "execution_id": execution_id,
        "cancelled": False,
        "message": "Execution cannot be cancelled: it is already CANCELLED.",
        "previous_status": "CANCELLED",
    }
    [*_, last] = events(client, execution_id)
    assert last.data["type"] == "execution_cancelled"
    assert last.data["previous_status"] == "RUNNING"
    assert client.get(f"/v1/executions/{execution_id}").json()["completed_at"] == shown["completed_at"]


def test_a_cancel_ends_an_open_stream(client: httpx.Client, server: LiveServer) -> None:
    """Section 3.4 and G7: the stream ends with the accepted cancel."""
    execution_id = start(client, "endless")
    with ThreadPoolExecutor(1) as pool, server.client() as other:
        following = pool.submit(events, other, execution_id)
        wait_for(client, execution_id, "RUNNING")
        client.delete(f"/v1/executions/{execution_id}")
        assert following.result(timeout=30)[-1].type == "execution_cancelled"


def test_a_completed_execution_cannot_be_cancelled_and_stays_as_it_is(client: httpx.Client) -> None:
    """Scenario 11."""
    execution_id = start(client, "greeting", query="x")
    before = wait_for(client, execution_id)
    answer = client.delete(f"/v1/executions/{execution_id}")
    assert answer.status_code == 200
    assert answer.json()["cancelled"] is False
    assert answer.json()["previous_status"] == "COMPLETED"
    assert client.get(f"/v1/executions/{execution_id}").json() == before


def test_of_ten_parallel_cancels_exactly_one_wins(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 12."""
    execution_id = start(client, "endless")
    wait_for(client, execution_id, "RUNNING")

    def cancel(_: int) -> bool:
        with server.client() as own:
            return own.delete(f"/v1/executions/{execution_id}").json()["cancelled"]

    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(cancel, range(10))) == [False] * 9 + [True]
