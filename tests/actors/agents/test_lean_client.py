"""Pieces of text are told when they arrive and joined for the library; nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agents.lean_client import TEXT, JoinedStream, LeanClient, text_of


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


TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
CALL = chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "t", "arguments": "{}"}}]})


def read(*chunks: dict[str, Any], sink: bool = True) -> tuple[list[str], list[dict[str, Any]]]:
    """What was told, and what the library got."""
    told: list[str] = []

    async def body() -> AsyncIterator[bytes]:
        for each in chunks:
            yield b"data: " + msgspec.json.encode(each) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def main() -> list[dict[str, Any]]:
        if sink:
            TEXT.set(told.append)
        async with LeanClient(api_key="none") as client:
            response = httpx2.Response(
                200, content=body(), request=httpx2.Request("POST", "http://127.0.0.1/")
            )
            stream = JoinedStream(cast_to=cast("Any", dict), response=response, client=client)
            events = [event async for event in stream]
            return cast("list[dict[str, Any]]", events)

    return told, asyncio.run(main())


def text(content: str, **more: Any) -> dict[str, Any]:
    return chunk({"content": content, **more})


def test_pieces_next_to_each_other_are_told_one_by_one_and_handed_on_as_one() -> None:
    first = text("", role="assistant")
    assert read(first, text("he"), text("llo"), CALL, text("!")) == (
        ["he", "llo", "!"],
        [text("hello", role="assistant"), CALL, text("!")],
    )


def test_without_anybody_to_tell_nothing_is_joined() -> None:
    assert read(text("a"), text("b"), sink=False) == ([], [text("a"), text("b")])


def test_thinking_aloud_is_no_text() -> None:
    chunks = [text("<think>"), text("hm"), text("</think>"), text("yes"), text(".")]
    assert read(*chunks) == (["yes", "."], [*chunks[:3], text("yes.")])


@given(st.lists(st.one_of(TEXTS.map(text), st.just(CALL)), max_size=12))
def test_no_text_is_lost_and_no_order_changed(chunks: list[dict[str, Any]]) -> None:
    told, handed = read(*chunks)

    def said(given: list[dict[str, Any]]) -> list[str]:
        """The text between two calls, each."""
        parts = [""]
        for each in given:
            content: str | None = each["choices"][0]["delta"].get("content")
            if content is None:
                parts.append("")
            else:
                parts[-1] += content
        return parts

    assert said(handed) == said(chunks)
    assert "".join(told) == "".join(said(chunks))


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
        chunk({"content": "hi"}, choices=[*chunk({"content": "a"})["choices"] * 2]),
    ],
)
def test_what_is_more_than_a_piece_of_text_is_none(data: Any) -> None:
    assert text_of(msgspec.json.encode(data).decode()) is None
