"""What stands in a batch's resource: what is run, over what, and the executions of each round.

    batch         flow_id@flow_version over one source
      round 0     every item of the source, by one or several executions, each with every n-th item
      round 1..   what had failed before it, in the order of items

Everything else about a batch (its status, its counts, its results) is read from those executions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from runtime.events import BlobRef, FileDescriptor, Json

KIND = "batch"
"""Of the resource."""

MAP_NODE = "items"
"""The one node of the built-in flow `batch-run`."""

SOURCE = "batch"
"""The door that executions of a batch came in by."""

ROUNDS_MAX = 100
"""Rounds of one batch; one more is refused."""

SHARDS_MAX = 64
"""Executions of one round."""

SHARD_ITEMS_MIN = 1_000
"""Fewer items are not worth a second execution."""

Format = Literal["", "jsonl", "csv", "parquet"]


class BatchSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Either ``uri``, a place the hosts read from, or ``blob``, a file of the batch. ``name``: the file's."""

    uri: str = ""
    blob: BlobRef | None = None
    name: str = ""
    format: Format = ""


class RoundDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``executions[i]`` runs every n-th item from the i-th on, n being their number.

    ``items``: how many, where that is known. ``indexes``: their places in the batch's source (JSON Lines);
    None: they are counted from 0. ``by``: the API key that asked for it.
    """

    executions: tuple[str, ...]
    source: BatchSource
    items: int | None = None
    indexes: BlobRef | None = None
    by: str = ""


class BatchDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``concurrency``: items in flight at a time, over all executions of a round."""

    name: str
    flow_id: str
    flow_version: str
    concurrency: int
    rounds: tuple[RoundDocument, ...]


def read_document(document: Mapping[str, Json]) -> BatchDocument:
    return msgspec.convert(document, BatchDocument)


def as_json(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value)


def subject_of(batch_id: str) -> str:
    """Of the executions of a batch."""
    return f"batch:{batch_id}"


def shards_of(hosts: int, items: int | None, concurrency: int) -> int:
    """How many executions share a round."""
    worth = SHARDS_MAX if items is None else max(1, items // SHARD_ITEMS_MIN)
    return max(1, min(hosts, concurrency, worth, SHARDS_MAX))


def files_of(execution_id: str, source: BatchSource) -> tuple[FileDescriptor, ...]:
    if source.blob is None:
        return ()
    return (
        FileDescriptor(
            file_id="f1",
            name=source.name,
            content_type=source.blob.media_type,
            size=source.blob.size,
            sha256=source.blob.sha256,
            uri=f"artifact://{execution_id}/f1",
        ),
    )


def input_of(document: BatchDocument, one: RoundDocument, shard: int) -> dict[str, Json]:
    """What the execution with the place ``shard`` in the round is given."""
    count = len(one.executions)
    files = files_of(one.executions[shard], one.source)
    return {
        "flow": document.flow_id,
        "version": document.flow_version,
        "source": files[0].uri if files else one.source.uri,
        "format": one.source.format,
        "shard": [shard, count],
        # The first shards take what doesn't divide evenly.
        "concurrency": document.concurrency // count + (shard < document.concurrency % count),
    }
