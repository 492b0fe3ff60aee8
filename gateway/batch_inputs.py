"""What a batch runs over, when it came with the request: kept as a file, counted and checked beforehand.

So a file that can't be read to its end is refused with the line that is wrong, before anything was started;
what a row means to the flow is found out when its turn comes. CSV knows only texts: the columns for which the
flow's input schema wants something else are read as JSON, and an empty one of these is absent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from actors.optional_libraries import NotInstalled
from actors.record_formats import SUFFIXES, SourceFault, count_items, read_items
from actors.source_files import SourceFile, blob_file
from gateway.batch_documents import BatchSource, Format
from gateway.house_api import broken
from runtime.datasets import write_lines

if TYPE_CHECKING:
    from gateway.uploads import KeptFile
    from runtime.blob_store import BlobStore
    from runtime.events import Json

FIELD = "inputs"


class Given(NamedTuple):
    """``items`` None: nobody counted them."""

    source: BatchSource
    items: int | None


async def inline(blobs: BlobStore, inputs: Sequence[Any]) -> Given:
    """Inputs that stood in the request itself."""
    ref = await asyncio.to_thread(write_lines, blobs, map(msgspec.json.encode, inputs))
    return Given(BatchSource(blob=ref, name="inputs.jsonl", format="jsonl"), len(inputs))


async def uploaded(blobs: BlobStore, file: KeptFile, form: Format, schema: Json) -> Given:
    """An uploaded file. Raises: Problem invalid_input when it can't be read as what it is."""
    given = blob_file(blobs, file.blob, file.name)
    if form:
        given = msgspec.structs.replace(given, format=form)
    if not given.format:
        raise broken(FIELD, f"name the format, or end the file's name with one of {', '.join(SUFFIXES)}")
    columns = typed_columns(schema) if given.format in ("csv", "tsv") else frozenset[str]()
    try:
        if columns:
            return await asyncio.to_thread(_typed, blobs, given, columns)
        items = await asyncio.to_thread(_count, given)
    except (SourceFault, NotInstalled) as fault:
        raise broken(FIELD, str(fault)) from None
    return Given(BatchSource(blob=file.blob, name=file.name, format=form), items)


def _count(file: SourceFile) -> int:
    """All of it is read, for a line that can't be would end the batch half way."""
    counted = count_items(file, scan=False)
    return sum(1 for _ in read_items(file)) if counted is None else counted


def typed_columns(schema: Json) -> frozenset[str]:
    """The inputs that the schema says are no texts."""
    if not isinstance(schema, dict):
        return frozenset()
    properties: Any = cast("dict[str, Any]", schema).get("properties")
    if not isinstance(properties, dict):
        return frozenset()
    return frozenset(
        name for name, rule in cast("dict[str, Any]", properties).items() if not _may_be_text(rule)
    )


def _may_be_text(rule: Any) -> bool:
    wanted = cast("dict[str, Any]", rule).get("type") if isinstance(rule, dict) else None
    if isinstance(wanted, list):
        return "string" in wanted
    return wanted in (None, "string")


def _typed(blobs: BlobStore, file: SourceFile, columns: frozenset[str]) -> Given:
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for line in read_items(file):
            count += 1
            row: dict[str, str] = msgspec.json.decode(line)
            yield msgspec.json.encode(
                {
                    name: _value(text) if name in columns else text
                    for name, text in row.items()
                    if text or name not in columns
                }
            )

    ref = write_lines(blobs, lines())
    return Given(BatchSource(blob=ref, name=file.name.removesuffix(".gz"), format="jsonl"), count)


def _value(text: str) -> Any:
    """JSON where it is JSON; else the text, and the flow will say what it has against it."""
    try:
        # Once there and back, so that it is the same for the host: no line break, no number beyond 64 bits.
        return msgspec.Raw(msgspec.json.encode(msgspec.json.decode(text)))
    except (msgspec.DecodeError, OverflowError, RecursionError):
        return text
