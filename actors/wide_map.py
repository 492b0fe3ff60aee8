"""Runs a wide map: items of a stream in chunks, each recorded once; memory bounded by what is in flight.

    source --take--> items --lanes--> done: a part in the blob store --book--> recorded (``ChunksRecorded``)
                       ^  |
                       +--+ handed back: a chunk's time was up, or its process died

Workers do the items of python, template and select nodes, a chunk a call (``wide_chunks``); the host does
those of all other kinds (``wide_items``). A pause, or a host that leaves, begins nothing more, lets what runs
end, records it and forgets the rest; the resume opens the source again. So does a recovery: what is recorded
is never done again.
"""

import asyncio
from typing import Any

import httpx

from actors.chunk_source import ChunkSource, ListStream, Stream
from actors.execution_actor import ExecutionActor
from actors.item_sources import open_source
from actors.map_items import Hands
from actors.patience import until_available
from actors.performer import BLOB_SECONDS_MAX
from actors.step_call import StepOutcome
from actors.step_values import step_error
from actors.wide_chunks import WideChunks
from actors.wide_items import WideItems
from actors.wide_work import Equipment, Stopped, WideWork
from runtime import datasets
from runtime.errors import DomainError
from runtime.events import StepError
from runtime.items_file import given_items
from runtime.plan import MapSource, Step, WideMap

IN_WORKERS = frozenset({"python", "template", "select"})
"""Kinds whose items a worker does by itself; the others need the host."""

SOURCE_FAULTS = (DomainError, OSError, ValueError, httpx.HTTPError)


class WideMapRun:
    """One attempt of one wide map, until it ends, pauses, or is cancelled."""

    def __init__(
        self,
        actor: ExecutionActor,
        hands: Hands,
        equipment: Equipment,
        step: Step,
        attempt: int,
        action: WideMap,
    ) -> None:
        self._actor = actor
        self._action = action
        self._equipment = equipment
        self._source = ChunkSource(self._open_stream)
        self._work = WideWork(actor, hands, equipment, step, attempt, action, self._source)

    def _open_stream(self) -> Stream:
        files = self._actor.state.files
        source = given_items(files, self._work.step.node_id) or self._action.source
        if isinstance(source, MapSource):
            return open_source(source, self._equipment.workers.source_access(files))
        return ListStream(source)

    async def run(self) -> StepOutcome | None:
        """The map's outcome, all items done; None when it stopped half way. Raises: CancelledError only."""
        try:
            await self._source.open()
            if (fault := self._begin()) is not None:
                return _failed(fault)
            is_complete = await self._run_lanes()
            fault = self._work.failure or (self._work.book.fault(at_end=True) if is_complete else None)
            if fault is not None:
                return _failed(fault)
            if not is_complete:
                return None
            output = await until_available(
                lambda: asyncio.to_thread(self._output), "write a data set", BLOB_SECONDS_MAX
            )
            return StepOutcome(output=output, started=True)
        except SOURCE_FAULTS as error:
            return _failed(step_error(error))
        finally:
            self._source.close()

    def _begin(self) -> StepError | None:
        """Leave out what is recorded, if it is of this very source."""
        book, source = self._work.book, self._source
        known = book.known
        if known is not None and known.source != source.fingerprint:
            message = "the source changed since chunks of it were recorded; start a new execution over it"
            return StepError(type="SourceChanged", message=message)
        source.leave_out(known.recorded if known else ())
        book.open(source.fingerprint, source.total)
        return book.fault()

    async def _run_lanes(self) -> bool:
        """Whether everything is done and recorded; else the map has failed, or stops half way."""
        lanes = WideChunks(self._work) if self._action.each.kind in IN_WORKERS else WideItems(self._work)
        try:
            while not lanes.is_complete:
                await lanes.run()
                if self._work.is_paused and not lanes.is_complete:
                    return False
        except* Stopped:
            pass  # why is told by the work
        except* SOURCE_FAULTS as faults:
            self._work.failure = step_error(faults.exceptions[0])
        finally:
            self._work.book.total = self._source.total
            self._work.book.flush()
        return lanes.is_complete

    def _output(self) -> dict[str, Any]:
        known = self._work.book.known
        parts = (
            datasets.Part(
                first=chunk.first,
                items=chunk.items,
                failed=chunk.failed,
                ref=chunk.results,
                errors=chunk.errors,
            )
            for chunk in (known.recorded if known else ())
        )
        return datasets.dataset_value(datasets.write_dataset(self._equipment.blobs, parts))


def _failed(error: StepError) -> StepOutcome:
    return StepOutcome(error=error, started=True)
