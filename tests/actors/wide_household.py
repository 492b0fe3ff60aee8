"""A household whose hosts do chunks with workers in this process, and what its wide maps recorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from actors import step_call
from actors.resource_tasks import Tell
from actors.step_call import ChunkCall, StepCall, StepOutcome, WorkerLimits
from actors.step_worker import StepWorker
from runtime import datasets
from runtime.blob_store import BlobStore
from runtime.chunks import ChunkState
from runtime.events import ChunkResult, ChunksRecorded, StepError
from runtime.ids import NodeId
from tests.actors.household import Household, ScriptedHost, status, until

WIDE = NodeId("wide")

Judge = Callable[[ChunkCall], StepError | None]
"""What becomes of a chunk before any worker sees it: None lets it through."""


class Workers:
    """Stands for a host's pool: one worker, calls one after another, each noted."""

    def __init__(self, folder: Path) -> None:
        limits = step_call.encode(WorkerLimits(grace_seconds=1))
        self._worker = StepWorker(limits, own_process=False, blobs=BlobStore(f"file://{folder}/blobs"))
        self._turn = threading.Lock()
        self._number = 0
        self.calls: list[StepCall] = []
        self.judge: Judge = lambda chunk: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = 0
        self.at_once_most = 0

    async def call(self, call: StepCall, tell: Tell | None = None) -> StepOutcome:
        assert call.chunk is not None
        self.calls.append(call)
        self.at_once += 1
        self.at_once_most = max(self.at_once_most, self.at_once)
        try:
            await self.gate.wait()
            error = self.judge(call.chunk)
            return await asyncio.to_thread(self._run, call) if error is None else StepOutcome(error=error)
        finally:
            self.at_once -= 1

    def _run(self, call: StepCall) -> StepOutcome:
        with self._turn:
            self._number += 1
            reply = self._worker.run(self._number, step_call.encode([call]))
        return step_call.decode_reply(reply).outcomes[0]

    def close(self) -> None:
        self._worker.close()

    @property
    def chunks(self) -> list[ChunkCall]:
        return [call.chunk for call in self.calls if call.chunk is not None]

    def items(self) -> list[Any]:
        """All items that were handed to workers, in that order."""
        return [msgspec.json.decode(item) for chunk in self.chunks for item in chunk.items]


class WideHousehold(Household):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.workers = Workers(folder)
        self.blobs = BlobStore(f"file://{folder}/blobs")
        self.files = folder / "files"
        self.files.mkdir()

    async def __aexit__(self, *_: object) -> None:
        self.workers.gate.set()
        await super().__aexit__(*_)
        self.workers.close()

    async def equipped(self, name: str = "host-0", **config: Any) -> ScriptedHost:
        """A host that has recovered as far as a first message tells, with our workers."""
        host = self.host(name, files_root=str(self.files), **config)
        await status(host)
        host.use_workers(self.workers.call)
        return host

    def write(self, name: str, items: list[Any]) -> str:
        lines = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
        (self.files / name).write_bytes(lines)
        return name

    # --- what came of it --------------------------------------------------------------------------------

    def batches(self, execution_id: str) -> list[ChunksRecorded]:
        return [event for event in self.history(execution_id) if isinstance(event, ChunksRecorded)]

    def chunks(self, execution_id: str) -> list[ChunkResult]:
        return [chunk for batch in self.batches(execution_id) for chunk in batch.chunks]

    async def recorded_items(self, execution_id: str, count: int) -> None:
        """Wait until so many items are recorded."""

        def done() -> bool:
            return sum(chunk.items for chunk in self.chunks(execution_id)) >= count

        await until(done, f"{count} recorded items; there are {len(self.chunks(execution_id))} chunks")

    def known(self, execution_id: str) -> ChunkState:
        known = self.node(execution_id, WIDE).chunks
        assert known is not None
        return known

    def results(self, output: Any) -> list[Any]:
        dataset = datasets.parse_dataset(output)
        return [msgspec.json.decode(line) for line in datasets.iter_results(self.blobs, dataset)]

    def failures(self, output: Any) -> list[datasets.ItemFailure]:
        return list(datasets.iter_failures(self.blobs, datasets.parse_dataset(output)))
