"""Arrow tables and pandas frames of results. The libraries are imported when one is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from runtime.values import ARROW_STREAM, NUMPY_ARRAY

if TYPE_CHECKING:
    import pandas

BATCH_ROWS = 10_000
"""Rows that are turned into a piece of a table at a time."""

JSON = "application/json"

Table: TypeAlias = Any
"""`pyarrow.Table`; the library ships no types."""


def decoded(body: bytes, media_type: str) -> Any:
    """The value that bytes of a media type are; the bytes themselves where nothing better is known.

    Nothing is ever unpickled.
    """
    plain = media_type.partition(";")[0].strip().lower()
    if plain == ARROW_STREAM:
        return import_module("pyarrow.ipc").open_stream(body).read_all()
    if plain == NUMPY_ARRAY:
        import numpy

        return numpy.load(io.BytesIO(body), allow_pickle=False)
    if plain == JSON:
        return msgspec.json.decode(body)
    return body


class TableBuilder:
    """A table of rows that come one after the other."""

    def __init__(self) -> None:
        self._pyarrow = _pyarrow()
        self._pieces: list[Any] = []
        self._rows: list[Any] = []

    def add(self, row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._close_piece()

    def table(self) -> Table:
        self._close_piece()
        if not self._pieces:
            return self._pyarrow.table({})
        # Pieces may lack a column, or have only nulls in it, or whole numbers where others have fractions.
        return self._pyarrow.concat_tables(self._pieces, promote_options="permissive")

    def _close_piece(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        if any(isinstance(row, dict) for row in rows):
            names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in cast("Any", row))
            columns = {name: [_field(row, name) for row in rows] for name in names}
        else:
            columns = {"value": rows}
        self._pieces.append(self._pyarrow.table(columns))


def _field(row: Any, name: str) -> Any:
    return cast("dict[str, Any]", row).get(name) if isinstance(row, dict) else None


def to_arrow(value: Any) -> Table:
    """A result as a table: a table, an array, a list of rows, or an object of columns.

    Raises: TypeError for what is none of these.
    """
    arrow = _pyarrow()
    if isinstance(value, arrow.Table):
        return value
    if isinstance(value, arrow.RecordBatch):
        return arrow.Table.from_batches([value])
    if type(value).__module__.partition(".")[0] == "numpy":
        return arrow.table(_columns(value))
    if isinstance(value, list):
        building = TableBuilder()
        for row in cast("list[Any]", value):
            building.add(row)
        return building.table()
    if isinstance(value, dict) and _are_columns(cast("dict[str, Any]", value)):
        return arrow.table(cast("dict[str, Any]", value))
    raise TypeError(f"a {type(cast('object', value)).__name__} is no table; take result() and make one of it")


def _are_columns(value: dict[str, Any]) -> bool:
    lengths = {len(cast("Sequence[Any]", each)) if isinstance(each, list) else -1 for each in value.values()}
    return len(lengths) == 1 and -1 not in lengths


def _columns(value: Any) -> dict[str, Any]:
    if value.ndim <= 1:
        return {"value": value.ravel()}
    if value.ndim != 2:
        raise TypeError(f"an array of {value.ndim} dimensions is no table")
    return {str(index): value[:, index] for index in range(value.shape[1])}


def to_pandas(table: Table) -> pandas.DataFrame:
    """Raises: ModuleNotFoundError naming what to install."""
    try:
        import pandas as _  # noqa: F401 - pyarrow's own message doesn't say how to get it
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "data frames need pandas: pip install 'heliograph[pandas]'", name="pandas"
        ) from None
    return table.to_pandas()


def _pyarrow() -> Any:
    try:
        return import_module("pyarrow")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Arrow tables need pyarrow: pip install 'heliograph[parquet]'", name="pyarrow"
        ) from None
