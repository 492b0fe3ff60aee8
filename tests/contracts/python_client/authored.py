"""Flows as users write them; in a module that the server's workers can import."""

from __future__ import annotations

from typing import Any, cast

from runtime.authoring import Handle, flow, step, wait_for_signal


@step()
def greeting(who: str) -> str:
    return f"Hello {who}"


@step()
def table(rows: int) -> Any:
    import pyarrow

    columns: Any = {"n": list(range(rows)), "text": [f"row {n}" for n in range(rows)]}
    return cast("Any", pyarrow).table(columns)


@step()
def array(rows: int) -> Any:
    import numpy

    return numpy.arange(rows, dtype="float64")


@step()
def raw(text: str) -> bytes:
    return text.encode() * 3


@step()
def pick(number: int) -> dict[str, Any]:
    if number == 7:
        raise ValueError("seven is refused")
    return {"number": number, "half": number / 2}


@flow(
    id="py-hello", inputs={"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}}}
)
def hello(inputs: Handle) -> Handle:
    return greeting(inputs["who"])


@flow(id="py-values")
def values(inputs: Handle) -> dict[str, Any]:
    rows = inputs["rows"]
    return {"table": table(rows), "nested": [array(rows), raw("ab")], "plain": rows}


@flow(id="py-table")
def one_table(inputs: Handle) -> Handle:
    return table(inputs["rows"])


@flow(id="py-pick")
def picking(inputs: Handle) -> Handle:
    return pick(inputs["number"])


@flow(id="py-approval")
def approval(inputs: Handle) -> Handle:
    asked = greeting(inputs["who"])
    return wait_for_signal("decision", needs=[asked])


FLOWS = (hello, values, one_table, picking, approval)
