"""Results as Python, Arrow and pandas through both clients: what a flow gave comes back as it was."""

from __future__ import annotations

from typing import Any

import numpy
import pyarrow
import pytest

from gateway.client import Client
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
