"""A batch under `kill -9`: every item has one outcome and one execution; nothing recorded runs again."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import httpx
import msgspec
import pytest

from projections.store import ReadStore
from runtime.event_log import EventLog
from runtime.events import ChunksRecorded
from runtime.verification import pages, verify
from tests.contracts.live_server import flow
from tests.faults.crash_points import EXIT_CODE
from tests.faults.server import FaultyServer

pytestmark = [pytest.mark.fault, pytest.mark.slow]

BATCHES = "/api/admin/batches"
ITEMS = 120
ROUND = flow(
    "batch-item",
    {"id": "hello", "kind": "template", "template": "Hello {{ inputs.n }}"},
    {"id": "rest", "kind": "sleep", "seconds": 0.05, "needs": ["hello"]},
    {"id": "said", "kind": "template", "template": "{{ nodes.hello }}!", "needs": ["rest"]},
    inputs={"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}},
    output="${nodes.said}",
)
BAD = 17
"""The item that its flow can't take."""


def ask(server: FaultyServer, method: str, path: str, **request: Any) -> httpx.Response:
    """Ask until an answer comes: the server may be dead."""
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        try:
            with server.client() as client:
                answer = client.request(method, path, **request)
        except httpx.TransportError:
            return False
        if answer.status_code >= 500 or answer.status_code == 409:
            return False
        answers.append(answer)
        return True

    server.until(is_answered, f"{method} {path} is not answered")
    assert answers[-1].is_success, answers[-1].text
    return answers[-1]


def shown(server: FaultyServer, batch_id: str) -> dict[str, Any]:
    return ask(server, "GET", f"{BATCHES}/{batch_id}").json()


def test_a_batch_outlives_the_kill_of_everything_and_does_no_item_twice(
    own_local_server: FaultyServer,
) -> None:
    server = own_local_server
    server.publish(ROUND)
    inputs = [{"n": n if n != BAD else "x"} for n in range(ITEMS)]
    body = {"flow": "batch-item", "inputs": inputs, "concurrency": 10}
    # The first life ends when the batch is recorded (behind the built-in flow), and nothing of it started.
    with server.kept([("append.execution.after", 2)]):
        headers = {"Idempotency-Key": "the-batch"}
        batch_id = ask(server, "POST", BATCHES, json=body, headers=headers).json()["batch_id"]
        for done in (ITEMS // 4, ITEMS // 2):
            server.until(
                lambda done=done: shown(server, batch_id)["counts"]["completed"] >= done, "no progress"
            )
            os.kill(server.pid, signal.SIGKILL)
        server.until(lambda: shown(server, batch_id)["status"] == "completed", "it does not end")
        batch = shown(server, batch_id)
        results = ask(server, "GET", f"{BATCHES}/{batch_id}/results").content.splitlines()
    assert server.exits.count(-signal.SIGKILL) == 2
    assert EXIT_CODE in server.exits
    assert batch["counts"] == {
        "total": ITEMS,
        "queued": 0,
        "running": 0,
        "completed": ITEMS - 1,
        "failed": 1,
        "cancelled": 0,
    }
    lines: list[Any] = [msgspec.json.decode(line) for line in results]
    assert [line.get("output") for line in lines] == [
        f"Hello {n}!" if n != BAD else None for n in range(ITEMS)
    ]
    with server.log() as log:
        _every_item_ran_once(log, batch["rounds"][0]["executions"])
        assert verify(pages(log.feed)).is_clean


def _every_item_ran_once(log: EventLog, executions: list[str]) -> None:
    recorded = Counter(
        index
        for execution in executions
        for stored in log.read(execution)
        if isinstance(event := stored.event(), ChunksRecorded)
        for chunk in event.chunks
        for index in range(chunk.first, chunk.first + chunk.items)
    )
    assert recorded == Counter(range(ITEMS))
    rows = ReadStore.over(log).query(
        "SELECT status, COUNT(*) FROM executions WHERE flow_id = 'batch-item' GROUP BY status"
    )
    assert rows == [("completed", ITEMS - 1)]
