"""Tables as tab-separated text: the same rows for half the tokens of JSON.

A table is a list of objects with scalar values and, save gaps, the same keys. Anything else stays as it is.
"""

from typing import cast

import msgspec

from runtime.events import Json

_ROWS_MIN = 2
_COLUMNS_MAX = 200


def as_tsv(value: Json) -> str | None:
    """``value`` with a head line and one line a row, or None when it is no table.

    In a cell, tabs, line breaks and backslashes are escaped as in JSON. Texts stand as they are, other values
    as JSON; a text that would read as another value stands in quotes, and a gap is empty.
    """
    if not isinstance(value, list):
        return None
    rows = cast("list[Json]", value)
    if len(rows) < _ROWS_MIN:
        return None
    columns: dict[str, None] = {}
    for row in rows:
        if not isinstance(row, dict) or not row:
            return None
        cells = cast("dict[str, Json]", row)
        if any(isinstance(cell, list | dict) for cell in cells.values()):
            return None
        columns.update(dict.fromkeys(cells))
        if len(columns) > _COLUMNS_MAX:
            return None
    lines = ["\t".join(_escaped(name) for name in columns)]
    lines += [
        "\t".join(_cell(row[name]) if name in row else "" for name in columns)
        for row in cast("list[dict[str, Json]]", rows)
    ]
    return "\n".join(lines)


def from_tsv(text: str) -> list[dict[str, Json]]:
    """The rows that ``as_tsv`` wrote."""
    head, *lines = text.split("\n")
    columns = [_unescaped(name) for name in head.split("\t")]
    return [
        {name: _value(cell) for name, cell in zip(columns, line.split("\t"), strict=True) if cell}
        for line in lines
    ]


def _cell(value: Json) -> str:
    if isinstance(value, str) and not _reads_as_json(value):
        return _escaped(value)
    return _escaped(msgspec.json.encode(value).decode())


def _value(cell: str) -> Json:
    text = _unescaped(cell)
    return msgspec.json.decode(text) if _reads_as_json(text) else text


def _reads_as_json(text: str) -> bool:
    """Whether a plain text would be taken for a number, true, false, null, a quoted text or a gap."""
    if not text:
        return True
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return False
    return True


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


_ESCAPES = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def _unescaped(cell: str) -> str:
    if "\\" not in cell:
        return cell
    signs = iter(cell)
    return "".join(_ESCAPES[next(signs)] if sign == "\\" else sign for sign in signs)
