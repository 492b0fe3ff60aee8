"""Finds the files behind a source and refuses what nobody allowed.

    artifact://...       a file of the execution, in the blob store
    http(s)://...        through the vetted egress
    other://...          through fsspec, below a prefix that the operator listed (``sources_allow``)
    anything else        a path or a pattern below the files root

What is found is listed by name, with a mark (size and time, ETag, hash) that tells another version.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import msgspec

from actors.egress import EgressGuard, EgressRules
from actors.egress_transport import vetted_client
from actors.http_file import READ_SECONDS_MAX, HttpFile, HttpHead
from actors.local_files import path_below
from actors.record_formats import SEEKS, SourceFault, format_of
from runtime.blob_store import BlobStore
from runtime.block_file import BlockFile
from runtime.events import BlobRef, FileDescriptor

FILES_MAX = 100_000
"""Files one pattern may match."""

NEAR_BYTES_MAX = 1024**3
"""Size of a file of this machine up to which its lines are counted before it is read."""

SPOOL_BYTES_MAX = 16 * 1024**3
"""Size of a web server's Parquet file, which is copied to the disk first, for its reader jumps about."""

_SPOOL_BLOCK = 1024 * 1024

_PATTERN = frozenset("*?[")
_REFUSED_PROTOCOLS = frozenset({"file", "local", "http", "https"})


class SourceAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What one execution may read. ``files_root`` is resolved; ``files``: uploaded to this execution.

    ``egress_allow``: as ``EgressRules.parse`` reads it. ``sources_allow``: URL prefixes for fsspec.
    """

    blobs: BlobStore
    files: tuple[FileDescriptor, ...] = ()
    files_root: Path | None = None
    egress_allow: str = ""
    sources_allow: tuple[str, ...] = ()


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. ``uri``: what a node would open it by. ``mark``: another one means another content.

    ``format`` is empty for a file that holds no records. ``is_near``: reading all of it costs little;
    ``is_copied``: opening it costs as much as reading all of it.
    """

    name: str
    uri: str
    mark: str
    opener: Callable[[], BinaryIO]
    format: str = ""
    is_gzipped: bool = False
    size: int | None = None
    is_near: bool = False
    is_copied: bool = False

    def open(self) -> BinaryIO:
        return self.opener()


def is_pattern(uri: str) -> bool:
    """Whether ``uri`` may name several files. In a URL of a web server or of an artifact nothing does."""
    return not uri.startswith(("artifact://", "http://", "https://")) and not _PATTERN.isdisjoint(uri)


def find_files(uri: str, access: SourceAccess) -> list[SourceFile]:
    """The files ``uri`` names, at least one, sorted by name.

    Raises: PermissionError, FileNotFoundError, SourceFault; what opening the storage raises (OSError).
    """
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "artifact":
        return [_artifact(uri, access)]
    if scheme in ("http", "https"):
        return [_web_file(uri, access)]
    found = _stored(uri, scheme, access) if scheme else _local(uri, access.files_root)
    if not found:
        raise FileNotFoundError(f"{uri}: no file matches")
    return found


# --- of this machine ----------------------------------------------------------------------------------


def _local(uri: str, root: Path | None) -> list[SourceFile]:
    if not is_pattern(uri):
        path = path_below(root, uri)
        if path.is_dir():
            raise SourceFault(f"{uri} is a folder: write {uri.rstrip('/')}/* for the files in it")
        return [_local_file(path, uri)]
    if root is None or uri.startswith("/") or ".." in uri.split("/"):
        path_below(root, uri)
        raise PermissionError(f"{uri}: a pattern is relative to the files root and has no '..'")
    with_hidden = uri.rpartition("/")[2].startswith(".")
    found: dict[str, Path] = {}
    for path in root.glob(uri):
        if path.is_dir() or (path.name.startswith(".") and not with_hidden):
            continue
        name = path.relative_to(root).as_posix()
        found[name] = path_below(root, name)
        _bounded(uri, len(found))
    return [_local_file(found[name], name) for name in sorted(found)]


def _local_file(path: Path, uri: str) -> SourceFile:
    status = path.stat()
    mark = _mark(status)
    known, is_gzipped = format_of(uri)
    return SourceFile(
        name=uri,
        uri=uri,
        mark=mark,
        opener=partial(_open_local, path, uri, mark),
        format=known,
        is_gzipped=is_gzipped,
        size=status.st_size,
        is_near=status.st_size <= NEAR_BYTES_MAX,
    )


def _open_local(path: Path, uri: str, mark: str) -> BinaryIO:
    file = path.open("rb")
    if _mark(os.fstat(file.fileno())) != mark:
        file.close()
        raise SourceFault(f"{uri} changed since it was first looked at")
    return file


def _mark(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _bounded(uri: str, count: int) -> None:
    if count > FILES_MAX:
        raise SourceFault(f"{uri} matches more than {FILES_MAX} files")


# --- of the blob store --------------------------------------------------------------------------------


def _artifact(uri: str, access: SourceAccess) -> SourceFile:
    for file in access.files:
        if file.uri == uri:
            ref = BlobRef(sha256=file.sha256, size=file.size, media_type=file.content_type)
            return blob_file(access.blobs, ref, file.name, uri)
    raise FileNotFoundError(f"{uri} is not a file of this execution")


def blob_file(blobs: BlobStore, ref: BlobRef, name: str, uri: str = "") -> SourceFile:
    """A blob as a file of records, by its name or media type."""
    known, is_gzipped = format_of(name, ref.media_type)
    if known in SEEKS:
        opener: Callable[[], BinaryIO] = partial(blobs.open_file, ref)
    else:
        opener = partial(_stream, lambda: blobs.open_reader(ref))
    return SourceFile(
        name=name,
        uri=uri,
        mark=ref.sha256,
        opener=opener,
        format=known,
        is_gzipped=is_gzipped,
        size=ref.size,
        is_near=blobs.is_local and ref.size <= NEAR_BYTES_MAX,
    )


def _stream(blocks: Callable[[], Iterator[bytes]]) -> BinaryIO:
    return io.BufferedReader(BlockFile(blocks()), buffer_size=64 * 1024)


# --- of web servers -----------------------------------------------------------------------------------


def _web_file(url: str, access: SourceAccess) -> SourceFile:
    guard = EgressGuard(EgressRules.parse(access.egress_allow))
    file = HttpFile(url, lambda: vetted_client(guard, timeout_seconds=READ_SECONDS_MAX))
    head = file.head()
    known, is_gzipped = format_of(file.name, head.media_type)
    return SourceFile(
        name=file.name,
        uri=url,
        mark=head.version or f"{head.size}",
        opener=partial(_spooled if known in SEEKS else _streamed, file, head),
        format=known,
        is_gzipped=is_gzipped,
        size=head.size,
        is_copied=known in SEEKS,
    )


def _streamed(file: HttpFile, head: HttpHead) -> BinaryIO:
    return _stream(lambda: file.blocks(head))


def _spooled(file: HttpFile, head: HttpHead) -> BinaryIO:
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  # whoever opened it closes it
    try:
        with _streamed(file, head) as source:
            while block := source.read(_SPOOL_BLOCK):
                if copy.tell() + len(block) > SPOOL_BYTES_MAX:
                    raise SourceFault(f"{file.name}: larger than {SPOOL_BYTES_MAX} bytes")
                copy.write(block)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


# --- of any other storage -----------------------------------------------------------------------------


def _stored(uri: str, scheme: str, access: SourceAccess) -> list[SourceFile]:
    _check_allowed(uri, scheme, access.sources_allow)
    try:
        fs, path = cast("tuple[Any, str]", cast("Any", fsspec).core.url_to_fs(uri))
    except ImportError as error:
        raise SourceFault(f"{uri}: {error}") from None
    if not is_pattern(uri):
        return [_stored_file(fs, path, fs.info(path))]
    matches: Mapping[str, Mapping[str, Any]] = fs.glob(path, detail=True)
    files = {name: info for name, info in matches.items() if info.get("type") != "directory"}
    _bounded(uri, len(files))
    return [_stored_file(fs, name, files[name]) for name in sorted(files)]


def _check_allowed(uri: str, scheme: str, allowed: tuple[str, ...]) -> None:
    """A prefix ends where a folder does, and nothing may climb out of it."""
    within = any(uri == prefix or uri.startswith(f"{prefix.rstrip('/')}/") for prefix in allowed)
    climbs = ".." in uri.split("/") or "::" in uri
    if not within or climbs or scheme in _REFUSED_PROTOCOLS:
        raise PermissionError(f"{uri} is not below a prefix of HELIOGRAPH_SOURCES_ALLOW")


def _stored_file(fs: Any, path: str, info: Mapping[str, Any]) -> SourceFile:
    uri = str(fs.unstrip_protocol(path))
    known, is_gzipped = format_of(path)
    size = info.get("size")
    told = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")
    version = next((info[key] for key in told if info.get(key)), "")
    return SourceFile(
        name=uri,
        uri=uri,
        mark=f"{size}-{version}",
        opener=partial(fs.open, path, "rb"),
        format=known,
        is_gzipped=is_gzipped,
        size=size,
    )
