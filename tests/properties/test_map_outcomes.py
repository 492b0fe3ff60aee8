"""Whatever happened in whichever round at whichever host: each item has its latest outcome, in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.map_outcomes import MapOutcomes, MapRun, Round
from runtime.blob_store import BlobStore
from runtime.datasets import ItemFailure, write_failures, write_lines
from runtime.event_log import EventLog
from runtime.events import ChunkResult, StepError

BLOBS = BlobStore("memory://map-outcomes")


class Item(NamedTuple):
    """``ok``: None where it was not recorded in that round."""

    place: int
    ok: bool | None


class Story(NamedTuple):
    """``items[i]``: the items of the i-th shard, in its order; what was not recorded stands at any place."""

    shards: list[list[Item]]
    ends: list[int]
    is_closed: bool


class Recorded(MapOutcomes):
    """Chunks as the stories tell, instead of a log's."""

    def __init__(self, stories: list[Story]) -> None:
        super().__init__(cast("EventLog", None), BLOBS)
        self.found = {
            MapRun(f"{number}-{shard}", "items"): list(_chunks(number, items, story.ends))
            for number, story in enumerate(stories)
            for shard, items in enumerate(story.shards)
        }

    def chunks(self, run: MapRun) -> list[ChunkResult]:
        return self.found[run]


def _chunks(number: int, items: list[Item], ends: list[int]) -> Iterator[ChunkResult]:
    run: list[tuple[int, Item]] = []
    for local, item in enumerate([*items, Item(-1, None)]):
        if item.ok is None or local in ends:
            if run:
                yield _chunk(number, run)
            run = []
        if item.ok is not None:
            run.append((local, item))


def _chunk(number: int, run: list[tuple[int, Item]]) -> ChunkResult:
    wrong = StepError(type="Wrong", message=f"in round {number}")
    failures = [
        ItemFailure(index=local, error=wrong, item=msgspec.Raw(b"%d" % item.place))
        for local, item in run
        if not item.ok
    ]
    lines = (b'"%d in %d"' % (item.place, number) if item.ok else b"null" for _, item in run)
    return ChunkResult(
        first=run[0][0],
        items=len(run),
        failed=len(failures),
        results=write_lines(BLOBS, lines) if len(failures) < len(run) else None,
        errors=write_failures(BLOBS, failures) if failures else None,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Story]:
    """Up to three rounds; each but the first over what had failed before it."""
    stories: list[Story] = []
    places = list(range(draw(st.integers(0, 12))))
    rounds = draw(st.integers(1, 3))
    for number in range(rounds):
        count = draw(st.integers(1, 3))
        oks = draw(
            st.lists(st.sampled_from([True, False, False, None]), min_size=len(places), max_size=len(places))
        )
        items = [Item(place, ok) for place, ok in zip(places, oks, strict=True)]
        shards = [items[shard::count] for shard in range(count)]
        ends = draw(st.lists(st.integers(0, 12), max_size=3))
        is_last = number == rounds - 1
        stories.append(Story(shards, ends, draw(st.booleans()) if is_last else True))
        if number == 0:
            places = [item.place for item in items if item.ok is False]
        else:
            places = [item.place for item in items if item.ok is not True]
    return stories


LEFT_OUT = [
    Story([[Item(0, False), Item(1, False)]], [], True),
    Story([[Item(0, None), Item(1, True)]], [], True),
]
"""An item that a closed round has not recorded, before one that it has."""


@settings(max_examples=150, deadline=None)
@example(LEFT_OUT, -1)
@given(histories(), st.integers(-1, 12))
def test_each_item_has_its_latest_outcome_in_its_place(stories: list[Story], after: int) -> None:
    latest: dict[int, tuple[bool, int]] = {}
    failed: dict[int, int] = {}
    rounds: list[Round] = []
    for number, story in enumerate(stories):
        members = sorted(item.place for shard in story.shards for item in shard)
        indexes = write_lines(BLOBS, (b"%d" % place for place in members)) if number else None
        runs = tuple(MapRun(f"{number}-{shard}", "items") for shard in range(len(story.shards)))
        rounds.append(Round(runs, indexes, story.is_closed))
        for shard in story.shards:
            for item in shard:
                if item.ok is not None:
                    latest[item.place] = (item.ok, number)
                if item.ok is False:
                    failed[item.place] = number
                elif item.ok or not story.is_closed:
                    failed.pop(item.place, None)
    outcomes = Recorded(stories)
    assert [
        (each.index, each.output if each.failure is None else each.failure.error.message)
        for each in outcomes.results(rounds)
    ] == [
        (place, b'"%d in %d"' % (place, number) if ok else f"in round {number}")
        for place, (ok, number) in sorted(latest.items())
    ]
    assert [
        (each.index, each.error.message, bytes(each.item)) for each in outcomes.failed(rounds, after)
    ] == [
        (place, f"in round {number}", b"%d" % place)
        for place, number in sorted(failed.items())
        if place > after
    ]
