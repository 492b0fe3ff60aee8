"""The short ways of the client give what its general ones give."""

from __future__ import annotations

from typing import Any

import pytest
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk

from actors.agents.lean_client import text_chunk


def chunk(delta: Any, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [choice],
        **more,
    }


@pytest.mark.parametrize(
    "data",
    [
        chunk({"content": "hi"}),
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "hi"}, usage=None, system_fingerprint="f"),
    ],
)
def test_a_piece_of_text_is_built_as_by_the_general_builder(data: dict[str, Any]) -> None:
    built = text_chunk(data)
    assert built is not None
    general = construct_type(type_=ChatCompletionChunk, value=data)
    assert built == general
    assert built.model_dump() == general.model_dump()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "data",
    [
        "text",
        {},
        chunk({"content": "hi", "reasoning_content": "hm"}),
        chunk({"tool_calls": []}),
        chunk({"content": None}),
        chunk({"content": [{"type": "text", "text": "hi"}]}),
        chunk(None),
        chunk({"content": "hi"}, usage={"prompt_tokens": 1}),
        chunk({"content": "hi"}, choices=[]),
        chunk({"content": "hi"}, service_tier="x"),
        chunk({"content": "hi"}, id=None),
    ],
)
def test_anything_else_is_left_to_the_general_builder(data: Any) -> None:
    assert text_chunk(data) is None
