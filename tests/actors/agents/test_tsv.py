"""Tables as tab-separated text lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agents.tsv import as_tsv, from_tsv

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
CELLS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXTS
TABLES = st.lists(
    st.dictionaries(TEXTS.filter(bool), CELLS.filter(lambda cell: cell != float("inf")), min_size=1),
    min_size=2,
    max_size=6,
)


@given(TABLES)
def test_a_table_comes_back_as_it_was(table: list[dict[str, Any]]) -> None:
    text = as_tsv(table)
    assert text is not None
    finite = [
        {name: None if cell in (float("inf"), float("-inf")) else cell for name, cell in row.items()}
        for row in table
    ]
    assert from_tsv(text) == finite


@given(TABLES)
def test_every_row_is_one_line(table: list[dict[str, Any]]) -> None:
    text = as_tsv(table)
    assert text is not None
    lines = text.split("\n")
    assert len(lines) == len(table) + 1
    assert len({line.count("\t") for line in lines}) == 1


@pytest.mark.parametrize(
    "value",
    [None, "text", {"a": 1}, [], [{"a": 1}], [{"a": 1}, 2], [{"a": [1]}, {"a": 2}], [{}, {}], [[1], [2]]],
)
def test_what_is_no_table_stays_as_it_is(value: Any) -> None:
    assert as_tsv(value) is None
