"""What became of the items of wide maps, read from the recorded chunks: streams, whatever their number.

A `MapRun` names one wide map of one execution. A `Round` is one pass over some items by one or several maps,
each with every n-th of them; `Rounds` is what several passes make together, each but the first over what had
failed before it. Places of items are counted in the first round's source.

Blocking: call from threads. In memory are the references to chunks and one block of each open blob.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from runtime.blob_store import BlobStore
from runtime.datasets import ItemFailure, read_lines
from runtime.errors import Diverged
from runtime.event_log import EventLog
from runtime.events import BlobRef, ChunkResult, ChunksRecorded, StepError

PAGE_EVENTS = 500

NULL = b"null"

_failure = msgspec.json.Decoder(ItemFailure).decode


class MapRun(NamedTuple):
    execution_id: str
    node_id: str


class Outcome(msgspec.Struct, frozen=True):
    """One item's end: ``output`` as JSON, or why it failed and what it was."""

    index: int
    output: bytes = NULL
    failure: ItemFailure | None = None


class Round(NamedTuple):
    """``runs[i]`` has every n-th item, from the i-th on. ``indexes``: the items' places, one JSON line each.

    ``indexes`` None: they are counted from 0. ``is_closed``: nothing will be added any more.
    """

    runs: tuple[MapRun, ...]
    indexes: BlobRef | None
    is_closed: bool


class MapOutcomes:
    """Reads chunks and what they refer to."""

    def __init__(self, log: EventLog, blobs: BlobStore) -> None:
        self._log = log
        self._blobs = blobs

    # --- one map --------------------------------------------------------------------------------------

    def maps(self, execution_id: str) -> dict[str, int]:
        """The maps of an execution that recorded chunks, and how many items failed in each."""
        failed: dict[str, int] = {}
        for event in self._recorded(execution_id):
            count = sum(chunk.failed for chunk in event.chunks)
            failed[event.node_id] = failed.get(event.node_id, 0) + count
        return failed

    def chunks(self, run: MapRun) -> list[ChunkResult]:
        """In the order of items. Empty for a map that recorded nothing, or is no wide map."""
        events = self._recorded(run.execution_id)
        found = [chunk for event in events if event.node_id == run.node_id for chunk in event.chunks]
        found.sort(key=lambda chunk: chunk.first)
        return found

    def _recorded(self, execution_id: str) -> Iterator[ChunksRecorded]:
        version = 0
        while True:
            page = self._log.read(execution_id, version, PAGE_EVENTS)
            for recorded in page:
                version = recorded.originator_version
                if recorded.topic == ChunksRecorded.TOPIC:
                    event = recorded.event()
                    if isinstance(event, ChunksRecorded):
                        yield event
            if len(page) < PAGE_EVENTS:
                return

    def failures(self, run: MapRun, after: int = -1) -> Iterator[ItemFailure]:
        """The failed items behind the place ``after``, in the order of items."""
        for chunk in self.chunks(run):
            if chunk.failed and chunk.first + chunk.items - 1 > after:
                for failure in self._failures(chunk):
                    if failure.index > after:
                        yield failure

    def _failures(self, chunk: ChunkResult) -> Iterator[ItemFailure]:
        if chunk.errors is None:
            unknown = StepError(type="Unknown", message="nothing is known of why it failed")
            yield from (ItemFailure(index=chunk.first + at, error=unknown) for at in range(chunk.failed))
            return
        yield from map(_failure, read_lines(self._blobs, chunk.errors))

    def _outcomes(self, run: MapRun, shard: int, count: int) -> Iterator[Outcome]:
        for chunk in self.chunks(run):
            failed = {failure.index: failure for failure in self._failures(chunk)} if chunk.failed else {}
            for index, output in enumerate(self._results(chunk), start=chunk.first):
                yield Outcome(index * count + shard, output, failed.get(index))

    def _results(self, chunk: ChunkResult) -> Iterator[bytes]:
        if chunk.results is None:
            yield from (NULL for _ in range(chunk.items))
            return
        count = 0
        for line in read_lines(self._blobs, chunk.results):
            count += 1
            if count <= chunk.items:
                yield line
        if count != chunk.items:
            raise Diverged(f"blob {chunk.results.sha256} has {count} results, not {chunk.items}")

    # --- several passes -------------------------------------------------------------------------------

    def results(self, rounds: Sequence[Round]) -> Iterator[Outcome]:
        """The last outcome of every item that has one, in the order of items."""
        # Of outcomes at the same place heapq.merge gives that of the earlier stream first.
        latest_first = [self._placed(one) for one in reversed(rounds)]
        last = -1
        for outcome in heapq.merge(*latest_first, key=_index):
            if outcome.index != last:
                last = outcome.index
                yield outcome

    def failed(self, rounds: Sequence[Round], after: int = -1) -> Iterator[ItemFailure]:
        """Items whose last outcome is a failure, in order; those that an open round will try are left out."""
        found = self._failures_of(rounds[0], after if len(rounds) == 1 else -1)
        for one in rounds[1:]:
            found = self._still_failed(found, one)
        return (failure for failure in found if failure.index > after)

    def _failures_of(self, one: Round, after: int) -> Iterator[ItemFailure]:
        streams = [self._spread(run, shard, len(one.runs), after) for shard, run in enumerate(one.runs)]
        return heapq.merge(*streams, key=_index)

    def _spread(self, run: MapRun, shard: int, count: int, after: int = -1) -> Iterator[ItemFailure]:
        """The failures of one of ``count`` maps by their places in the source of all."""
        for failure in self.failures(run, (after - shard) // count):
            yield _at(failure, failure.index * count + shard)

    def _still_failed(self, before: Iterator[ItemFailure], one: Round) -> Iterator[ItemFailure]:
        """A round's items are what had failed before it, in that order."""
        count = len(one.runs)
        chunks = [self.chunks(run) for run in one.runs]
        failures = self._failures_of(one, -1)
        following = next(failures, None)
        reached = [0] * count
        for place, failure in enumerate(before):
            if following is not None and following.index == place:
                yield _at(following, failure.index)
                following = next(failures, None)
                continue
            local, shard = divmod(place, count)
            mine = chunks[shard]
            while reached[shard] < len(mine) and _end(mine[reached[shard]]) <= local:
                reached[shard] += 1
            is_recorded = reached[shard] < len(mine) and mine[reached[shard]].first <= local
            if not is_recorded and one.is_closed:
                yield failure

    def _placed(self, one: Round) -> Iterator[Outcome]:
        """A round's outcomes by the items' places in the first source."""
        streams = [self._outcomes(run, shard, len(one.runs)) for shard, run in enumerate(one.runs)]
        merged = heapq.merge(*streams, key=_index)
        if one.indexes is None:
            yield from merged
            return
        places = enumerate(map(int, read_lines(self._blobs, one.indexes)))
        for outcome in merged:
            for at, place in places:
                if at == outcome.index:
                    yield msgspec.structs.replace(outcome, index=place)
                    break


def _index(one: Outcome | ItemFailure) -> int:
    return one.index


def _at(failure: ItemFailure, index: int) -> ItemFailure:
    return msgspec.structs.replace(failure, index=index)


def _end(chunk: ChunkResult) -> int:
    return chunk.first + chunk.items
