"""One flow over very many inputs: what is sent, and what comes back. Procedures for both drivers (`steps`).

Inputs travel as one file of JSON Lines, which is written as they are taken: above `MEMORY_BYTES_MAX` on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Literal, NamedTuple, Never, TypeAlias, cast

import msgspec

from gateway.client import calls
from gateway.client.calls import Call, FailedPage, Upload
from gateway.client.errors import BatchNotCompleted, ItemFailed
from gateway.client.procedures import PAGE, Clock, ask, blocks, consume, read_lines, wait
from gateway.client.progress import batch_shown
from gateway.client.steps import Emit, Procedure
from gateway.client.tables import Table, TableBuilder
from gateway.client.views import BatchSnapshot, FailedItem, ItemResult

MEMORY_BYTES_MAX = 8 * 1024 * 1024
"""Of inputs that are held in memory until they are sent; more go to a temporary file."""

JSON_LINES = "application/jsonl"

Inputs: TypeAlias = Iterable[Any] | Path
"""Objects, one for each execution; a file of JSON Lines, CSV or Parquet; a data frame or an Arrow table."""

OnError: TypeAlias = Literal["raise", "keep"]
Format: TypeAlias = Literal["", "jsonl", "csv", "parquet"]
"""Empty: by the end of the file's name."""


class Plan(NamedTuple):
    """What a batch runs, beside its inputs. ``concurrency``: inputs in flight."""

    flow: str
    name: str = ""
    concurrency: int | None = None
    format: str = ""

    def fields(self) -> dict[str, Any]:
        given = calls.given(concurrency=self.concurrency, name=self.name or None, format=self.format or None)
        return {"flow": self.flow, **given}


# --- creating -------------------------------------------------------------------------------------------


def create(plan: Plan, inputs: Inputs, key: str) -> Procedure[Never, BatchSnapshot]:
    """The batch, once it is durable. Raises: TypeError for what can't be inputs; OSError."""
    with _file(inputs) as (name, media_type, file):
        fields = {field: str(value) for field, value in plan.fields().items()}
        return (yield from ask(calls.create_batch(Upload(fields, name, media_type, file), key)))


@contextmanager
def _file(inputs: Inputs) -> Generator[tuple[str, str, BinaryIO]]:
    if isinstance(inputs, Path):
        with inputs.open("rb") as file:
            yield inputs.name, "application/octet-stream", file
        return
    with SpooledTemporaryFile(MEMORY_BYTES_MAX) as spool:
        encode = msgspec.json.Encoder().encode
        for row in _rows(inputs):
            if not isinstance(row, Mapping):
                raise TypeError(f"each input must be an object (a dict), not {type(row).__name__}")
            spool.write(encode(row) + b"\n")
        yield "inputs.jsonl", JSON_LINES, cast("BinaryIO", spool)


def _rows(inputs: Iterable[Any]) -> Iterable[Any]:
    if isinstance(inputs, str | bytes | Mapping):
        raise TypeError("inputs must be a list or another iterable of objects, or the Path of a file")
    table: Any = inputs
    if hasattr(table, "to_pylist"):  # Arrow
        return table.to_pylist()
    if hasattr(table, "iterrows"):  # a data frame
        return table.to_dict(orient="records")
    return inputs


# --- waiting --------------------------------------------------------------------------------------------


def wait_for_batch(
    batch_id: str,
    timeout_seconds: float | None,
    clock: Clock,
    watch: Callable[[BatchSnapshot], Any] | None,
) -> Procedure[Never, BatchSnapshot]:
    show, stream = calls.show_batch(batch_id), calls.batch_events(batch_id)
    return wait(f"batch {batch_id}", show, stream, has_ended, timeout_seconds, clock, watch)


def has_ended(batch: BatchSnapshot) -> bool:
    return batch.has_ended


# --- results --------------------------------------------------------------------------------------------


def results(batch_id: str) -> Procedure[ItemResult, None]:
    """The outcome of every input that has one, in the order of inputs."""
    call = calls.batch_results(batch_id, "jsonl")
    return read_lines(lambda count: (call, count), msgspec.json.Decoder(ItemResult).decode)


def failed(page_at: Callable[[int | None, int], Call[FailedPage]]) -> Procedure[FailedItem, None]:
    """What failed, in the order of inputs: ``page_at(after, limit)`` asks for a page."""
    after: int | None = None
    while True:
        page = yield from ask(page_at(after, PAGE))
        for item in page.items:
            yield Emit(item)
        after = page.next_after
        if after is None:
            return


def table(batch_id: str) -> Procedure[Never, Table]:
    """The outputs as one table: a row an input that has an outcome, nulls for a failed one."""
    building = TableBuilder()
    yield from consume(results(batch_id), lambda item: building.add(item.output))
    return building.table()


def form_of(path: Path) -> str:
    """The format of a results file with this name."""
    return "parquet" if path.suffix == ".parquet" else "jsonl"


def download(batch_id: str, path: Path) -> Procedure[Never, Path]:
    """Write all results into one file. Raises: OSError; Unreachable for a broken download."""
    with path.open("wb") as file:
        yield from consume(blocks(calls.batch_results(batch_id, form_of(path))), file.write)
    return path


def mapped(
    plan: Plan, inputs: Inputs, key: str, on_error: OnError, progress: bool | None, clock: Clock
) -> Procedure[Any, None]:
    """Create a batch, wait for its end, and emit the outputs in the order of inputs."""
    batch = yield from create(plan, inputs, key)
    with batch_shown(plan.flow, progress) as watch:
        ended = yield from wait_for_batch(batch.batch_id, None, clock, watch)
    if ended.status != "completed":
        raise BatchNotCompleted(ended)
    call = calls.batch_results(batch.batch_id, "jsonl")
    yield from read_lines(lambda count: (call, count), _output_decoder(on_error))


def _output_decoder(on_error: OnError) -> Callable[[bytes], Any]:
    decode = msgspec.json.Decoder(ItemResult).decode

    def output_of(line: bytes) -> Any:
        item = decode(line)
        if item.error is None:
            return item.output
        failure = ItemFailed(item.index, item.error.type, item.error.message)
        if on_error == "raise":
            raise failure
        return failure

    return output_of
