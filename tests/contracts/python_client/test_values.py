"""Results as Python, Arrow and pandas through both clients: what a flow gave comes back as it was."""

from __future__ import annotations

from typing import Any

import numpy
import pyarrow
import pytest

from gateway.client import Client
from tests.contracts.live_server import LiveServer
from tests.contracts.python_client import authored


def test_large_values_come_back_as_what_the_functions_gave(client: Client) -> None:
    result = client.run(authored.values, {"rows": 5})
    assert isinstance(result["table"], pyarrow.Table)
    assert result["table"].column("text").to_pylist() == [f"row {n}" for n in range(5)]
    array, raw = result["nested"]
    assert isinstance(array, numpy.ndarray)
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert raw == b"ababab"
    assert result["plain"] == 5


def test_a_table_is_given_as_arrow_and_as_pandas(client: Client) -> None:
    execution = client.start(authored.one_table, {"rows": 3})
    assert execution.arrow().to_pydict() == {"n": [0, 1, 2], "text": ["row 0", "row 1", "row 2"]}
    frame: Any = execution.pandas()
    assert list(frame.columns) == ["n", "text"]
    assert frame["n"].sum() == 3


def test_an_output_that_is_no_table_says_so(client: Client) -> None:
    execution = client.start("py-chain", {"who": "Ada"})
    with pytest.raises(TypeError, match="a str is no table"):
        execution.arrow()


def test_a_data_set_is_read_as_a_stream(client: Client) -> None:
    data: Any = client.run("py-wide", {"items": list(range(45))})
    assert (len(data), data.failed) == (45, 0)
    assert list(data) == [{"n": n, "place": n} for n in range(45)]
    assert data.arrow().column("n").to_pylist() == list(range(45))
    assert data.pandas()["place"].sum() == sum(range(45))


def test_a_text_that_is_kept_as_a_blob_is_given_whole(client: Client) -> None:
    assert client.run("py-large") == "x" * 900_000


def test_an_output_is_read_at_a_place(python_server: LiveServer) -> None:
    with Client(python_server.url, python_server.first_key) as client, python_server.client() as http:
        execution = client.start(authored.values, {"rows": 2})
        execution.wait()
        url = f"/api/audit/executions/{execution.id}/output"
        raw = http.get(url, params={"at": "/nested/1"})
        assert (raw.content, raw.headers["content-type"]) == (b"ababab", "application/octet-stream")
        assert raw.headers["x-content-type-options"] == "nosniff"
        assert raw.headers["content-disposition"] == "attachment"
        assert http.get(url, params={"at": "/plain"}).json() == 2
        assert http.get(url, params={"node": "raw"}).content == b"ababab"
        for place in ("plain", "/nested/7", "/plain/x", "/gone"):
            assert http.get(url, params={"at": place}).status_code == 422
        assert http.get(url, params={"node": "gone"}).status_code == 409
        waiting = client.start("py-waiting")
        assert http.get(f"/api/audit/executions/{waiting.id}/output").status_code == 409
        waiting.cancel()


def test_nothing_of_another_tenant_is_given(python_server: LiveServer) -> None:
    stranger = python_server.make_key("audit", tenant="py-acme")
    with Client(python_server.url, python_server.first_key) as client:
        execution = client.start(authored.one_table, {"rows": 2})
        execution.wait()
    with python_server.client(stranger) as http:
        for path in ("output", "graph"):
            assert http.get(f"/api/audit/executions/{execution.id}/{path}").status_code == 404


def test_an_execution_shows_as_its_graph(client: Client) -> None:
    execution = client.start("py-chain", {"who": "Ada"})
    execution.wait()
    picture = execution.picture()
    assert "completed" in str(picture)
    assert str(picture).count("<rect") == 2
    assert picture.html().startswith("<div><p><b>py-chain</b>")


def test_a_picture_that_cannot_be_had_says_why(python_server: LiveServer) -> None:
    with Client(python_server.url, python_server.first_key) as client:
        shown: Any = client.execution("<gone>")
        assert shown._repr_html_() == "<p><code>&lt;gone&gt;</code>: Execution not found.</p>"
