"""What is known about a wide map: which runs of its items are recorded, and how fast they come. Pure.

Invariants: recorded chunks stand in the order of their items and never overlap; ``done`` and ``failed`` are
their sums. What is in no recorded chunk runs (again) after a crash, and nothing else does.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import msgspec

from runtime.events import ChunkResult, ChunksRecorded
from runtime.ids import SECOND

MARKS_MAX = 16
MARK_SECONDS = 2
"""The rate is that of the last half minute: so many marks, so far apart."""


class ChunkState(msgspec.Struct, frozen=True, kw_only=True):
    """The fold of a node's ``ChunksRecorded``. ``total`` None: not known yet. ``marks``: (at, done) pairs."""

    source: str = ""
    total: int | None = None
    done: int = 0
    failed: int = 0
    recorded: tuple[ChunkResult, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def share(self) -> float:
        """Of its items, how many are done (0 to 1); 0 while their number is unknown."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def with_chunks(state: ChunkState, at: int, total: int | None, fresh: Sequence[ChunkResult]) -> ChunkState:
    """The state after ``fresh``, which must be news (``news_of``). ``at`` in microseconds."""
    recorded = list(state.recorded)
    for chunk in fresh:
        insort(recorded, chunk, key=_first)
    done = state.done + sum(chunk.items for chunk in fresh)
    return msgspec.structs.replace(
        state,
        total=state.total if total is None else total,
        done=done,
        failed=state.failed + sum(chunk.failed for chunk in fresh),
        recorded=tuple(recorded) if fresh else state.recorded,
        marks=_marked(state.marks, at, done),
    )


def after(state: ChunkState | None, event: ChunksRecorded) -> ChunkState | None:
    """The state after ``event``; None when it can't follow: an item twice, another source, wrong sums."""
    known = state or ChunkState(source=event.source)
    if event.source and event.source != known.source:
        return None
    if len(news_of(known.recorded, event.chunks)) < len(event.chunks):
        return None
    then = with_chunks(known, event.at, event.total, event.chunks)
    return then if then.done == event.done and then.failed == event.failed else None


def news_of(recorded: Sequence[ChunkResult], chunks: Iterable[ChunkResult]) -> tuple[ChunkResult, ...]:
    """Those of ``chunks`` that share no item with a recorded one, or with one before them."""
    fresh: list[ChunkResult] = []
    ordered: list[ChunkResult] = []
    for chunk in chunks:
        if chunk.items > 0 and _is_free(recorded, chunk) and _is_free(ordered, chunk):
            fresh.append(chunk)
            ordered.insert(bisect_right(ordered, chunk.first, key=_first), chunk)
    return tuple(fresh)


def gaps(recorded: Iterable[ChunkResult]) -> Iterator[tuple[int, int | None]]:
    """Runs of items that are in no recorded chunk, as (first, end); the last one has no end."""
    at = 0
    for chunk in recorded:
        if chunk.first > at:
            yield at, chunk.first
        at = chunk.first + chunk.items
    yield at, None


def is_in(chunks: Iterable[ChunkResult], item: int) -> bool:
    return any(chunk.first <= item < chunk.first + chunk.items for chunk in chunks)


def rate(marks: Sequence[tuple[int, int]]) -> float:
    """Items per second over the marks; 0 when they are too few to say."""
    if len(marks) < 2 or marks[-1][0] <= marks[0][0]:
        return 0.0
    (began, before), (ended, after) = marks[0], marks[-1]
    return round((after - before) * SECOND / (ended - began), 3)


def seconds_left(total: int | None, done: int, per_second: float) -> float | None:
    """How long the rest takes at this rate; None when nobody can say."""
    if total is None or per_second <= 0:
        return None
    return round(max(0, total - done) / per_second, 1)


def told(done: int, total: int | None, failed: int, per_second: float) -> str:
    """How far a map is, for people: ``300 of 1000, 2 failed, 240/s, 3 s left``."""
    parts = [f"{done} of {total}" if total is not None else f"{done} items"]
    if failed:
        parts.append(f"{failed} failed")
    if per_second > 0:
        parts.append(f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s")
    left = seconds_left(total, done, per_second)
    if left:
        parts.append(f"{timedelta(seconds=round(left))} left" if left >= 60 else f"{left:.0f} s left")
    return ", ".join(parts)


def _first(chunk: ChunkResult) -> int:
    return chunk.first


def _is_free(ordered: Sequence[ChunkResult], chunk: ChunkResult) -> bool:
    at = bisect_right(ordered, chunk.first, key=_first)
    if at > 0 and ordered[at - 1].first + ordered[at - 1].items > chunk.first:
        return False
    return at == len(ordered) or chunk.first + chunk.items <= ordered[at].first


def _marked(marks: tuple[tuple[int, int], ...], at: int, done: int) -> tuple[tuple[int, int], ...]:
    """The last mark moves along until it is far enough from the one before it."""
    if len(marks) >= 2 and marks[-1][0] - marks[-2][0] < MARK_SECONDS * SECOND:
        marks = marks[:-1]
    return (*marks, (at, done))[-MARKS_MAX:]
