"""The items of a wide map as a stream: of files, of another map's results, of a large value.

    stream = open_source(source, access)      finds the files and takes their fingerprint
    stream.skip(1_000)                        items that are done already
    while items := stream.read(500, 1 << 20): ...

Blocking, and for one thread at a time. What is in memory is one block of a file and what ``read`` returns.
Records of a pattern's files follow each other by name; files that hold no records are items themselves,
``{"uri", "size"}``. The fingerprint covers every file's name and mark, so a source that changed between two
attempts is noticed, and its recorded items are not mistaken for those of another.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from typing import Any, cast

import msgspec

from actors.record_formats import SourceFault, count_items, read_items
from actors.source_files import SourceAccess, SourceFile, blob_file, find_files, is_pattern
from runtime import datasets
from runtime.plan import MapSource
from runtime.values import value_ref

COUNTED_FILES_MAX = 64
"""Files whose number of items is looked up before the first one is read; of more, the total is unknown."""

__all__ = ["ItemStream", "SourceAccess", "SourceFault", "open_source"]


class ItemStream:
    """Items in order. ``total``: how many there are, None while that can't be told cheaply."""

    def __init__(
        self,
        items: Callable[[int], Iterator[bytes]],
        fingerprint: str,
        total: int | None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self._open = items
        self._shard = shard
        self._at = 0
        self._items: Iterator[bytes] | None = None
        self._rest: Iterator[bytes] = iter(())
        self.fingerprint = fingerprint
        self.total = total
        if shard is not None:
            index, count = shard
            if not 0 <= index < count:
                raise SourceFault(f"shard {index} of {count}: there is no such shard")
            self.fingerprint = f"{fingerprint}:{index}/{count}"
            self.total = None if total is None else len(range(index, total, count))

    def read(self, count: int, bytes_max: int) -> list[msgspec.Raw]:
        """The next items: at most ``count``, and no more once they have ``bytes_max`` bytes; [] at the end.

        Raises: SourceFault naming file and line; OSError, DomainError or httpx.HTTPError of the storage.
        """
        if self._items is None:
            index, every = self._shard or (0, 1)
            self._items = self._open(index + self._at * every)
            self._rest = islice(self._items, 0, None, every)
        taken: list[msgspec.Raw] = []
        size = 0
        try:
            for item in islice(self._rest, count):
                taken.append(msgspec.Raw(item))
                size += len(item)
                if size >= bytes_max:
                    break
        except BaseException:
            # Python ends a generator that raised; the next read must not take that for the source's end.
            self._rest = iter(self._broken, b"")
            raise
        self._at += len(taken)
        return taken

    @staticmethod
    def _broken() -> bytes:
        raise SourceFault("reading failed before: open the source again")

    def skip(self, count: int) -> None:
        """Leave out the next ``count`` items; before the first ``read`` this is cheap where it can be."""
        if self._items is None:
            self._at += count
        else:
            self._at += sum(1 for _ in islice(self._rest, count))

    def close(self) -> None:
        """Close what is open. Harmless twice; the stream is at its end afterwards."""
        close = getattr(self._items, "close", None)
        self._items, self._rest = iter(()), iter(())
        if close is not None:
            close()


def open_source(source: MapSource, access: SourceAccess) -> ItemStream:
    """Find what ``source`` names. Nothing is read of it yet, but the ends of Parquet files.

    ``source.dataset`` may be a data set or the marker of a stored value (``runtime.values``).
    Raises: SourceFault, PermissionError, FileNotFoundError; as ``ItemStream.read``.
    """
    if source.dataset is not None:
        return _of_value(source, access)
    files = find_files(source.uri, access)
    if source.format:
        files = [msgspec.structs.replace(file, format=source.format) for file in files]
    if all(file.format for file in files):
        return _of_records(files, source.shard)
    if any(file.format for file in files):
        records = next(file.name for file in files if file.format)
        other = next(file.name for file in files if not file.format)
        raise SourceFault(
            f"{source.uri} matches files of records ({records}) and others ({other}):"
            " narrow the pattern, or say what all of them are by format"
        )
    if not is_pattern(source.uri):
        raise SourceFault(
            f"{files[0].name}: the name does not tell the format; set format to jsonl, csv or parquet"
        )
    return _of_files(files, source.shard)


def _of_value(source: MapSource, access: SourceAccess) -> ItemStream:
    ref = value_ref(source.dataset)
    if ref is not None:
        file = blob_file(access.blobs, ref, f"blob {ref.sha256}")
        if source.format:
            file = msgspec.structs.replace(file, format=source.format)
        if not file.format:
            raise SourceFault(f"a value of type {ref.media_type} has no items")
        return _of_records([file], source.shard)
    try:
        dataset = datasets.parse_dataset(source.dataset)
    except ValueError as error:
        raise SourceFault(f"the source gives no items: {error}") from None

    def items(skip: int) -> Iterator[bytes]:
        return datasets.iter_results(access.blobs, dataset, skip)

    return ItemStream(items, dataset.parts.sha256, dataset.items, source.shard)


def _of_records(files: list[SourceFile], shard: tuple[int, int] | None) -> ItemStream:
    counts: list[int | None] = [None] * len(files)
    if len(files) <= COUNTED_FILES_MAX:
        counts = [None if file.is_copied else count_items(file, scan=file.is_near) for file in files]
    total = None if None in counts else sum(cast("list[int]", counts))

    def items(skip: int) -> Iterator[bytes]:
        for file, count in zip(files, counts, strict=True):
            if count is not None or file is files[-1]:
                if count is None or skip < count:
                    yield from read_items(file, skip)
                skip = max(0, skip - (count or 0))
                continue
            for item in read_items(file):
                if skip:
                    skip -= 1
                else:
                    yield item

    return ItemStream(items, _fingerprint(files), total, shard)


def _of_files(files: list[SourceFile], shard: tuple[int, int] | None) -> ItemStream:
    def items(skip: int) -> Iterator[bytes]:
        for file in islice(files, skip, None):
            item: dict[str, Any] = {"uri": file.uri, "size": file.size}
            yield msgspec.json.encode(item)

    return ItemStream(items, _fingerprint(files), len(files), shard)


def _fingerprint(files: list[SourceFile]) -> str:
    told = sha256()
    for file in files:
        told.update(msgspec.json.encode((file.name, file.mark, file.format)))
    return told.hexdigest()
