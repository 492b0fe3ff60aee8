"""What a wide map reads: unrecorded items, again after faults of storage, never of another source."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from actors.chunk_sizes import CHUNKS_OF_A_PACE, FIRST_ITEMS, ITEMS_MAX, ChunkSizes, pace_of
from actors.chunk_source import ChunkSource, ListStream, Stream
from runtime.errors import Diverged, Unavailable
from runtime.events import ChunkResult


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.chunk_source.TRY_SECONDS", 0.001)


class Shaky(ListStream):
    """Fails at some places, each as often as told."""

    def __init__(self, items: tuple[Any, ...], faults: dict[int, int]) -> None:
        super().__init__(items)
        self._faults = faults
        self._next = 0

    def read(self, count: int, bytes_max: int) -> list[msgspec.Raw]:
        if self._faults.get(self._next, 0):
            self._faults[self._next] -= 1
            raise Unavailable("the storage is away")
        taken = super().read(count, bytes_max)
        self._next += len(taken)
        return taken

    def skip(self, count: int) -> None:
        super().skip(count)
        self._next += count


def reading(
    open_stream: Callable[[], Stream], work: Callable[[ChunkSource], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        source = ChunkSource(open_stream)
        try:
            await source.open()
            await work(source)
        finally:
            source.close()

    asyncio.run(main())


async def rest(source: ChunkSource, count: int, bytes_max: int = 1_000) -> list[tuple[int, list[Any]]]:
    taken: list[tuple[int, list[Any]]] = []
    while (piece := await source.take(count, bytes_max)) is not None:
        taken.append((piece.first, [msgspec.json.decode(item) for item in piece.items]))
    return taken


def test_recorded_items_are_left_out_and_pieces_end_where_they_begin() -> None:
    async def work(source: ChunkSource) -> None:
        assert (source.total, source.left) == (10, 10)
        source.leave_out((ChunkResult(first=0, items=2), ChunkResult(first=5, items=3)))
        assert await rest(source, 4) == [(2, [2, 3, 4]), (8, [8, 9])]
        assert (source.total, source.left, source.is_at_end) == (10, 0, True)

    reading(lambda: ListStream(tuple(range(10))), work)


def test_a_piece_has_no_more_bytes_than_asked_but_at_least_one_item() -> None:
    async def work(source: ChunkSource) -> None:
        source.leave_out(())
        assert await rest(source, 10, bytes_max=7) == [(0, ["aaa", "bbb"]), (2, ["ccc"])]

    reading(lambda: ListStream(("aaa", "bbb", "ccc")), work)


def test_storage_that_is_away_is_asked_again_from_the_same_place() -> None:
    faults = {0: 2, 4: 1}

    async def work(source: ChunkSource) -> None:
        source.leave_out(())
        assert await rest(source, 2) == [(n, [n, n + 1]) for n in range(0, 8, 2)]

    reading(lambda: Shaky(tuple(range(8)), faults), work)
    assert faults == {0: 0, 4: 0}


def test_storage_that_stays_away_is_an_error() -> None:
    async def work(source: ChunkSource) -> None:
        source.leave_out(())
        with pytest.raises(Unavailable):
            await source.take(1, 1)

    reading(lambda: Shaky((1,), {0: 99}), work)


def test_a_source_that_changes_while_it_is_read_is_refused() -> None:
    versions = iter([Shaky((1, 2), {1: 1}), ListStream((1, 3))])

    async def work(source: ChunkSource) -> None:
        source.leave_out(())
        await source.take(1, 100)
        with pytest.raises(Diverged, match="the source changed while it was being read"):
            await source.take(1, 100)

    reading(lambda: next(versions), work)


def test_chunks_grow_to_the_time_they_should_take_and_shrink_at_the_end() -> None:
    sizes = ChunkSizes(None, 1.0, lanes=2)
    assert sizes.next(0, None) == FIRST_ITEMS
    sizes.note(16, 16.0)  # a millisecond each
    assert sizes.next(0, None) == 8 * 16, "at most eight times the largest one so far"
    for _ in range(3):
        sizes.note(sizes.next(0, None), sizes.next(0, None) * 1.0)
    assert sizes.next(0, None) == 1_000
    assert sizes.next(0, 800) == 400
    assert sizes.next(0, 3) == 125, "not below an eighth"
    sizes.note(1_000, 1_000 * 1_000.0)
    assert sizes.next(0, None) < 10, "items that take a second go in small chunks"
    assert ChunkSizes(7, 1.0, lanes=2).next(0, 1) == 7


def test_the_number_of_chunks_stays_bounded_however_long_a_map_is() -> None:
    sizes = ChunkSizes(None, 1.0, lanes=1)
    sizes.note(1_000, 1_000.0)
    assert sizes.next(0, None) == 1_000
    assert sizes.next(CHUNKS_OF_A_PACE, None) == 2_000
    assert sizes.next(3 * CHUNKS_OF_A_PACE, None) == 8_000
    assert sizes.next(10**9, None) <= ITEMS_MAX
    chunks, items = 0, 0
    while chunks < 40_000:
        chunks += CHUNKS_OF_A_PACE
        items += CHUNKS_OF_A_PACE * pace_of(chunks)
    assert items > 4_000_000, "of a second each: more than a month on one worker"
