"""Executions contract, acceptance scenarios 1 to 8: start and status."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.contracts.executions.wire import start, wait_for
from tests.contracts.live_server import LiveServer, poll

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_start_answers_202_with_four_keys_and_urls_that_work(client: httpx.Client) -> None:
    """Scenario 1."""
    body = {"input_data": {"query": "What is X?", "user_id": "user-123"}}
    response = client.post("/v1/executions/greeting/async", json=body)
    assert response.status_code == 202
    accepted = response.json()
    assert set(accepted) == {"execution_id", "status_url", "stream_url", "cancel_url"}
    assert response.headers["location"] == accepted["status_url"]
    for name in ("status_url", "stream_url", "cancel_url"):
        assert accepted[name].startswith(str(client.base_url).rstrip("/"))
    assert client.get(accepted["status_url"]).status_code == 200
    assert client.get(accepted["stream_url"]).status_code == 200
    assert client.delete(accepted["cancel_url"]).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{}", b'{"input_data": null}', b'{"callback_url": 5}'])
def test_no_input_starts_a_flow_that_requires_none(client: httpx.Client, body: bytes) -> None:
    """Scenario 2."""
    headers = {"content-type": "application/json"} if body else {}
    response = client.post("/v1/executions/pause/async", content=body, headers=headers)
    assert response.status_code == 202
    refused = client.post("/v1/executions/strict/async", content=body, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("input_data: ")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"input_data": []}', "input_data: must be an object"),
        (b"{bad", "body: is not valid JSON"),
        (b'{"input_data": {"query": 5}}', "input_data.query: "),
        (b'[{"input_data": {}}]', "body: "),
    ],
)
def test_bad_input_is_422_and_starts_nothing(
    server: LiveServer, client: httpx.Client, body: bytes, named: str
) -> None:
    """Scenario 3."""
    before = server.stored_execution_ids("strict")
    headers = {"content-type": "application/json"}
    response = client.post("/v1/executions/strict/async", content=body, headers=headers)
    assert response.status_code == 422
    assert list(response.json()) == ["detail"]
    assert response.json()["detail"].startswith(named)
    assert server.stored_execution_ids("strict") == before


def test_a_finished_run_shows_its_result_and_times(client: httpx.Client) -> None:
    """Scenario 4."""
    done = wait_for(client, start(client, "greeting", query="World"))
    assert done["status"] == "COMPLETED"
    assert done["progress"] == 100.0
    assert done["final_output"] == {"answer": "Hello World!"}
    assert done["error_message"] is None
    assert done["current_node"] is None
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]
    for name in ("created_at", "started_at", "completed_at", "cleanup_after"):
        assert DATE.fullmatch(done[name]), name
    assert done["is_temporary"] is True
    assert done["execution_source"] == "CHATBOT"
    assert len(done) == 15


def test_a_result_that_is_no_object_is_wrapped(client: httpx.Client) -> None:
    """Section 3.2, final_output."""
    done = wait_for(client, start(client, "strict", query="word"))
    assert done["final_output"] == {"output": "word"}


def test_progress_of_a_chain_takes_its_quarters_and_never_falls(client: httpx.Client) -> None:
    """Scenario 5."""
    seen: list[tuple[float, str | None]] = []

    def note(body: dict[str, object]) -> bool:
        seen.append((float(str(body["progress"])), body["current_node"]))  # type: ignore[arg-type]
        return body["status"] == "COMPLETED"

    execution_id = start(client, "chain")
    poll(client, f"/v1/executions/{execution_id}", note)
    values = [progress for progress, _ in seen]
    assert values == sorted(values)
    assert {0.0, 25.0, 50.0, 75.0, 100.0} == set(values)
    running = {0.0: "one", 25.0: "two", 50.0: "three", 75.0: "four"}
    named = {(progress, node) for progress, node in seen if node is not None}
    assert named == set(running.items())


def test_retries_are_counted_and_nodes_counted_once(client: httpx.Client) -> None:
    """Scenario 6."""
    done = wait_for(client, start(client, "flaky"))
    assert done["status"] == "COMPLETED"
    assert done["retry_count"] == 2
    assert done["completed_nodes"] == done["total_nodes"] == 2


def test_a_node_that_always_fails_fails_the_execution(client: httpx.Client) -> None:
    """Scenario 7."""
    done = wait_for(client, start(client, "broken"))
    assert done["status"] == "FAILED"
    assert done["error_message"].startswith("Node bad failed: ")
    assert done["final_output"] is None
    assert done["progress"] < 100


def test_a_run_over_its_time_limit_fails_and_says_so(client: httpx.Client) -> None:
    """Scenario 8."""
    done = wait_for(client, start(client, "late"))
    assert done["status"] == "FAILED"
    assert done["error_message"].startswith("Execution timed out")
