"""Very many items as one small value: what a wide map gives, and what streams into the next one.

    value in scopes and APIs:  {"dataset": 1, "items": 3, "failed": 1, "format": "jsonl", "parts": {...}}
    parts (a blob):            one ``Part`` as a JSON line for each chunk, in the order of first items
    a part's results (a blob): one JSON line for each item, ``null`` for a failed one
    a part's errors (a blob):  one ``ItemFailure`` as a JSON line for each failed item

Everything is written and read as a stream: what is in memory is one block of a blob and one line, never a
part. Pure but for the store it is given.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Protocol, cast

import msgspec

from runtime.errors import Diverged
from runtime.events import BlobRef, Json, StepError

LINE_BYTES_MAX = 16 * 1024 * 1024
"""The longest line (one item or one result); a longer one fails whoever writes or reads it."""

JSON_LINES = "application/jsonl"

_WRITE_BYTES = 256 * 1024
_NULL = b"null"

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of the items ``first`` to ``first + items - 1``.

    ``ref`` None: all of them are null. ``errors`` None: none failed, or nothing is known of why.
    """

    first: _Count
    items: _Count
    failed: _Count = 0
    ref: BlobRef | None = None
    errors: BlobRef | None = None


class ItemFailure(msgspec.Struct, frozen=True, kw_only=True):
    """One failed item: its place among all items, why it failed, and the item itself."""

    index: _Count
    error: StepError
    item: msgspec.Raw = msgspec.Raw(b"null")


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """``dataset`` is the version of this form. ``failed`` of the ``items`` have no result."""

    items: _Count
    parts: BlobRef
    failed: _Count = 0
    format: Literal["jsonl"] = "jsonl"
    dataset: Literal[1] = 1


class PartWriter(Protocol):
    def write(self, data: bytes, /) -> None: ...
    def commit(self, media_type: str = ..., /) -> BlobRef: ...
    def __enter__(self) -> "PartWriter": ...
    def __exit__(self, *exc: object) -> None: ...


class PartStore(Protocol):
    """The part of the blob store that data sets need (``runtime.blob_store`` has it)."""

    def open_writer(self) -> PartWriter: ...
    def open_reader(self, ref: BlobRef, /) -> Iterator[bytes]: ...


# --- the value -----------------------------------------------------------------------------------------


def is_dataset(value: Json) -> bool:
    """Whether ``value`` says of itself that it is a data set."""
    return isinstance(value, dict) and "dataset" in value and "parts" in value


def parse_dataset(value: Json) -> Dataset:
    """Raises: ValueError naming what doesn't fit."""
    try:
        return msgspec.convert(value, Dataset)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a data set: {error}") from None


def dataset_value(dataset: Dataset) -> dict[str, Any]:
    """The plain JSON that stands in scopes, events and APIs."""
    return cast("dict[str, Any]", msgspec.to_builtins(dataset))


# --- writing -------------------------------------------------------------------------------------------


def write_lines(blobs: PartStore, lines: Iterable[bytes]) -> BlobRef:
    """Store encoded items, one line each, as one blob.

    Raises: ValueError for a line above ``LINE_BYTES_MAX`` or with a line break inside.
    """
    with blobs.open_writer() as writer:
        block = bytearray()
        for line in lines:
            if len(line) > LINE_BYTES_MAX:
                raise ValueError(f"one item has {len(line)} bytes; at most {LINE_BYTES_MAX} fit a line")
            if b"\n" in line:
                raise ValueError("an encoded item holds a line break")
            block += line
            block += b"\n"
            if len(block) >= _WRITE_BYTES:
                writer.write(bytes(block))
                block.clear()
        writer.write(bytes(block))
        return writer.commit(JSON_LINES)


def write_failures(blobs: PartStore, failures: Iterable[ItemFailure]) -> BlobRef:
    """Store what failed, in the order given."""
    return write_lines(blobs, map(msgspec.json.encode, failures))


def write_dataset(blobs: PartStore, parts: Iterable[Part]) -> Dataset:
    """Tie parts together. They are listed as they come and must follow each other without gap.

    Raises: ValueError for a gap, an overlap, or more failures than items.
    """
    items = failed = 0

    def lines() -> Iterator[bytes]:
        nonlocal items, failed
        for part in parts:
            if part.first != items:
                raise ValueError(f"a part begins with item {part.first} where item {items} is due")
            if part.failed > part.items:
                raise ValueError(f"the part from item {part.first} has more failures than items")
            items += part.items
            failed += part.failed
            yield msgspec.json.encode(part)

    ref = write_lines(blobs, lines())
    return Dataset(items=items, failed=failed, parts=ref)


# --- reading -------------------------------------------------------------------------------------------


def read_lines(blobs: PartStore, ref: BlobRef) -> Iterator[bytes]:
    """The lines of a blob without their ends; empty ones are left out.

    Raises: NotFound, Diverged (at the end, when the blob isn't what its name says), Unavailable;
    ValueError for a line above ``LINE_BYTES_MAX``.
    """
    return split_lines(blobs.open_reader(ref), f"blob {ref.sha256}")


def split_lines(blocks: Iterable[bytes], name: str, line_bytes_max: int = LINE_BYTES_MAX) -> Iterator[bytes]:
    """Non-empty lines of a stream of blocks, without their ends (LF or CRLF).

    Raises: ValueError naming ``name`` and the line's number for one above ``line_bytes_max``.
    """
    number = 0
    held = b""
    for block in blocks:
        lines = (held + block).split(b"\n") if held else block.split(b"\n")
        held = lines.pop()
        for line in lines:
            number += 1
            if len(line) > line_bytes_max:
                raise _too_long(name, number, line_bytes_max)
            if line := line.rstrip(b"\r"):
                yield line
        if len(held) > line_bytes_max:
            raise _too_long(name, number + 1, line_bytes_max)
    if held := held.rstrip(b"\r"):
        yield held


def read_parts(blobs: PartStore, dataset: Dataset) -> Iterator[Part]:
    """In the order of items. Raises: as ``read_lines``; Diverged for a part that doesn't fit."""
    decode = msgspec.json.Decoder(Part).decode
    for line in read_lines(blobs, dataset.parts):
        try:
            yield decode(line)
        except msgspec.DecodeError as error:
            raise Diverged(f"blob {dataset.parts.sha256} lists a part that is none: {error}") from error


def iter_results(blobs: PartStore, dataset: Dataset, skip: int = 0) -> Iterator[bytes]:
    """Every item's result as encoded JSON, in the order of items, ``null`` for a failed one.

    Shape: ``dataset.items - skip`` lines without line ends; skipped parts are not read at all.
    Raises: as ``read_parts``; Diverged for a part with more or fewer lines than items.
    """
    for part in read_parts(blobs, dataset):
        if part.first + part.items <= skip:
            continue
        for at, line in enumerate(_part_lines(blobs, part), start=part.first):
            if at >= skip:
                yield line


def iter_failures(blobs: PartStore, dataset: Dataset) -> Iterator[ItemFailure]:
    """What failed, part after part. Raises: as ``read_parts``."""
    decode = msgspec.json.Decoder(ItemFailure).decode
    for part in read_parts(blobs, dataset):
        if part.errors is not None:
            yield from map(decode, read_lines(blobs, part.errors))


def _part_lines(blobs: PartStore, part: Part) -> Iterator[bytes]:
    if part.ref is None:
        for _ in range(part.items):
            yield _NULL
        return
    count = 0
    for line in read_lines(blobs, part.ref):
        count += 1
        if count > part.items:
            break
        yield line
    if count != part.items:
        raise Diverged(f"blob {part.ref.sha256} has not the {part.items} results its part tells of")


def _too_long(name: str, number: int, line_bytes_max: int) -> ValueError:
    return ValueError(f"{name}, line {number}: longer than {line_bytes_max} bytes")
