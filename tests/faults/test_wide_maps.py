"""A wide map under `kill -9`: items of recorded chunks are never worked on again."""

from __future__ import annotations

import os
import signal
from collections import Counter

import msgspec
import pytest

from runtime import datasets
from runtime.blob_store import BlobStore
from runtime.events import ChunksRecorded, Completed, Event, Recovered
from runtime.verification import pages, verify
from tests.contracts.live_server import flow
from tests.faults.server import FaultyServer
from tests.faults.test_batches import ask

pytestmark = [pytest.mark.fault, pytest.mark.slow]

ITEMS = 300
CHUNK = 5
NOTED = flow(
    "noted",
    {
        "id": "wide",
        "kind": "map",
        "over": "inputs.items",
        "chunk": {"size": CHUNK},
        "concurrency": 2,
        "each": {
            "kind": "python",
            "function": "tests.faults.steps:note",
            "with": {"item": "${item}", "file": "${inputs.file}"},
        },
    },
    output="${nodes.wide}",
)


def items_of(event: Event) -> list[int]:
    chunks = event.chunks if isinstance(event, ChunksRecorded) else ()
    return [item for chunk in chunks for item in range(chunk.first, chunk.first + chunk.items)]


def test_a_wide_map_outlives_two_kills_and_repeats_no_recorded_chunk(own_local_server: FaultyServer) -> None:
    server = own_local_server
    server.publish(NOTED)
    noted = server.folder / "noted.txt"
    body = {"input_data": {"items": list(range(ITEMS)), "file": str(noted)}}
    with server.kept():
        path = "/v1/executions/noted/async"
        execution_id = ask(server, "POST", path, json=body).json()["execution_id"]

        def recorded() -> int:
            with server.log() as log:
                return sum(len(items_of(one.event())) for one in log.read(execution_id))

        for share in (ITEMS // 4, ITEMS // 2):
            server.until(lambda share=share: recorded() >= share, "no progress")
            os.kill(server.pid, signal.SIGKILL)
        server.until(lambda: recorded() == ITEMS, "it does not end")
        server.until(
            lambda: ask(server, "GET", f"/v1/executions/{execution_id}").json()["status"] == "COMPLETED",
            "its end is not recorded",
        )
    assert server.exits.count(-signal.SIGKILL) == 2
    with server.log() as log:
        history = [one.event() for one in log.read(execution_id)]
        assert verify(pages(log.feed)).is_clean
    assert Counter(item for event in history for item in items_of(event)) == Counter(range(ITEMS))
    lives = [place for place, event in enumerate(history) if isinstance(event, Recovered)]
    assert len(lives) == 2
    runs = Counter(int(line) for line in noted.read_text().split())
    assert set(runs) == set(range(ITEMS))
    first_life = {item for event in history[: lives[0]] for item in items_of(event)}
    assert len(first_life) >= ITEMS // 4
    assert {runs[item] for item in first_life} == {1}, "what was recorded before the first kill ran once"
    second_life = {item for event in history[lives[0] : lives[1]] for item in items_of(event)}
    assert max(runs[item] for item in second_life) <= 2, "and not again after the second"
    end = history[-1]
    assert isinstance(end, Completed)
    dataset = datasets.parse_dataset(end.output)
    blobs = BlobStore(str(server.folder / "blobs"))
    assert [msgspec.json.decode(line) for line in datasets.iter_results(blobs, dataset)] == list(range(ITEMS))
