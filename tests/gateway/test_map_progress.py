"""How far a wide map is, as each door tells it: stream, status, bars; all of it out of the events."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import msgspec
from rich.console import Console

from gateway.cli.executions import event_line
from gateway.client.progress import ExecutionBars, bars
from gateway.client.views import EventRecord
from gateway.dialects.audit.timeline import Items, timeline
from gateway.dialects.executions.stream import StreamEncoder
from runtime import chunks, codec, commands
from runtime.blob_store import BlobStore
from runtime.events import ChunkResult, Event
from tests.runtime.scenario import Scenario, node, plan_of

MAP = node("m")


def half_way() -> Scenario:
    """250 of 1,000 items after five seconds, two of them failed."""
    scenario = Scenario(plan_of({"m": (), "after": ("m",)}))
    scenario.when(commands.StartNode, node_id=MAP)
    record(scenario)
    scenario.after(5)
    record(scenario, ChunkResult(first=0, items=250, failed=2))
    return scenario


def record(scenario: Scenario, *done: ChunkResult) -> None:
    scenario.when(commands.RecordChunks, node_id=MAP, attempt=1, source="s", total=1_000, chunks=done)


def frames(history: list[Event]) -> list[dict[str, Any]]:
    async def all_of_them() -> list[bytes]:
        encoder = StreamEncoder("e", {}, BlobStore("memory://progress"))
        made = [await encoder.encode(position, event) for position, event in enumerate(history, start=1)]
        return [text for numbered in made for _, text in numbered]

    lines = [line for text in asyncio.run(all_of_them()) for line in text.split(b"\n")]
    return [msgspec.json.decode(line[6:]) for line in lines if line.startswith(b"data: ")]


def test_a_stream_tells_items_rate_and_time_left() -> None:
    *_, latest = frames(half_way().log)
    assert latest["type"] == "progress_update"
    assert (latest["progress"], latest["completed_nodes"]) == (12.5, 0)
    assert latest["items"] == {
        "node_id": "m",
        "done": 250,
        "failed": 2,
        "total": 1_000,
        "rate": 50.0,
        "seconds_left": 15.0,
    }


def test_a_status_tells_the_same_and_no_rate_of_what_has_ended() -> None:
    scenario = half_way()
    (shown,) = timeline(scenario.state, scenario.log)
    assert shown.items == Items(done=250, total=1_000, failed=2, rate=50.0, seconds_left=15.0)
    record(scenario, ChunkResult(first=250, items=750))
    scenario.when(commands.RecordCompleted, node_id=MAP, attempt=1)
    (shown,) = timeline(scenario.state, scenario.log)
    assert shown.items == Items(done=1_000, total=1_000, failed=2)


def test_bars_and_lines_tell_it_to_people() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bars(console) as drawn:
        shown = ExecutionBars(drawn, "e")
        for position, event in enumerate(half_way().log, start=1):
            shown.take(as_record(position, event))
        bar = drawn.tasks[1]
        assert (bar.completed, bar.total) == (250, 1_000)
        assert bar.description == "  m  250 of 1000, 2 failed, 50/s, 15 s left"
    (line,) = [
        event_line({"position": 9, "at": "now", "type": event.TOPIC, "data": msgspec.to_builtins(event)})
        for event in half_way().log[-1:]
    ]
    assert line.endswith("chunks_recorded       m  250 of 1000, 2 failed, 50/s, 15 s left")


def as_record(position: int, event: Event) -> EventRecord:
    data = msgspec.json.decode(codec.encode(event, ""))
    at = "2026-01-31T12:00:00Z"
    row = {"position": position, "stream": "e", "version": 1, "type": event.TOPIC, "at": at, "data": data}
    return msgspec.convert(row, EventRecord)


def test_long_times_and_unknown_numbers_are_told_as_such() -> None:
    assert chunks.told(10, None, 0, 0.0) == "10 items"
    assert chunks.told(10, 4_000, 0, 0.5) == "10 of 4000, 0.5/s, 2:13:00 left"
    assert chunks.told(4_000, 4_000, 1, 20.0) == "4000 of 4000, 1 failed, 20/s"
