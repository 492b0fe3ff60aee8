"""Records the chunks of one attempt of a wide map: batched, never too many events, and when it has failed.

A batch is recorded when it is large enough or its first chunk old enough; the older the execution's stream,
the longer that may take, so that a map that runs for days stays within the bound of its events. What a crash
repeats is what was not recorded yet.
"""

import asyncio

import msgspec

from actors.execution_actor import ExecutionActor
from runtime import commands
from runtime.chunks import ChunkState
from runtime.events import ChunkResult, StepError
from runtime.ids import NodeId
from runtime.plan import WideMap

BATCH_CHUNKS_MAX = 100
RECORD_SECONDS = 0.25
RECORD_SECONDS_MAX = 60.0
EVENTS_OF_A_PACE = 2_000
"""After so many events of the execution a batch may take twice as long."""

CHUNKS_MAX = 50_000
"""Of one map; every reader of the execution keeps their references. Larger chunks make fewer."""

SHARE_ITEMS_MIN = 1_000
"""Items of a source of unknown length that must be done before their share of failures counts."""


class ChunkBook:
    def __init__(self, actor: ExecutionActor, node_id: NodeId, attempt: int, action: WideMap) -> None:
        self._actor = actor
        self._node_id = node_id
        self._attempt = attempt
        self._action = action
        self._waiting: list[ChunkResult] = []
        self._timer: asyncio.TimerHandle | None = None
        self._first_failed = -1
        self._first_error: StepError | None = None
        self._source = ""
        self.total: int | None = None

    @property
    def known(self) -> ChunkState | None:
        """What is recorded; None before the source was opened for the first time."""
        return self._actor.state.nodes[self._node_id].chunks

    def open(self, source: str, total: int | None) -> None:
        """Tell source and total, before any of it is done."""
        self._source, self.total = source, total
        self.flush()

    def add(self, chunk: ChunkResult, first_failed: int = -1, first_error: StepError | None = None) -> None:
        """A chunk is done, and what it refers to stored. ``first_failed``: index of its first failed item."""
        self._waiting.append(chunk)
        if self._first_error is None and first_error is not None:
            self._first_failed, self._first_error = first_failed, first_error
        if len(self._waiting) >= BATCH_CHUNKS_MAX:
            self.flush()
        elif self._timer is None:
            seconds = RECORD_SECONDS * 2 ** min(32, self._actor.state.version // EVENTS_OF_A_PACE)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(seconds, RECORD_SECONDS_MAX), self.flush)

    def flush(self) -> None:
        """Record what waits; what the execution's state no longer takes is dropped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        chunks, self._waiting = tuple(self._waiting), []
        if not self._actor.is_stopped:
            self._actor.record_step(
                commands.RecordChunks(
                    at=self._actor.now(),
                    node_id=self._node_id,
                    attempt=self._attempt,
                    source=self._source,
                    total=self.total,
                    chunks=chunks,
                )
            )

    def fault(self, at_end: bool = False) -> StepError | None:
        """Why the map has failed, judged by its items and chunks so far."""
        known = self.known or ChunkState()
        failed = known.failed + sum(chunk.failed for chunk in self._waiting)
        done = known.done + sum(chunk.items for chunk in self._waiting)
        if failed and self._action.on_error == "fail":
            return self._first("")
        share = self._action.failures_max_share
        if share is not None:
            of = self.total if self.total is not None else max(done, SHARE_ITEMS_MIN)
            if failed > share * (done if at_end else of):
                return self._first(
                    f"{failed} of {done} items failed, more than failures_max_share {share:g} allows;"
                    " one of them: "
                )
        if len(known.recorded) + len(self._waiting) > CHUNKS_MAX:
            message = f"a map may have {CHUNKS_MAX} chunks; make them larger"
            return StepError(type="TooManyChunks", message=message)
        return None

    def _first(self, lead: str) -> StepError:
        error = self._first_error
        if error is None:  # it was recorded before a crash, and stands in its chunk's errors
            return StepError(type="TooManyFailures", message=f"{lead}its error is kept with its chunk")
        if not lead:
            return msgspec.structs.replace(error, message=f"item {self._first_failed}: {error.message}")
        message = f"{lead}item {self._first_failed}: {error.type}: {error.message}"
        return msgspec.structs.replace(error, type="TooManyFailures", message=message)
