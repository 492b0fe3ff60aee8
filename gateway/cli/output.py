"""What commands print: JSON for scripts, tables and lines for people.

Results go to stdout, the rest to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STATUS_STYLES: Mapping[str, str] = {
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "running": "cyan",
    "waiting": "blue",
    "paused": "magenta",
}


def print_json(value: Any) -> None:
    """One JSON document: indented on a terminal, one line otherwise."""
    print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def note(text: str) -> None:
    """A line about what happens, on stderr so that stdout stays the result."""
    print(text, file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "nothing found") -> None:
    """A table on a terminal; tab-separated rows without a header in a pipe."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    if not cells:
        note(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=_STATUS_STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Name and value of each field that has one, one a line."""
    shown = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{name:<{width}}  {text}")


def print_text(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
