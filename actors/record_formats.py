"""Files of records, read as encoded JSON items one after another: JSON Lines, CSV, Parquet, Arrow, JSON.

Each reader holds one line, one row batch or one element at a time, never the file. A fault names the file
and the line (or row) it was found at. CSV values stay text; what JSON can't hold becomes text by the rules
of msgspec: times are ISO 8601, decimals and UUIDs text, bytes base64, NaN null.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, Protocol, cast

import msgspec

from actors.json_array import NotAnArray, NotJson, checked_json, split_array
from actors.optional_libraries import pyarrow
from runtime.datasets import LINE_BYTES_MAX

ROWS_AT_A_TIME = 256
"""Rows of a Parquet file decoded at a time."""

COLUMN_BUFFER_BYTES = 256 * 1024
"""Read ahead in each column of a Parquet file; without it a whole row group is held."""

CSV_COLUMNS_MAX = 10_000

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".parquet": "parquet",
    ".arrows": "arrow",
}
MEDIA_TYPES = {
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrow",
}
SEEKS = frozenset({"parquet"})
"""Formats whose reader jumps about in the file."""


class SourceFault(ValueError):
    """The source can't be read: its name, the line where there is one, and the rule."""


class Readable(Protocol):
    """One file of records. ``open`` gives it from its beginning; seekable where the format ``SEEKS``."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def is_gzipped(self) -> bool: ...
    def open(self) -> BinaryIO: ...


def format_of(name: str, media_type: str = "") -> tuple[str, bool]:
    """A file's format by its name, else by its media type, empty when unknown; whether it is gzipped."""
    lower = name.lower()
    is_gzipped = lower.endswith(".gz")
    lower = lower.removesuffix(".gz")
    found = next((known for suffix, known in SUFFIXES.items() if lower.endswith(suffix)), "")
    if not found:
        found = MEDIA_TYPES.get(media_type.partition(";")[0].strip().lower(), "")
    return found, is_gzipped


def read_items(file: Readable, skip: int = 0) -> Iterator[bytes]:
    """The file's items from the one with index ``skip`` on, each as one line of JSON.

    Raises: SourceFault naming file and place; OSError.
    """
    with file.open() as opened:
        if file.format == "parquet":
            yield from _parquet(opened, file.name, skip)
            return
        source = _unzipped(opened) if file.is_gzipped and file.format != "arrow" else opened
        read = _SEQUENTIAL[file.format]
        try:
            yield from islice(read(source, file.name), skip, None)
        except (gzip.BadGzipFile, EOFError) as error:
            raise SourceFault(f"{file.name}: not a whole gzip file: {error}") from error


def count_items(file: Readable, *, scan: bool) -> int | None:
    """How many items the file has, where that can be told without parsing them; None where it can't.

    ``scan``: the line ends of the whole file may be counted.
    """
    if file.format == "parquet":
        with file.open() as opened:
            return cast("int", _parquet_file(opened, file.name).metadata.num_rows)
    if scan and file.format in ("jsonl", "csv", "tsv") and not file.is_gzipped:
        with file.open() as opened:
            lines = _count_lines(opened, may_quote=file.format == "jsonl")
        if lines is None or file.format == "jsonl":
            return lines
        return lines - 1 if lines > 1 else None  # without rows the header still has to be looked at
    return None


def _count_lines(file: BinaryIO, *, may_quote: bool) -> int | None:
    """Lines, where each is an item: none is empty, and no quotes hide a line end in a CSV field."""
    count = 0
    last = b"\n"
    while block := file.read(1024 * 1024):
        seam = last + block
        if b"\n\n" in seam or b"\n\r" in seam or (not may_quote and b'"' in block):
            return None
        count += block.count(b"\n")
        last = block[-1:]
    return count + (last != b"\n")


def _unzipped(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends. Raises: SourceFault for one above ``LINE_BYTES_MAX``."""
    read = partial(_buffered(file).readline, LINE_BYTES_MAX + 1)
    for number, line in enumerate(iter(read, b""), start=1):
        if len(line) > LINE_BYTES_MAX:
            raise SourceFault(f"{name}, line {number}: longer than {LINE_BYTES_MAX} bytes")
        yield number, line


def _buffered(file: BinaryIO) -> BinaryIO:
    if isinstance(file, io.RawIOBase):
        return io.BufferedReader(file, buffer_size=256 * 1024)
    return file


# --- JSON Lines and JSON ------------------------------------------------------------------------------


def _json_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    for number, line in _lines(file, name):
        item = line.rstrip(b"\r\n")
        if number == 1:
            item = item.removeprefix(b"\xef\xbb\xbf")
        if not item:
            continue
        try:
            yield checked_json(item)
        except NotJson as error:
            raise SourceFault(f"{name}, line {number}: {error}") from None


def _json_array(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Elements of the array the file is, byte for byte but for line ends: numbers keep their digits."""
    blocks = iter(partial(_buffered(file).read, 256 * 1024), b"")
    number = 0
    try:
        for element in split_array(blocks, LINE_BYTES_MAX):
            number += 1
            yield checked_json(element).replace(b"\n", b" ").replace(b"\r", b" ")
    except NotJson as error:
        raise SourceFault(f"{name}, element {number}: {error}") from None
    except NotAnArray as error:
        raise SourceFault(f"{name}: {error}") from None


# --- CSV ----------------------------------------------------------------------------------------------


def _csv(file: BinaryIO, name: str, delimiter: str = ",") -> Iterator[bytes]:
    """One object for each row, by the names of the header row; blank rows are left out."""
    csv.field_size_limit(LINE_BYTES_MAX)
    rows = csv.reader(_text_lines(file, name), delimiter=delimiter, strict=True)
    header: list[str] = []
    encode = msgspec.json.encode
    try:
        for row in rows:
            if not header:
                header = _checked_header(row, name)
            elif len(row) == len(header):
                yield encode(dict(zip(header, row, strict=True)))
            elif row:
                raise SourceFault(
                    f"{name}, line {rows.line_num}: {len(row)} fields where the header has {len(header)}"
                )
    except csv.Error as error:
        raise SourceFault(f"{name}, line {rows.line_num}: {error}") from None
    if not header:
        raise SourceFault(f"{name}: no header row with the names of the columns")


def _checked_header(row: list[str], name: str) -> list[str]:
    if not row or not all(row):
        raise SourceFault(f"{name}, line 1: the header row must name every column")
    if len(row) > CSV_COLUMNS_MAX:
        raise SourceFault(f"{name}, line 1: more than {CSV_COLUMNS_MAX} columns")
    repeated = next((column for at, column in enumerate(row) if column in row[:at]), None)
    if repeated is not None:
        raise SourceFault(f"{name}, line 1: the header row names {repeated!r} twice")
    return row


def _text_lines(file: BinaryIO, name: str) -> Iterator[str]:
    encoding = "utf-8-sig"
    for number, line in _lines(file, name):
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError as error:
            raise SourceFault(f"{name}, line {number}: not UTF-8 ({error.reason})") from None
        encoding = "utf-8"


# --- Parquet and Arrow --------------------------------------------------------------------------------


def _parquet_file(file: BinaryIO, name: str) -> Any:
    pa = pyarrow("reading Parquet")
    try:
        return pa.parquet.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise SourceFault(f"{name}: not a Parquet file ({error})") from None


def _parquet(file: BinaryIO, name: str, skip: int) -> Iterator[bytes]:
    """Rows as objects. Row groups before ``skip`` are not read."""
    pa = pyarrow("reading Parquet")
    parquet = _parquet_file(file, name)
    metadata = parquet.metadata
    first = 0
    while first < metadata.num_row_groups and skip >= metadata.row_group(first).num_rows:
        skip -= metadata.row_group(first).num_rows
        first += 1
    groups = list(range(first, metadata.num_row_groups))
    try:
        batches = parquet.iter_batches(batch_size=ROWS_AT_A_TIME, row_groups=groups, use_threads=False)
        yield from islice(rows_of(batches), skip, None)
    except pa.ArrowException as error:
        raise SourceFault(f"{name}: {error}") from None


def _arrow_stream(file: BinaryIO, name: str) -> Iterator[bytes]:
    pa = pyarrow("reading Arrow streams")
    try:
        yield from rows_of(pa.ipc.open_stream(file))
    except pa.ArrowException as error:
        raise SourceFault(f"{name}: not a whole Arrow stream ({error})") from None


def rows_of(batches: Iterable[Any]) -> Iterator[bytes]:
    """The rows of Arrow record batches, each an encoded object; few are decoded at a time."""
    encode = msgspec.json.Encoder(enc_hook=_plain).encode
    for batch in batches:
        for at in range(0, batch.num_rows, ROWS_AT_A_TIME):
            for row in batch.slice(at, ROWS_AT_A_TIME).to_pylist():
                line = encode(row)
                if len(line) > LINE_BYTES_MAX:
                    raise SourceFault(f"a row has {len(line)} bytes as JSON; at most {LINE_BYTES_MAX} fit")
                yield line


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):  # pandas' own kind, for times with nanoseconds
        return value.isoformat()
    raise SourceFault(f"a column holds a {type(value).__name__}, which JSON can't express")


_SEQUENTIAL = {
    "jsonl": _json_lines,
    "json": _json_array,
    "csv": _csv,
    "tsv": partial(_csv, delimiter="\t"),
    "arrow": _arrow_stream,
}
