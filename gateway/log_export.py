"""The log as a file: one JSON object a line, each a stored event byte for byte, so its hashes still hold.

    {"position": 7, "originator_id": "...", "originator_version": 1, "topic": "...", "data": "..."}

``data`` is the stored JSON as text. Lines stand in the order of the log; an export may hold one execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec

from runtime.event_log import Recorded
from runtime.ids import Position

LINE_BYTES_MAX = 64 * 1024 * 1024
"""Longer than any stored event: large payloads are kept as blobs."""


class ExportFault(ValueError):
    """The file is no export; the message names the line."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    position: int
    originator_id: str
    originator_version: int
    topic: str
    data: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def write_export(recorded: Iterable[Recorded], file: BinaryIO) -> int:
    """Write the events; returns how many."""
    count = 0
    for one in recorded:
        line = _Line(
            one.position, one.originator_id, one.originator_version, one.topic, one.data.decode("utf-8")
        )
        file.write(_encode(line) + b"\n")
        count += 1
    return count


def read_export(file: BinaryIO) -> Iterator[Recorded]:
    """Raises: ExportFault."""
    number = 0
    while text := file.readline(LINE_BYTES_MAX):
        number += 1
        if not text.strip():
            continue
        try:
            line = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ExportFault(f"line {number} is no exported event: {error}") from None
        yield Recorded(
            Position(line.position),
            line.originator_id,
            line.originator_version,
            line.topic,
            line.data.encode("utf-8"),
        )
