"""Tables, large lists and data sets between the nodes of real executions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from tests.contracts.executions import wire
from tests.contracts.live_server import LiveServer, flow

_VALUES = "tests.actors.sample_values"
_SQUARES = {"kind": "select", "value": {"n": "${item.square}"}}


def _python(node_id: str, function: str, **arguments: Any) -> dict[str, Any]:
    return {"id": node_id, "kind": "python", "function": f"{_VALUES}:{function}", "with": arguments}


def _wide(node_id: str, source: str, each: dict[str, Any]) -> dict[str, Any]:
    return {"id": node_id, "kind": "map", "source": source, "chunk": {"size": 100}, "each": each}


FLOWS = (
    flow(
        "data-table",
        _python("table", "table", rows="${inputs.rows}"),
        _wide("squares", "${nodes.table}", _SQUARES),
        _python("read", "read_dataset", value="${nodes.squares}", how="pandas"),
        output={"table": "${nodes.table}", "squares": "${nodes.squares}", "read": "${nodes.read}"},
    ),
    flow(
        "data-list",
        _python("numbers", "numbers", count="${inputs.count}"),
        _wide("copies", "${nodes.numbers}", {"kind": "select", "expression": "item.n"}),
    ),
    flow("data-source", _wide("wide", "${inputs.source}", {"kind": "select", "expression": "item"})),
)


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Iterator[httpx.Client]:
    live_server.publish(*FLOWS)
    with live_server.client() as client:
        yield client


def _run(client: httpx.Client, flow_id: str, **given: Any) -> dict[str, Any]:
    return wire.wait_for(client, wire.start(client, flow_id, **given))


def _output(client: httpx.Client, execution: dict[str, Any], at: str = "") -> bytes:
    assert execution["status"] == "COMPLETED", execution
    found = client.get(f"/api/audit/executions/{execution['execution_id']}/output", params={"at": at})
    assert found.status_code == 200, found.text
    return found.content


def test_a_tables_rows_are_mapped_and_read_as_a_data_frame(client: httpx.Client) -> None:
    execution = _run(client, "data-table", rows=250)
    lines = _output(client, execution, "/squares").splitlines()
    assert [msgspec.json.decode(line)["n"] for line in lines] == [n * n for n in range(250)]
    told = msgspec.json.decode(_output(client, execution, "/read"))
    assert told == {"mean": sum(n * n for n in range(250)) / 250, "rows": 250}


def test_a_large_list_is_mapped_from_where_it_is_kept(client: httpx.Client) -> None:
    execution = _run(client, "data-list", count=5_000)  # about 50 KB of JSON
    assert _output(client, execution).splitlines() == [b"%d" % n for n in range(5_000)]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("people.jsonl", "HELIOGRAPH_FILES_ROOT"),
        ("http://127.0.0.1:8080/people.jsonl", "not public"),
        ("s3://bucket/people.jsonl", "HELIOGRAPH_SOURCES_ALLOW"),
        ("artifact://somebody-else/f1", "not a file of this execution"),
    ],
)
def test_a_source_nobody_allowed_fails_the_map(client: httpx.Client, source: str, error: str) -> None:
    execution = _run(client, "data-source", source=source)
    assert execution["status"] == "FAILED"
    assert error in execution["error_message"], execution
