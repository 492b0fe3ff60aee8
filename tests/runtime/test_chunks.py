"""The chunks of a wide map: nothing twice, nothing lost, whatever comes in whatever order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import chunks, commands
from runtime.chunks import ChunkState
from runtime.errors import Diverged
from runtime.events import ChunkResult, ChunksRecorded
from runtime.execution import fold
from runtime.ids import SECOND
from tests.runtime.scenario import Scenario, node, plan_of

M = node("m")


@st.composite
def runs(draw: st.DrawFn) -> ChunkResult:
    items = draw(st.integers(0, 12))
    return ChunkResult(
        first=draw(st.integers(0, 60)), items=items, failed=min(items, draw(st.integers(0, 3)))
    )


def running_map() -> Scenario:
    scenario = Scenario(plan_of({"m": (), "after": ("m",)}))
    scenario.when(commands.StartNode, node_id=M)
    return scenario


def record(scenario: Scenario, *done: ChunkResult, total: int | None = None) -> list[Any]:
    return scenario.when(commands.RecordChunks, node_id=M, attempt=1, source="s1", total=total, chunks=done)


def known(scenario: Scenario) -> ChunkState:
    found = scenario.state.nodes[M].chunks
    assert found is not None
    return found


@given(st.lists(st.lists(runs(), max_size=6), max_size=12))
def test_recorded_chunks_never_overlap_and_gaps_are_the_rest(batches: list[list[ChunkResult]]) -> None:
    state = ChunkState()
    covered: set[int] = set()
    for at, batch in enumerate(batches):
        fresh = chunks.news_of(state.recorded, batch)
        for chunk in fresh:
            items = set(range(chunk.first, chunk.first + chunk.items))
            assert items
            assert not items & covered
            covered |= items
        for chunk in set(batch) - set(fresh):
            items = set(range(chunk.first, chunk.first + chunk.items))
            assert not items or items & covered, "only what overlaps is left out"
        state = chunks.with_chunks(state, at * SECOND, None, fresh)
    assert [chunk.first for chunk in state.recorded] == sorted(chunk.first for chunk in state.recorded)
    assert state.done == len(covered)
    assert state.failed == sum(chunk.failed for chunk in state.recorded)
    *closed, (last, end) = chunks.gaps(state.recorded)
    assert end is None
    assert last == max(covered, default=-1) + 1
    missing = {item for first, stop in closed if stop is not None for item in range(first, stop)}
    assert missing == set(range(last)) - covered


def test_the_first_event_tells_source_and_total_and_each_tells_the_sums() -> None:
    scenario = running_map()
    (opened,) = record(scenario, total=10)
    assert (opened.source, opened.total, opened.done) == ("s1", 10, 0)
    scenario.after(2)
    (event,) = record(scenario, ChunkResult(first=4, items=4, failed=1), ChunkResult(first=0, items=2))
    assert (event.source, event.done, event.failed, event.rate) == ("", 6, 1, 3.0)
    assert known(scenario).share == 0.6
    assert scenario.state.progress == 30.0
    assert record(scenario, ChunkResult(first=1, items=4)) == []


def test_a_completed_map_keeps_its_counts_but_not_its_chunks() -> None:
    scenario = running_map()
    record(scenario, ChunkResult(first=0, items=3, failed=1), total=3)
    scenario.when(commands.RecordCompleted, node_id=M, attempt=1, output={})
    assert (known(scenario).recorded, known(scenario).done, known(scenario).failed) == ((), 3, 1)


def test_nothing_is_recorded_after_a_cancel_but_a_pause_changes_nothing() -> None:
    scenario = running_map()
    scenario.when(commands.Pause)
    assert record(scenario, ChunkResult(first=0, items=3))
    scenario.when(commands.RequestCancel)
    assert record(scenario, ChunkResult(first=3, items=3)) == []


def test_the_rate_is_that_of_late_and_begins_anew_after_a_pause() -> None:
    scenario = running_map()
    (event,) = record(scenario)
    for at in range(40):
        scenario.after(1)
        (event,) = record(scenario, ChunkResult(first=at * 10, items=10 if at < 20 else 1))
    assert event.rate < 5, "the first 20 s gave ten items a second, the last 20 one"
    assert len(known(scenario).marks) == chunks.MARKS_MAX
    scenario.when(commands.Pause)
    scenario.after(1_000)
    scenario.when(commands.Resume)
    (event,) = record(scenario, ChunkResult(first=1_000, items=1))
    assert event.rate == 0
    scenario.after(1)
    (event,) = record(scenario, ChunkResult(first=1_001, items=7))
    assert event.rate == 7


def test_time_left_needs_a_rate_and_a_total() -> None:
    assert chunks.seconds_left(100, 40, 20.0) == 3.0
    assert chunks.seconds_left(None, 40, 20.0) is None
    assert chunks.seconds_left(100, 40, 0.0) is None


@pytest.mark.parametrize(
    "event",
    [
        {"chunks": (ChunkResult(first=1, items=1),), "done": 4},
        {"chunks": (ChunkResult(first=3, items=1),), "done": 9},
        {"source": "another", "done": 3},
    ],
)
def test_a_history_that_records_an_item_twice_or_sums_wrongly_is_refused(event: dict[str, Any]) -> None:
    scenario = running_map()
    record(scenario, ChunkResult(first=0, items=3))
    head = {"originator_id": scenario.state.execution_id, "originator_version": scenario.state.version + 1}
    with pytest.raises(Diverged, match="chunks of node m don't fit"):
        fold([*scenario.log, ChunksRecorded(**head, at=scenario.now, node_id="m", **event)])
