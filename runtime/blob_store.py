"""Claim check: payloads too big for an event, and uploaded files, by the hash of their content.

Over fsspec: a local folder by default, an object store by URL. A blob's place is ``aa/bb/<sha256>``, so
writing one twice is harmless and nothing is ever overwritten by something else. A blob appears whole or not
at all: it is written beside its place and moved there. Blocking: call it from threads.
"""

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, BinaryIO, Protocol, cast

import fsspec

from runtime.errors import Diverged, NotFound, Unavailable
from runtime.events import BlobRef

CHUNK_BYTES = 1024 * 1024
"""Bytes moved at a time; nothing but ``put_bytes`` and ``get_bytes`` holds a whole blob."""

GET_BYTES_MAX = 64 * 1024 * 1024
"""Bytes ``get_bytes`` takes into memory; a bigger blob must be read in chunks."""

_INCOMING = "incoming"
_HEX = frozenset("0123456789abcdef")


class _File(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...
    def write(self, data: bytes, /) -> int: ...
    def close(self) -> None: ...


class BlobWriter:
    """One blob being written. ``write`` any number of times, then ``commit`` or ``abort``.

    As a context manager it aborts what was not committed.
    """

    def __init__(self, store: "BlobStore", file: _File, path: str) -> None:
        self._store = store
        self._file = file
        self._path = path
        self._hash = sha256()
        self._is_open = True
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        with _reachable():
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def commit(self, media_type: str = "application/octet-stream") -> BlobRef:
        """The blob is in the store, durably, when this returns."""
        ref = BlobRef(sha256=self._hash.hexdigest(), size=self.size, media_type=media_type)
        with _reachable():
            self._store.settle(self._file, self._path, ref)
        self._is_open = False
        return ref

    def abort(self) -> None:
        """Nothing of it stays. Harmless after ``commit``."""
        if self._is_open:
            self._is_open = False
            self._store.abandon(self._file, self._path)

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class BlobStore:
    """Raises: Unavailable from every method when the storage is away."""

    def __init__(self, url: str, writer_id: str = "") -> None:
        """``url``: a folder, or whatever fsspec understands (``s3://bucket/prefix``, ``memory://name``).

        ``writer_id`` keeps apart the unfinished files of several processes; by default the process id.
        """
        self.url = url
        # fsspec ships no types.
        self._fs, root = cast("tuple[Any, str]", cast("Any", fsspec).core.url_to_fs(url))
        self._root = root.rstrip("/")
        self.is_local = "file" in self._fs.protocol
        self._writer_id = writer_id or f"{os.getpid()}-{id(self):x}"
        self._numbers = itertools.count(1)

    def put_bytes(self, data: bytes, media_type: str = "application/json") -> BlobRef:
        """Store ``data``; storing the same again changes nothing."""
        ref = BlobRef(sha256=sha256(data).hexdigest(), size=len(data), media_type=media_type)
        if not self.exists(ref):
            with self.open_writer() as writer:
                writer.write(data)
                writer.commit(media_type)
        return ref

    def get_bytes(self, ref: BlobRef, limit: int = GET_BYTES_MAX) -> bytes:
        """The whole blob, its hash verified.

        Raises: NotFound; Diverged when it isn't what its name says; ValueError above ``limit`` bytes.
        """
        if ref.size > limit:
            raise ValueError(f"blob {ref.sha256} has {ref.size} bytes; at most {limit} are read at once")
        return b"".join(self.open_reader(ref))

    def open_writer(self) -> BlobWriter:
        """Begin a blob whose content and size aren't known yet."""
        path = f"{self._root}/{_INCOMING}/{self._writer_id}-{next(self._numbers)}"
        with _reachable():
            self._fs.makedirs(f"{self._root}/{_INCOMING}", exist_ok=True)
            return BlobWriter(self, self._fs.open(path, "wb"), path)

    def open_reader(self, ref: BlobRef, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The blob in chunks, none empty; the last one only comes out of a blob whose hash is right.

        Raises: NotFound; Diverged when it isn't what its name says.
        """
        digest = sha256()
        size = 0
        held = b""
        with _reachable(ref):
            file = cast("_File", self._fs.open(self._place(ref), "rb"))
        try:
            while True:
                with _reachable(ref):
                    chunk = file.read(chunk_bytes)
                if not chunk:
                    break
                digest.update(chunk)
                size += len(chunk)
                if size > ref.size:
                    break
                if held:
                    yield held
                held = chunk
        finally:
            file.close()
        if size != ref.size or digest.hexdigest() != ref.sha256:
            raise Diverged(f"blob {ref.sha256}: the stored content is not what its name says")
        if held:
            yield held

    def open_file(self, ref: BlobRef) -> BinaryIO:
        """The blob as a file that can be read anywhere, for formats whose reader jumps about.

        Its size is checked, its hash is not: that takes reading all of it. Raises: NotFound, Diverged.
        """
        with _reachable(ref):
            file = cast("BinaryIO", self._fs.open(self._place(ref), "rb"))
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
        if size != ref.size:
            file.close()
            raise Diverged(f"blob {ref.sha256}: the stored content is not what its name says")
        return file

    def find(self, sha256: str, media_type: str) -> BlobRef:
        """The reference of a blob of which only the hash is known. Raises: NotFound."""
        unsized = BlobRef(sha256=sha256, size=0, media_type=media_type)
        with _reachable(unsized):
            return BlobRef(
                sha256=sha256, size=int(self._fs.size(self._place(unsized))), media_type=media_type
            )

    def exists(self, ref: BlobRef) -> bool:
        with _reachable():
            return bool(self._fs.exists(self._place(ref)))

    def delete(self, ref: BlobRef) -> None:
        """Harmless when it is gone already. Whoever else refers to the same content loses it too."""
        with _reachable():
            try:
                self._fs.rm_file(self._place(ref))
            except FileNotFoundError:
                return

    def settle(self, file: _File, path: str, ref: BlobRef) -> None:
        """Move a written file to its place (for ``BlobWriter``)."""
        place = self._place(ref)
        if self.is_local:
            _sync(file)
        file.close()
        if not self.is_local:
            self._fs.mv(path, place)
            return
        folder = os.path.dirname(place)
        os.makedirs(folder, exist_ok=True)
        # rename(2) replaces atomically; the same content by the same name makes that harmless.
        os.replace(path, place)
        _sync_folder(folder)

    def abandon(self, file: _File, path: str) -> None:
        """Drop a file that was not finished (for ``BlobWriter``)."""
        with _reachable():
            file.close()
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                return

    def _place(self, ref: BlobRef) -> str:
        name = ref.sha256
        if len(name) != 64 or not _HEX.issuperset(name):
            raise NotFound(f"not a SHA-256 in lower-case hex: {name!r}")
        return f"{self._root}/{name[:2]}/{name[2:4]}/{name}"


def _sync(file: _File) -> None:
    """A blob must be on the disk before an event refers to it."""
    opened = cast("Any", file)
    opened.flush()
    os.fsync(opened.fileno())


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reachable(ref: BlobRef | None = None) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if ref is None:
            raise Unavailable(f"the blob store is unavailable: {error}") from error
        raise NotFound(f"no blob {ref.sha256}") from error
    except OSError as error:
        raise Unavailable(f"the blob store is unavailable: {error}") from error
