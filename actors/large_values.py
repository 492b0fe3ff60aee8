"""Results and arguments that are no JSON: tables, arrays, bytes and files, kept in the blob store.

    a function returns                            stored as                 an argument it becomes
    Arrow table, data frame (``__arrow_c_stream__``)  Arrow IPC stream      ``pyarrow.Table``
    ``numpy.ndarray``                             .npy, never a pickle      ``numpy.ndarray``
    ``bytes``, ``bytearray``, ``memoryview``      as they are               ``bytes``
    ``step_context.File``                         as it is                  ``step_context.File``, a copy

Between functions only the marker of the value travels (``runtime.values``), whatever its size. Tables, arrays
and files may also stand inside a result that is JSON otherwise; bytes inside one are text in base64, as ever.
Nothing here opens a pickle: arrays of Python objects are refused both ways.
"""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol, cast

import msgspec

from actors.files import File
from actors.optional_libraries import numpy, pyarrow
from actors.step_call import BlobStore
from runtime import values
from runtime.block_file import BlockFile
from runtime.events import BlobRef, Json

VALUE_BYTES_MAX = 1024 * 1024 * 1024
"""Size of a table, an array or bytes that a function gets as an argument; files have no such bound."""

_BLOCK_BYTES = 1024 * 1024
_BYTES = (bytes, bytearray, memoryview)
_LISTS = (list, tuple)
_PLAIN = frozenset({dict, list, str, int, float, bool, type(None)})


class ValueCopy(Protocol):
    """A copy of a value while it is written; given up when it grows too large."""

    def write(self, data: bytes, /) -> None: ...
    def keep(self, ref: BlobRef, /) -> None: ...


class ValueCache(Protocol):
    """Values at hand that are in the blob store as well (``object_cache``)."""

    def find(self, ref: BlobRef, /) -> memoryview | None: ...
    def copy(self) -> ValueCopy | None: ...


class NotStorable(TypeError):
    """A value of a kind that is stored, but not this one: an array of Python objects, a file that is gone."""


# --- results -------------------------------------------------------------------------------------------


def is_stored(value: Any) -> bool:
    """Whether a result of this kind goes to the blob store as a whole, however small it is."""
    # Nearly every result is plain, and this is asked of every one.
    return type(value) not in _PLAIN and (isinstance(value, _BYTES) or _is_special(value))


def _is_special(value: Any) -> bool:
    return isinstance(value, File) or hasattr(value, "__arrow_c_stream__") or _is_array(value)


def _is_array(value: Any) -> bool:
    library = sys.modules.get("numpy")
    return library is not None and isinstance(value, library.ndarray)


def store(value: Any, blobs: BlobStore, cache: ValueCache | None = None) -> dict[str, Any]:
    """Store a value for which ``is_stored``; returns its marker. Blocks of it are in memory, not a copy.

    ``cache`` gets it as well, for those who read it next.
    Raises: NotStorable, NotInstalled, Unavailable.
    """
    with blobs.open_writer() as writer:
        kept = cache.copy() if cache is not None else None
        sink = cast("BinaryIO", _Sink((writer.write, kept.write) if kept is not None else (writer.write,)))
        media_type = _write(value, sink)
        ref = writer.commit(media_type)
    if kept is not None:
        kept.keep(ref)
    return values.marker(ref)


def _write(value: Any, sink: BinaryIO) -> str:
    """Write ``value``; returns its media type."""
    if isinstance(value, File):
        _copy_file(value, sink)
        return value.media_type
    if isinstance(value, _BYTES):
        sink.write(memoryview(cast("bytes", value)))
        return values.BYTES
    if _is_array(value):
        _write_array(value, sink)
        return values.NUMPY_ARRAY
    _write_table(value, sink)
    return values.ARROW_STREAM


def within_json(keep: Callable[[Any], Json]) -> Callable[[Any], Json]:
    """For an encoder: what stands in JSON for a value that JSON doesn't know.

    ``keep`` gives it for what is stored. The encoder raises TypeError for everything else.
    """

    def instead(value: Any) -> Json:
        if _is_special(value):
            return keep(value)
        library = sys.modules.get("numpy")
        if library is not None and isinstance(value, library.generic):
            return value.item()
        raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")

    return instead


class _Sink(io.RawIOBase):
    """A blob being written, as the file that libraries write to."""

    def __init__(self, writes: tuple[Callable[[bytes], None], ...]) -> None:
        self._writes = writes

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            block = bytes(view[start : start + _BLOCK_BYTES])
            for write in self._writes:
                write(block)
        return len(view)


def _copy_file(file: File, sink: BinaryIO) -> None:
    try:
        with open(file.path, "rb") as source:
            while block := source.read(_BLOCK_BYTES):
                sink.write(block)
    except OSError as error:
        raise NotStorable(f"{file.path} can't be read ({error.strerror})") from None


def _write_array(array: Any, sink: BinaryIO) -> None:
    if array.dtype.hasobject:
        raise NotStorable("an array of Python objects can't be stored without pickling it")
    numpy("storing arrays").lib.format.write_array(sink, array, allow_pickle=False)


def _write_table(table: Any, sink: BinaryIO) -> None:
    pa = pyarrow("storing tables")
    reader = pa.RecordBatchReader.from_stream(table)
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


# --- arguments -----------------------------------------------------------------------------------------


class Arguments:
    """The arguments of one call, with every marker replaced by what it stands for.

    A context manager: copies of files last as long as it does.
    """

    def __init__(self, blobs: Callable[[], BlobStore], cache: ValueCache | None = None) -> None:
        self._blobs = blobs
        self._cache = cache
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> "Arguments":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def decoded(self, given: Mapping[str, Json]) -> dict[str, Any]:
        """Raises: NotFound, Diverged, Unavailable, NotInstalled; ValueError for a value that is too large."""
        return {name: self._decoded(value) for name, value in given.items()}

    def _decoded(self, value: Json) -> Any:
        if isinstance(value, dict):
            ref = values.value_ref(value)
            if ref is not None:
                return self.load(ref)
            told = cast("dict[str, Json]", value)
            return {key: self._decoded(inner) for key, inner in told.items()}
        if isinstance(value, _LISTS):
            return [self._decoded(inner) for inner in cast("list[Json]", value)]
        return value

    def load(self, ref: BlobRef) -> Any:
        """What ``ref`` stands for, by its media type. Raises: as ``decoded``."""
        media_type = ref.media_type.partition(";")[0].strip().lower()
        read = _READERS.get(media_type)
        if read is None:
            return self._copied(ref)
        if ref.size > VALUE_BYTES_MAX:
            raise ValueError(f"an argument has {ref.size} bytes; at most {VALUE_BYTES_MAX} are loaded")
        return read(self._whole(ref))

    def _whole(self, ref: BlobRef) -> memoryview:
        found = self._cache.find(ref) if self._cache is not None else None
        if found is not None:
            return found
        kept = self._cache.copy() if self._cache is not None else None
        data = bytearray(ref.size)
        at = 0
        for block in self._blobs().open_reader(ref):
            data[at : at + len(block)] = block
            at += len(block)
            if kept is not None:
                kept.write(block)
        if kept is not None:
            kept.keep(ref)
        return memoryview(data).toreadonly()

    def _copied(self, ref: BlobRef) -> File:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="heliograph-")
        self._files += 1
        path = os.path.join(self._folder.name, str(self._files))
        with open(path, "xb") as copy:
            for block in self._blobs().open_reader(ref):
                copy.write(block)
        return File(path, ref.media_type)


def _read_array(data: memoryview) -> Any:
    """The array, in memory of its own: whoever gets it may write to it."""
    library = numpy("reading arrays")
    with BlockFile(iter((data,))) as file:
        return library.lib.format.read_array(io.BufferedReader(file), allow_pickle=False)


def _read_table(data: memoryview) -> Any:
    """The table, over these very bytes: tables never change."""
    pa = pyarrow("reading tables")
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()


_READERS: Mapping[str, Callable[[memoryview], Any]] = {
    values.ARROW_STREAM: _read_table,
    values.NUMPY_ARRAY: _read_array,
    values.BYTES: bytes,
    "application/json": msgspec.json.decode,
}
"""How a value becomes an argument; any other media type is a file."""
