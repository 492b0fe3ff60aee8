"""Results as Python: values by reference are fetched and decoded, data sets become handles that stream.

What a flow gave by reference stands in its output as a marker, ``{"$blob": {...}}``, at some place. Places
are JSON Pointers; the server gives what stands at one as its own bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Never, cast

import msgspec

from gateway.client import calls
from gateway.client.procedures import ask, consume, read_lines
from gateway.client.steps import Procedure
from gateway.client.tables import Table, TableBuilder, decoded
from gateway.client.views import Snapshot
from runtime.datasets import is_dataset
from runtime.values import MARKER, value_ref


class Place(msgspec.Struct, frozen=True):
    """Where a value stands: in an execution's output, or in that of one of its nodes."""

    execution_id: str
    pointer: str = ""
    node: str | None = None


class DatasetInfo(msgspec.Struct, frozen=True):
    """``failed`` of the ``items`` have no result."""

    place: Place
    items: int
    failed: int


# --- reading an output ----------------------------------------------------------------------------------


def output_of(found: Snapshot, dataset: Callable[[DatasetInfo], Any]) -> Procedure[Never, Any]:
    """The output with every value by reference fetched, and ``dataset(info)`` where a data set stands."""
    output = found.output
    whole = Place(found.execution_id)
    if _is_left_out(output):
        output = msgspec.json.decode((yield from _fetch(whole)))
    resolved: dict[str, Any] = {}
    for pointer, value in references(output):
        place = Place(found.execution_id, pointer)
        if (marker := value_ref(value)) is not None:
            resolved[pointer] = decoded((yield from _fetch(place)), marker.media_type)
        else:
            resolved[pointer] = dataset(DatasetInfo(place, value["items"], value.get("failed", 0)))
    return substituted(output, "", resolved) if resolved else output


def _fetch(place: Place) -> Procedure[Never, bytes]:
    return (yield from ask(calls.output(place.execution_id, place.pointer, place.node)))


def _is_left_out(output: Any) -> bool:
    """Whether the server shows where the output is kept, for it is above 16 MiB."""
    if not isinstance(output, dict):
        return False
    fields = cast("dict[str, Any]", output)
    return fields.keys() == {"blob"} and value_ref({MARKER: fields["blob"]}) is not None


def references(value: Any) -> Iterator[tuple[str, Any]]:
    """JSON Pointer and value of everything that stands for something kept elsewhere, in order."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        pointer, each = waiting.pop()
        if value_ref(each) is not None or is_dataset(each):
            yield pointer, each
        else:
            waiting += reversed([(child, part) for child, _, part in _parts(pointer, each)])


def substituted(value: Any, pointer: str, resolved: Mapping[str, Any]) -> Any:
    """``value`` with what stands at the resolved places replaced."""
    if pointer in resolved:
        return resolved[pointer]
    if isinstance(value, dict):
        return {name: substituted(part, child, resolved) for child, name, part in _parts(pointer, value)}
    if isinstance(value, list):
        return [substituted(part, child, resolved) for child, _, part in _parts(pointer, value)]
    return value


def _parts(pointer: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pointer, name and value of what a JSON value holds."""
    if isinstance(value, dict):
        for name, part in cast("dict[str, Any]", value).items():
            yield f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", name, part
    elif isinstance(value, list):
        for index, part in enumerate(cast("list[Any]", value)):
            yield f"{pointer}/{index}", index, part


# --- data sets ------------------------------------------------------------------------------------------


def python_rows(place: Place) -> Procedure[Any, None]:
    """The items of a data set as Python values; None for a failed one."""

    def call_at(count: int) -> tuple[calls.Call[bytes], int]:
        return calls.output(place.execution_id, place.pointer, place.node, after=count), 0

    return read_lines(call_at, msgspec.json.Decoder().decode)


def table_of(place: Place) -> Procedure[Never, Table]:
    """A data set as one table: a row an item, columns of nulls for a failed one."""
    building = TableBuilder()
    yield from consume(python_rows(place), building.add)
    return building.table()
