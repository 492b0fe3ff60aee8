"""The outcomes of items as one file, made while it is read: JSON Lines or Parquet, in the order of items.

    JSON Lines  {"index": 0, "output": ...} or {"index": 1, "error": {"type": ..., "message": ...}}
    Parquet     index, output (JSON text), error_type, error_message

An item without an outcome (it never ran) has no line. Blocking: to be iterated in threads. In memory is one
block, or one row group.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from actors.optional_libraries import pyarrow
from gateway.map_outcomes import Outcome

BLOCK_BYTES = 256 * 1024

ROWS_OF_GROUP = 50_000
GROUP_BYTES = 32 * 1024 * 1024
"""A row group ends with so many rows, or with so many bytes of outputs."""

MEDIA_TYPES = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}

_encode = msgspec.json.encode


def as_file(outcomes: Iterable[Outcome], form: str) -> Iterator[bytes]:
    """The file in pieces, none empty. Raises: NotInstalled, at once, when a library is missing."""
    return _jsonl(outcomes) if form == "jsonl" else _parquet(outcomes, pyarrow("results as Parquet"))


def _jsonl(outcomes: Iterable[Outcome]) -> Iterator[bytes]:
    block = bytearray()
    for outcome in outcomes:
        if outcome.failure is None:
            block += b'{"index":%d,"output":%s}\n' % (outcome.index, outcome.output)
        else:
            block += b'{"index":%d,"error":%s}\n' % (outcome.index, _encode(outcome.failure.error))
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _parquet(outcomes: Iterable[Outcome], pa: Any) -> Iterator[bytes]:
    columns = [("index", pa.int64()), ("output", pa.string())]
    columns += [("error_type", pa.string()), ("error_message", pa.string())]
    schema = pa.schema(columns)
    sink = _Sink()
    with pa.parquet.ParquetWriter(pa.PythonFile(sink, "w"), schema, compression="zstd") as writer:
        for group in _groups(outcomes):
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
            if piece := sink.taken():
                yield piece
    yield sink.taken()


def _groups(outcomes: Iterable[Outcome]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(outcomes)
    while True:
        group: list[dict[str, Any]] = []
        size = 0
        for outcome in islice(rows, ROWS_OF_GROUP):
            group.append(_row(outcome))
            size += len(outcome.output)
            if size >= GROUP_BYTES:
                break
        if not group:
            return
        yield group


def _row(outcome: Outcome) -> dict[str, Any]:
    if outcome.failure is None:
        return {"index": outcome.index, "output": outcome.output.decode()}
    error = outcome.failure.error
    return {"index": outcome.index, "error_type": error.type, "error_message": error.message}


class _Sink(io.RawIOBase):
    """Takes what is written until somebody takes it away."""

    def __init__(self) -> None:
        self._written = bytearray()
        self._taken = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def tell(self) -> int:
        return self._taken + len(self._written)

    def taken(self) -> bytes:
        piece = bytes(self._written)
        self._taken += len(piece)
        self._written.clear()
        return piece
