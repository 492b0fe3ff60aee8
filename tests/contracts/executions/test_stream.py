"""Executions contract, acceptance scenarios 13 to 16, 19 and 20: the stream."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.contracts.executions.wire import Frame, events, open_stream, start, wait_for
from tests.contracts.live_server import LiveServer, poll

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

CHAIN_EVENTS = [
    "execution_started",
    *["node_started", "node_completed", "progress_update"] * 4,
    "execution_completed",
]


def test_a_live_stream_has_the_contracts_order_and_ends(client: httpx.Client) -> None:
    """Scenario 13."""
    frames = events(client, start(client, "chain"))
    assert [frame.type for frame in frames] == CHAIN_EVENTS
    ids = [frame.data["event_id"] for frame in frames]
    assert ids == sorted(set(ids))
    assert [frame.id for frame in frames] == ids
    for frame in frames:
        assert [line.partition(":")[0] for line in frame.lines] == ["id", "data"]
        assert frame.data["timestamp"].endswith("Z")
    assert [frame.data["progress"] for frame in frames if frame.type == "progress_update"] == [
        25.0,
        50.0,
        75.0,
        75.0,
    ]
    completed = [frame.data for frame in frames if frame.type == "node_completed"]
    assert [node["node_id"] for node in completed] == ["one", "two", "three", "four"]
    assert all(node["duration_ms"] >= 400 for node in completed)


def test_stream_headers_are_those_of_the_gateway_rules(client: httpx.Client) -> None:
    """G8, and `retry` first."""
    url = f"/v1/executions/{start(client, 'greeting', query='x')}/stream"
    with client.stream("GET", url, headers={"accept": "application/json"}) as response:
        text = "".join(response.iter_text())
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert text.startswith("retry: 3000\n\n")
    assert "[DONE]" not in text


def test_a_stream_cut_anywhere_resumes_without_gap_or_repeat(client: httpx.Client) -> None:
    """Scenario 14, for every event, by header and by query."""
    execution_id = start(client, "greeting", query="x")
    uncut = events(client, execution_id)
    for count in range(len(uncut)):
        last = str(uncut[count].id)
        by_header = events(client, execution_id, headers={"last-event-id": last})
        by_query = events(client, execution_id, last_event_id=last)
        assert by_header == by_query == uncut[count + 1 :]
    assert events(client, execution_id, headers={"last-event-id": "five"}) == uncut


def test_a_running_stream_cut_and_reopened_equals_an_uncut_one(
    client: httpx.Client, server: LiveServer
) -> None:
    """Scenario 14, while it runs."""
    execution_id = start(client, "chain")
    with ThreadPoolExecutor(1) as pool, server.client() as other:
        uncut = pool.submit(events, other, execution_id)
        first: list[Frame] = []
        with open_stream(client, execution_id) as frames:
            for frame in frames:
                if frame.is_event:
                    first.append(frame)
                if len(first) == 5:
                    break
        second = events(client, execution_id, headers={"last-event-id": str(first[-1].id)})
        assert first + second == uncut.result(timeout=30)


def test_a_stream_opened_after_the_end_replays_and_closes(client: httpx.Client) -> None:
    """Scenario 15."""
    execution_id = start(client, "greeting", query="x")
    wait_for(client, execution_id)
    frames = events(client, execution_id)
    assert frames[0].type == "execution_started"
    assert frames[-1].type == "execution_completed"
    assert frames[-1].data["final_output"] == {"answer": "Hello x!"}
    assert frames[-1].data["progress"] == 100.0


def test_a_failed_run_streams_its_failure(client: httpx.Client) -> None:
    """Section 3.4: node_failed and execution_failed, the same words as the status."""
    execution_id = start(client, "broken")
    shown = wait_for(client, execution_id)
    *_, failed, ended = events(client, execution_id)
    assert failed.data["will_retry"] is False
    assert failed.data["node_id"] == "bad"
    assert ended.data["type"] == "execution_failed"
    assert ended.data["error_message"] == shown["error_message"]


def test_silence_brings_keep_alive_comments_and_no_events(client: httpx.Client) -> None:
    """Scenario 16, with an interval of 0.3 s and a node of 2 s."""
    with open_stream(client, start(client, "pause")) as frames:
        all_frames = list(frames)
    comments = [frame for frame in all_frames if frame.lines == (": keep-alive",)]
    assert len(comments) >= 2
    types = [frame.type for frame in all_frames if frame.is_event]
    assert types == [
        "execution_started",
        "node_started",
        "node_completed",
        "progress_update",
        "execution_completed",
    ]


def _metric(client: httpx.Client, name: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no metric {name}")


def test_a_reader_that_never_reads_is_cut_and_harms_nobody(client: httpx.Client, server: LiveServer) -> None:
    """Scenario 20."""
    execution_id = start(client, "bulky")
    wait_for(client, execution_id)
    cut_before = _metric(client, "heliograph_streams_cut_total")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        stuck.sendall(
            f"GET /v1/executions/{execution_id}/stream HTTP/1.1\r\nHost: x\r\n"
            f"X-API-Key: {server.first_key}\r\n\r\n".encode()
        )
        other = events(client, execution_id)
        assert other[-1].type == "execution_completed"
        assert sum(frame.type == "node_completed" for frame in other) == 48

        def is_cut(_: object) -> bool:
            return _metric(client, "heliograph_streams_cut_total") == cut_before + 1

        poll(client, f"/v1/executions/{execution_id}", is_cut)
    assert _metric(client, "heliograph_open_streams") == 0


def test_joined_deltas_equal_the_output_of_a_text_generating_node(client: httpx.Client) -> None:
    """Scenario 19."""
    execution_id = start(client, "talk", q="Say something.")
    frames = events(client, execution_id, deltas="true")
    deltas = [frame.data["delta"] for frame in frames if frame.type == "output_delta"]
    [completed] = [frame.data for frame in frames if frame.type == "node_completed"]
    assert "".join(deltas) == completed["output"]
    assert completed["output"].startswith("[offline model] ")
    assert not [frame for frame in events(client, execution_id) if frame.type == "output_delta"]
