"""Functions of users that give and take tables, arrays, bytes and files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy
import pandas
import pyarrow

from actors import step_context

pa: Any = pyarrow


def table(rows: int) -> Any:
    return pa.table({"id": list(range(rows)), "square": [n * n for n in range(rows)]})


def frame(rows: int) -> pandas.DataFrame:
    return pandas.DataFrame({"id": range(rows)})


def batches(count: int, rows: int) -> Any:
    """A table that is never whole in memory."""
    schema = pa.schema([("id", pa.int64())])

    def made() -> Iterator[Any]:
        for number in range(count):
            yield pa.record_batch([pa.array(range(number * rows, (number + 1) * rows))], schema)

    return pa.RecordBatchReader.from_batches(schema, made())


def array(size: int) -> Any:
    return numpy.arange(size, dtype="float64").reshape(-1, 2)


def objects() -> Any:
    return numpy.array([{"a": 1}, None], dtype=object)


def some_bytes(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def file(folder: str, text: str) -> step_context.File:
    path = Path(folder) / "made.csv"
    path.write_text(text)
    return step_context.File(path)


def absent_file() -> step_context.File:
    return step_context.File("no-such-folder/no-such-file.csv")


def nested() -> dict[str, Any]:
    return {"tables": [table(2)], "mean": numpy.float32(0.5), "count": numpy.int64(3), "done": numpy.True_}


def nested_unknown() -> dict[str, Any]:
    return {"table": table(2), "lock": [object()]}


def describe(value: Any) -> dict[str, Any]:
    """What arrived."""
    kind = cast("type[object]", type(value))
    told: dict[str, Any] = {"type": f"{kind.__module__.partition('.')[0]}.{kind.__name__}"}
    match told["type"]:
        case "numpy.ndarray":
            value[0, 0] += 1  # an array of one's own
            return told | {"shape": list(value.shape), "sum": float(value.sum())}
        case "builtins.bytes":
            return told | {"size": len(value), "start": value[:3].hex()}
        case "actors.File":
            path = Path(value.path)
            told |= {"text": path.read_text(), "media_type": value.media_type, "path": value.path}
            return told | {"same": Path(value).samefile(path)}
        case "pyarrow.Table":
            return told | {"rows": value.num_rows, "columns": value.column_names}
        case _:
            return told | {"value": value}


def describe_first(values: dict[str, list[Any]]) -> dict[str, Any]:
    return describe(values["tables"][0])


def read_dataset(value: Any, how: str) -> Any:
    items = step_context.current().open_dataset(value)
    if how == "arrow":
        found = items.to_arrow()
        return {"rows": found.num_rows, "columns": found.column_names, "items": found.to_pylist()}
    if how == "pandas":
        return {"mean": float(items.to_pandas()["n"].mean()), "rows": len(items.to_pandas())}
    failures = [(each.index, each.error.type) for each in items.failures()]
    return {"items": list(items), "again": len(list(items)), "length": len(items), "failures": failures}


def numbers(count: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(count)]
