"""What a batch runs over, when it came with the request: kept as a file, counted and checked beforehand.

So a file that can't be read to its end is refused with the line that is wrong, before anything was started;
what a row means to the flow is found out when its turn comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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

FIELD = "inputs"


class Given(NamedTuple):
    """``items`` None: nobody counted them."""

    source: BatchSource
    items: int | None


async def inline(blobs: BlobStore, inputs: Sequence[Any]) -> Given:
    """Inputs that stood in the request itself."""
    ref = await asyncio.to_thread(write_lines, blobs, map(msgspec.json.encode, inputs))
    return Given(BatchSource(blob=ref, name="inputs.jsonl", format="jsonl"), len(inputs))


async def uploaded(blobs: BlobStore, file: KeptFile, form: Format) -> Given:
    """An uploaded file. Raises: Problem invalid_input when it can't be read as what it is."""
    given = blob_file(blobs, file.blob, file.name)
    if form:
        given = msgspec.structs.replace(given, format=form)
    if not given.format:
        raise broken(FIELD, f"name the format, or end the file's name with one of {', '.join(SUFFIXES)}")
    try:
        items = await asyncio.to_thread(_count, given)
    except (SourceFault, NotInstalled) as fault:
        raise broken(FIELD, str(fault)) from None
    return Given(BatchSource(blob=file.blob, name=file.name, format=form), items)


def _count(file: SourceFile) -> int:
    """All of it is read, for a line that can't be would end the batch half way."""
    counted = count_items(file, scan=False)
    return sum(1 for _ in read_items(file)) if counted is None else counted
