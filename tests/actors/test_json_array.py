"""Cutting a JSON array gives what a parser gives, wherever the stream is cut."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.json_array import NotAnArray, NotJson, checked_json, split_array

_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _cut(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@settings(max_examples=60, deadline=None)
@given(st.lists(_VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_the_elements_are_those_a_parser_finds(
    values: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    elements = [json.loads(element) for element in split_array(_cut(text, size), 10_000)]
    assert elements == values


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a JSON array"),
        (b" 3", "not a JSON array"),
        (b"[1, 2", "ends inside"),
        (b'[1, "a]', "ends inside"),
        (b"[1}", "a brace closes"),
        (b"[1] 2", "something follows"),
        (b"[" + b"x" * 200, "element 1 has more than 100 bytes"),
        (b"[0," + b"[" * 1_001, "element 2 (is nested more than 1000 deep|has more than 100 bytes)"),
    ],
)
def test_what_is_no_array_is_refused(text: bytes, message: str, size: int) -> None:
    with pytest.raises(NotAnArray, match=message):
        list(split_array(_cut(text, size), 100))


@pytest.mark.parametrize("text", [b"[1,,2]", b"[1,]", b"[,1]", b"[1 2]", b"[[1}]", b'["\xff"]', b"[nul]"])
def test_a_faulty_element_is_found_by_its_check(text: bytes) -> None:
    with pytest.raises((NotJson, NotAnArray)):
        list(map(checked_json, split_array([text], 100)))


def test_nesting_that_no_parser_follows_is_refused() -> None:
    with pytest.raises(NotJson, match="nested too deeply"):
        checked_json(b"[" * 100_000 + b"]" * 100_000)
