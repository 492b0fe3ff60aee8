"""Executions contract, acceptance scenarios 9, 17 (purged) and 22, on a server of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contracts.executions.flows import CHAIN, GREETING, HELD
from tests.contracts.executions.wire import Frame, events, open_stream, start, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


def test_queueing_killing_and_restarting(own_server: LiveServer) -> None:
    """Scenarios 9, 22 and the purged id of 17; one server, because each start takes seconds."""
    server = own_server
    server.start(running_max="1", hosts="1")
    server.publish(GREETING, HELD, CHAIN)
    release = server.folder / "release"
    _a_pending_run_is_cancelled_before_any_node_starts(server, release)
    chain_id, seen = _a_run_is_killed_midway(server)

    server.start(running_max="10", hosts="1")
    with server.client() as client:
        done = wait_for(client, chain_id)
        assert done["status"] == "COMPLETED"
        assert done["completed_nodes"] == done["total_nodes"] == 4
        whole = events(client, chain_id)
        assert whole[: len(seen)] == seen
        assert events(client, chain_id, headers={"last-event-id": str(seen[-1].id)}) == whole[len(seen) :]
        completed = [frame.data["node_id"] for frame in whole if frame.type == "node_completed"]
        assert completed == ["one", "two", "three", "four"]
    assert server.stop() == 0, server.errors()

    server.start(retention_seconds="0")
    with server.client() as client:
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/stream")):
            answer = client.request(method, f"/v1/executions/{chain_id}{tail}")
            assert (answer.status_code, answer.content) == (404, b'{"detail":"Execution not found."}')


def _a_pending_run_is_cancelled_before_any_node_starts(server: LiveServer, release: Path) -> None:
    """Scenario 9: one place for running executions, and it is taken."""
    with server.client() as client, ThreadPoolExecutor(1) as pool, server.client() as other:
        holder = start(client, "held", path=str(release))
        wait_for(client, holder, "RUNNING")
        pending = start(client, "greeting", query="x")
        shown = client.get(f"/v1/executions/{pending}").json()
        assert (shown["status"], shown["started_at"], shown["current_node"]) == ("PENDING", None, None)
        following = pool.submit(events, other, pending)
        answer = client.delete(f"/v1/executions/{pending}").json()
        assert (answer["cancelled"], answer["previous_status"]) == (True, "PENDING")
        assert [frame.type for frame in following.result(timeout=30)] == ["execution_cancelled"]
        release.touch()
        assert wait_for(client, holder)["status"] == "COMPLETED"
        shown = client.get(f"/v1/executions/{pending}").json()
        assert (shown["status"], shown["started_at"], shown["completed_nodes"]) == ("CANCELLED", None, 0)


def _a_run_is_killed_midway(server: LiveServer) -> tuple[str, list[Frame]]:
    """Scenario 22, its first half: the server dies after the first node was recorded."""
    seen: list[Frame] = []
    with server.client() as client:
        chain_id = start(client, "chain")
        with open_stream(client, chain_id) as frames:
            for frame in frames:
                if frame.is_event:
                    seen.append(frame)
                if seen and seen[-1].type == "progress_update":
                    break
    server.kill()
    return chain_id, seen
