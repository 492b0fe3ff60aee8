"""What a user's function may ask about the step it runs in.

    from actors import step_context

    def charge(amount):
        step = step_context.current()
        payments.charge(amount, idempotency_key=step.idempotency_key)

    def draw(prices):                                   # a wide map's output
        frame = step_context.current().open_dataset(prices).to_pandas()
        frame.plot().get_figure().savefig("prices.png")
        return step_context.File("prices.png")

A worker process runs one step at a time, so the current step belongs to the process, not to a thread:
threads that the function starts see it too.
"""

import io
from collections.abc import Callable
from typing import BinaryIO

from actors.dataset_reader import DatasetReader
from actors.files import File
from actors.large_values import ValueCache
from actors.step_call import BlobStore, StepCall
from runtime.datasets import parse_dataset
from runtime.events import BlobRef, Json
from runtime.ids import ExecutionId, NodeId

__all__ = ["DatasetReader", "File", "StepContext", "current", "enter"]


class StepContext:
    """The running attempt: its identity, its cancellation, its files and data sets.

    ``cache``: large values that are at hand, for the worker.
    """

    def __init__(
        self, call: StepCall, blobs: Callable[[], BlobStore], cache: ValueCache | None = None
    ) -> None:
        self._call = call
        self._blobs = blobs
        self._cancelled = False
        self.cache = cache

    @property
    def execution_id(self) -> ExecutionId:
        return self._call.execution_id

    @property
    def node_id(self) -> NodeId:
        return self._call.node_id

    @property
    def attempt(self) -> int:
        """Counts from 1."""
        return self._call.attempt

    @property
    def index(self) -> int | None:
        """Position of the item when the step runs inside a map."""
        return self._call.index

    @property
    def idempotency_key(self) -> str:
        """The same for every repetition of this attempt; pass it on to whatever must not happen twice."""
        return self._call.key

    def is_cancelled(self) -> bool:
        """Whether the step should stop by itself; it is killed some seconds later.

        True after a cancellation and after the step's timeout. A coroutine is cancelled as well.
        """
        return self._cancelled

    def cancel(self) -> None:
        """For the worker: ask the function to stop."""
        self._cancelled = True

    def open(self, uri: str) -> BinaryIO:
        """Open an uploaded file of this execution for reading.

        Raises: FileNotFoundError for a URI that is not one of the execution's files.
        """
        for file in self._call.files:
            if file.uri == uri:
                ref = BlobRef(sha256=file.sha256, size=file.size, media_type=file.content_type)
                return io.BytesIO(self._blobs().get_bytes(ref))
        raise FileNotFoundError(f"{uri} is not a file of execution {self.execution_id}")

    def open_dataset(self, value: Json) -> DatasetReader:
        """The results behind a wide map's output, as a stream or as a table.

        Raises: ValueError for what is no data set.
        """
        return DatasetReader(parse_dataset(value), self._blobs())


_current: StepContext | None = None


def current() -> StepContext:
    """The step this process is running.

    Raises: RuntimeError outside a step.
    """
    if _current is None:
        raise RuntimeError("no step is running in this process")
    return _current


def enter(context: StepContext | None) -> None:
    """For the worker: make ``context`` the current step; None when it has ended."""
    global _current
    _current = context
