"""Forms with files: read as they arrive, files straight into the blob store.

A request's files are staged: each is written to the store's own temporary place while its bytes arrive, and
becomes a blob only when the whole request proved good (`Form.keep`). Whatever ends a request earlier
(a limit, a fault, the client going away) ends in `Form.discard`, which leaves nothing behind. No file
is ever held in memory: what is, is one network read and one write buffer.

python-multipart's push parser is used directly. Starlette's form parser on top of it would spool every file
to a temporary file first and copy it from there.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from gateway.envelopes import Problem
from runtime.events import BlobRef

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

PARTS_MAX = 200
"""Parts of one form, ignored ones included."""

NAME_BYTES_MAX = 200
CONTENT_TYPE_CHARS_MAX = 255
WRITE_BYTES = 256 * 1024
"""A file's bytes are handed to a thread in pieces of about this size."""


class FormFault(Exception):
    """The body is no readable form; ``message`` says why."""


class BlobWriter(Protocol):
    """Where one file goes: `runtime.blob_store.BlobWriter`. Blocking."""

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        ...

    def write(self, data: bytes) -> None: ...
    def commit(self, media_type: str) -> BlobRef: ...
    def abort(self) -> None: ...


class FormRules(msgspec.Struct, frozen=True, kw_only=True):
    """Which fields a form has, and their bounds in bytes.

    ``texts``: bound of each text field, which may also come as a file part. ``files``: names under which
    files are taken. Fields of other names are read over.
    """

    texts: Mapping[str, int]
    files: frozenset[str]
    files_max: int
    file_bytes_max: int
    files_bytes_max: int


class StagedFile(msgspec.Struct):
    """A received file that is no blob yet. ``name`` as the client sent it."""

    name: str
    content_type: str
    writer: BlobWriter
    size: int = 0


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the blob store. ``name`` is safe and distinct within its request."""

    name: str
    content_type: str
    blob: BlobRef


class Form:
    """``texts``: the last value of each text field that was sent, as bytes."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.staged: list[StagedFile] = []

    def text(self, name: str) -> str:
        """The field's value, ``""`` when absent. Raises: FormFault when it is not UTF-8."""
        try:
            return self.texts.get(name, b"").decode()
        except UnicodeDecodeError:
            raise FormFault(f"{name} is not UTF-8") from None

    async def keep(self) -> tuple[KeptFile, ...]:
        """Turn the staged files into blobs; from here on they belong to whoever holds their references."""
        return await asyncio.to_thread(self._keep)

    def _keep(self) -> tuple[KeptFile, ...]:
        names = safe_names(staged.name for staged in self.staged)
        kept: list[KeptFile] = []
        while self.staged:
            staged = self.staged[0]
            blob = staged.writer.commit(staged.content_type)
            self.staged.pop(0)
            kept.append(KeptFile(name=names[len(kept)], content_type=staged.content_type, blob=blob))
        return tuple(kept)

    async def discard(self) -> None:
        """Remove what was staged and not kept. Harmless after `keep`."""
        staged, self.staged = self.staged, []
        if staged:
            await asyncio.to_thread(lambda: [each.writer.abort() for each in staged])


async def read_form(
    content_type: str,
    chunks: AsyncIterator[bytes],
    rules: FormRules,
    open_writer: Callable[[], BlobWriter],
) -> Form:
    """The form that ``chunks`` hold. ``open_writer`` opens a file's place in the store.

    Raises: Problem unsupported_media_type, or body_too_large as soon as a bound is passed; FormFault.
    In each case nothing stays behind.
    """
    media_type, options = parse_options_header(content_type)
    form = Form()
    if media_type == URLENCODED.encode():
        await _read_urlencoded(chunks, rules, form)
        return form
    if media_type != MULTIPART.encode():
        raise Problem("unsupported_media_type")
    boundary = options.get(b"boundary")
    if not boundary:
        raise FormFault("the form's boundary is missing")
    try:
        await _MultipartReader(boundary, rules, form, open_writer).read(chunks)
    except BaseException:
        # Also when the client goes away or the server stops: what was staged must not stay.
        await asyncio.shield(form.discard())
        raise
    return form


async def _read_urlencoded(chunks: AsyncIterator[bytes], rules: FormRules, form: Form) -> None:
    # Three bytes may stand for one; names and separators come on top.
    bound = 3 * sum(rules.texts.values()) + 64 * 1024
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bound:
            raise _too_large()
    try:
        pairs = parse_qsl(bytes(body), keep_blank_values=True, max_num_fields=PARTS_MAX)
    except ValueError:
        raise FormFault(f"the form has more than {PARTS_MAX} fields") from None
    for raw_name, value in pairs:
        name = raw_name.decode("latin-1")
        if name in rules.texts:
            if len(value) > rules.texts[name]:
                raise _too_large(name)
            form.texts[name] = value


class _Part:
    """The part that is being received: a text, a file, or nothing that is wanted."""

    __slots__ = ("buffer", "content_type", "file", "filename", "headers", "name")

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.name = ""
        self.filename: str | None = None
        self.content_type = ""
        self.buffer = bytearray()
        self.file: StagedFile | None = None


class _MultipartReader:
    """Feeds the parser and carries out what it found after each network read.

    The parser calls back synchronously; writes must not. So its calls only note actions, at most one
    network read's worth, which are then performed in order.
    """

    def __init__(
        self, boundary: bytes, rules: FormRules, form: Form, open_writer: Callable[[], BlobWriter]
    ) -> None:
        self._rules = rules
        self._form = form
        self._open_writer = open_writer
        self._actions: list[Callable[[], Awaitable[None]]] = []
        self._part = _Part()
        self._current = _Part()
        self._header_name = b""
        self._header_value = b""
        self._parts = 0
        self._bytes = 0
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise FormFault("the form's boundary is not valid") from error

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in chunks:
                self._parser.write(chunk)
                actions, self._actions = self._actions, []
                for act in actions:
                    await act()
        except FormParserError as error:
            raise FormFault("the form is not valid multipart/form-data") from error
        if not self._ended:
            raise FormFault("the form ends before its closing boundary")

    # --- what the parser calls ------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise FormFault(f"the form has more than {PARTS_MAX} parts")
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._part.headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        part = self._part
        disposition = part.headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise FormFault("a part of the form has no name")
        part.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode("utf-8", "replace")
        part.content_type = _clean_content_type(part.headers.get(b"content-type", b""))
        self._actions.append(lambda: self._begin(part))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        self._actions.append(lambda: self._take(piece))

    def _on_part_end(self) -> None:
        self._actions.append(self._finish)

    def _on_end(self) -> None:
        self._ended = True

    # --- what is then done ----------------------------------------------------------------------------

    async def _begin(self, part: _Part) -> None:
        self._current = part
        rules, form = self._rules, self._form
        if part.name in rules.texts or part.filename is None or part.name not in rules.files:
            return
        if len(form.staged) >= rules.files_max:
            raise _too_large(f"more than {rules.files_max} files")
        part.file = StagedFile(part.filename, part.content_type, await asyncio.to_thread(self._open_writer))
        form.staged.append(part.file)

    async def _take(self, piece: bytes) -> None:
        part, rules = self._current, self._rules
        if part.file is not None:
            part.file.size += len(piece)
            self._bytes += len(piece)
            if part.file.size > rules.file_bytes_max:
                raise _too_large(f"a file is larger than {rules.file_bytes_max} bytes")
            if self._bytes > rules.files_bytes_max:
                raise _too_large(f"the files are larger than {rules.files_bytes_max} bytes together")
            part.buffer += piece
            if len(part.buffer) >= WRITE_BYTES:
                await self._flush(part)
        elif part.name in rules.texts:
            part.buffer += piece
            if len(part.buffer) > rules.texts[part.name]:
                raise _too_large(f"{part.name} is larger than {rules.texts[part.name]} bytes")

    async def _finish(self) -> None:
        part = self._current
        if part.file is None:
            if part.name in self._rules.texts:
                self._form.texts[part.name] = bytes(part.buffer)
        elif part.file.size == 0 and not part.file.name:
            # What a browser sends for a file field nobody filled in.
            self._form.staged.remove(part.file)
            await asyncio.to_thread(part.file.writer.abort)
        else:
            await self._flush(part)

    async def _flush(self, part: _Part) -> None:
        if part.buffer:
            data = bytes(part.buffer)
            part.buffer.clear()
            await asyncio.to_thread(cast(StagedFile, part.file).writer.write, data)


def _too_large(message: str = "") -> Problem:
    # The rest stays unread, so the connection can't be used again.
    return Problem("body_too_large", message, headers={"Connection": "close"})


def _clean_content_type(raw: bytes) -> str:
    text = raw.decode("latin-1").strip()
    if 0 < len(text) <= CONTENT_TYPE_CHARS_MAX and text.isascii() and text.isprintable():
        return text
    return "application/octet-stream"


# --- names ----------------------------------------------------------------------------------------------

_UNWANTED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of control, format and separator characters."""


def safe_names(names: Iterable[str]) -> list[str]:
    """Stored names of one request's files, in order: safe, at most 200 bytes each, all different.

    Source: ability contract 3.1, "Stored name".
    """
    taken: set[str] = set()
    safe: list[str] = []
    for number, name in enumerate(names, start=1):
        base = _safe_name(name) or f"file-{number}"
        chosen, count = base, 1
        while chosen in taken:
            count += 1
            chosen = _with_suffix(base, f"-{count}")
        taken.add(chosen)
        safe.append(chosen)
    return safe


def _safe_name(name: str) -> str:
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(c for c in last if unicodedata.category(c) not in _UNWANTED).strip()
    clean = _cut(clean, NAME_BYTES_MAX).strip()
    return "" if clean.strip(".") == "" else clean


def _with_suffix(name: str, suffix: str) -> str:
    """``a.txt`` and ``-2`` give ``a-2.txt``: programs tell a file's kind by its ending."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > 32:
        stem, dot, ending = name, "", ""
    tail = f"{suffix}{dot}{ending}"
    return _cut(stem, NAME_BYTES_MAX - len(tail.encode())) + tail


def _cut(text: str, bytes_max: int) -> str:
    return text.encode()[:bytes_max].decode("utf-8", "ignore")
