"""The items of a wide map that are in no recorded chunk, in order, read a little ahead of the work.

Reading blocks, so it has one thread of its own for each running map. What is recorded is skipped, not read.
Storage that is away for a moment is asked again; a source that is another one by then is refused.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple, Protocol, TypeVar

import httpx
import msgspec

from runtime import chunks
from runtime.errors import Diverged, Unavailable
from runtime.events import ChunkResult, Json

TRIES_MAX = 6
TRY_SECONDS = 1.0
"""Storage that fails is asked again after so long, then twice as long, and so on."""

T = TypeVar("T")


class Stream(Protocol):
    """An ``item_sources.ItemStream``, or the items of a list."""

    fingerprint: str
    total: int | None

    def read(self, count: int, bytes_max: int) -> list[msgspec.Raw]: ...
    def skip(self, count: int) -> None: ...
    def close(self) -> None: ...


class Piece(NamedTuple):
    """Items that follow each other. ``tries``: made of them before, in processes that died."""

    first: int
    items: list[msgspec.Raw]
    tries: int = 0


class ListStream:
    """The items of a list that is in memory anyway."""

    def __init__(self, items: tuple[Json, ...]) -> None:
        self._items = items
        self._at = 0
        self.total: int | None = len(items)
        digest = sha256()
        for item in items:
            digest.update(msgspec.json.encode(item) + b"\n")
        self.fingerprint = digest.hexdigest()

    def read(self, count: int, bytes_max: int) -> list[msgspec.Raw]:
        taken: list[msgspec.Raw] = []
        size = 0
        while len(taken) < count and size < bytes_max and self._at < len(self._items):
            taken.append(msgspec.Raw(msgspec.json.encode(self._items[self._at])))
            size += len(taken[-1])
            self._at += 1
        return taken

    def skip(self, count: int) -> None:
        self._at += count

    def close(self) -> None:
        self._at = len(self._items)


class ChunkSource:
    """``open`` first, ``close`` at the end; between them ``take`` from any task."""

    def __init__(self, open_stream: Callable[[], Stream]) -> None:
        self._open_stream = open_stream
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="items")
        self._stream: Stream | None = None
        self._gaps = iter(chunks.gaps(()))
        self._gap: tuple[int, int | None] = (0, None)
        self._at = 0
        self.fingerprint = ""
        self.total: int | None = None
        """Items of the whole source; always known once it was read to its end."""
        self.is_at_end = False

    @property
    def left(self) -> int | None:
        """Items that were not read yet, at most; None while nobody knows."""
        return None if self.total is None else max(0, self.total - self._at)

    async def open(self) -> None:
        """Raises: what opening and reading the source raises; Diverged when it is another than before."""
        await self._do(self._open)

    def leave_out(self, recorded: Iterable[ChunkResult]) -> None:
        """Before the first ``take``: what needn't be done."""
        self._gaps = iter(chunks.gaps(recorded))
        self._gap = next(self._gaps)

    async def take(self, count: int, bytes_max: int) -> Piece | None:
        """The next items, at least one; None at the end. Raises: as ``open``."""
        return await self._do(lambda: self._take(count, bytes_max))

    def close(self) -> None:
        """Without waiting: a read under way ends first."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._retried(work))

    def _retried(self, work: Callable[[], T]) -> T:
        for tries in range(1, TRIES_MAX):
            try:
                return work()
            except (FileNotFoundError, PermissionError):
                raise
            except (OSError, httpx.HTTPError, Unavailable):
                self._close()
                time.sleep(TRY_SECONDS * 2 ** (tries - 1))
        return work()

    def _open(self) -> Stream:
        stream = self._open_stream()
        if self.fingerprint and stream.fingerprint != self.fingerprint:
            stream.close()
            raise Diverged("the source changed while it was being read")
        self.fingerprint = stream.fingerprint
        self.total = stream.total if self.total is None else self.total
        if self._at:
            stream.skip(self._at)
        self._stream = stream
        return stream

    def _take(self, count: int, bytes_max: int) -> Piece | None:
        stream = self._stream or self._open()
        while not self.is_at_end:
            first, end = self._gap
            if self._at < first:
                stream.skip(first - self._at)
                self._at = first
            wanted = count if end is None else min(count, end - self._at)
            if wanted <= 0:
                self._gap = next(self._gaps)
                continue
            items = stream.read(wanted, bytes_max)
            if not items:
                self.is_at_end = True
                self.total = self._at
                break
            piece = Piece(self._at, items)
            self._at += len(items)
            return piece
        return None

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
