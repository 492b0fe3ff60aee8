"""What a running wide map consists of, for those who work on it: its source, its book, its equipment."""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import msgspec

from actors.chunk_book import ChunkBook
from actors.chunk_source import ChunkSource
from actors.execution_actor import ExecutionActor
from actors.map_items import Hands
from actors.resource_tasks import Tell
from actors.source_files import SourceAccess
from actors.step_call import StepCall, StepOutcome
from runtime.blob_store import BlobStore
from runtime.events import ChunkResult, FileDescriptor, StepError
from runtime.plan import Resources, Step, WideMap


class Workers(Protocol):
    """Calls to worker processes, and what sources may be read (``performer.Performer`` has both)."""

    async def call(self, call: StepCall, tell: Tell | None = None) -> StepOutcome: ...
    def source_access(self, files: tuple[FileDescriptor, ...]) -> SourceAccess: ...


class Equipment(msgspec.Struct, frozen=True, kw_only=True):
    """What a wide map has from its host. ``lanes``: calls that keep its pooled workers busy.

    ``task_resources``: what a chunk needs when its node says nothing; None: pooled workers do it.
    ``teller``: makes who is told what a chunk lacks that can't be placed.
    """

    blobs: BlobStore
    workers: Workers
    lanes: int
    task_resources: Resources | None = None
    teller: Callable[[], Tell] | None = None


class Stopped(Exception):
    """Ends the lanes of a map that has failed; why is told by its ``WideWork``."""


class WideWork:
    """One attempt of one wide map."""

    def __init__(
        self,
        actor: ExecutionActor,
        hands: Hands,
        equipment: Equipment,
        step: Step,
        attempt: int,
        action: WideMap,
        source: ChunkSource,
    ) -> None:
        self.actor = actor
        self.hands = hands
        self.equipment = equipment
        self.step = step
        self.attempt = attempt
        self.action = action
        self.source = source
        self.book = ChunkBook(actor, step.node_id, attempt, action)
        self.failure: StepError | None = None

    @property
    def is_paused(self) -> bool:
        """Nothing may be started: whoever asks ends as soon as what it began has ended."""
        return self.actor.state.paused or self.hands.is_leaving

    def done(self, chunk: ChunkResult, first_failed: int = -1, first_error: StepError | None = None) -> None:
        """Note a chunk whose results are stored. Raises: Stopped when the map has failed with it."""
        self.book.total = self.source.total
        self.book.add(chunk, first_failed, first_error)
        if (fault := self.book.fault()) is not None:
            self.fail(fault)

    def fail(self, error: StepError) -> NoReturn:
        """Raises: Stopped."""
        self.failure = error
        raise Stopped

    def scope(self) -> dict[str, Any]:
        """What ``each`` can see beside its item: of the nodes those it reads."""
        scope = self.actor.scope(self.step, self.attempt)
        reads = self.action.each.reads
        return {**scope, "nodes": {name: value for name, value in scope["nodes"].items() if name in reads}}
