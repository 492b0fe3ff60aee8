"""Pieces of text are told when they arrive and joined for the library; nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIConnectionError, APIError, APITimeoutError, RateLimitError, not_given, omit

from actors.agents import lean_client
from actors.agents.lean_client import LISTENER, LeanClient, open_session, text_of


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


class Hearer:
    """Implements `Listener`."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.turns = 0

    def hear(self, text: str) -> None:
        self.told.append(text)

    async def turn(self) -> None:
        self.turns += 1


@asynccontextmanager
async def endpoint(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncGenerator[str]:
    """A server on loopback; its base URL."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = [address[:2] for address in runner.addresses]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(url: str) -> AsyncGenerator[LeanClient]:
    async with open_session(url, 4) as session, LeanClient(base_url=url, api_key="sk-1") as client:
        client.session = lambda _: session
        yield client


async def asked(client: LeanClient) -> list[dict[str, Any]]:
    """What the library gets of an answer, as plain JSON."""
    stream: Any = await client.chat.completions.create(stream=True, model="m", messages=[])
    async with stream:
        return [each.model_dump(exclude_unset=True) async for each in stream]


def read(*chunks: Any, hearer: Hearer | None = None, block: int = 1 << 20) -> list[dict[str, Any]]:
    """What the library gets of an answer in these chunks, which comes in blocks of so many bytes."""
    lines = [b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks]
    body = b"".join([*lines, b"data: [DONE]\n\n"])

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for begins in range(0, len(body), block):
            await response.write(body[begins : begins + block])
        await response.write_eof()
        return response

    async def main() -> list[dict[str, Any]]:
        LISTENER.set(hearer)
        async with endpoint(answer) as url, client_of(url) as client:
            return await asked(client)

    return asyncio.run(main())


def text(content: str, **more: Any) -> dict[str, Any]:
    return chunk({"content": content, **more})


def test_pieces_next_to_each_other_are_told_one_by_one_and_handed_on_as_one() -> None:
    first, hearer = text("", role="assistant"), Hearer()
    handed = read(first, text("he"), text("llo"), CALL, text("!"), hearer=hearer)
    assert handed == [text("hello", role="assistant"), CALL, text("!")]
    assert (hearer.told, hearer.turns) == (["he", "llo", "!"], 2)


def test_without_anybody_to_tell_nothing_is_joined() -> None:
    assert read(text("a"), text("b")) == [text("a"), text("b")]


def test_thinking_aloud_is_no_text() -> None:
    chunks = [text("<think>"), text("hm"), text("</think>"), text("yes"), text(".")]
    hearer = Hearer()
    assert read(*chunks, hearer=hearer) == [*chunks[:3], text("yes.")]
    assert hearer.told == ["yes", "."]


@given(st.lists(st.one_of(TEXTS.map(text), st.just(CALL)), max_size=12), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_no_text_is_lost_and_no_order_changed(chunks: list[dict[str, Any]], block: int) -> None:
    hearer = Hearer()
    handed = read(*chunks, hearer=hearer, block=block)

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
    assert "".join(hearer.told) == "".join(said(chunks))


def test_what_is_nearly_a_chunk_is_handed_on_as_the_sdk_would() -> None:
    nearly: dict[str, Any] = {
        "choices": [{"index": 0, "delta": {"content": None, "tool_calls": []}}],
        "usage": None,
    }
    assert read(nearly, hearer=Hearer()) == [nearly]


def test_an_error_in_the_stream_is_the_sdks() -> None:
    with pytest.raises(APIError, match="too hot"):
        read(text("a"), {"error": {"message": "too hot", "code": 7}}, hearer=Hearer())
    with pytest.raises(APIError, match="An error occurred"):
        read(chunk({"content": "a"}, error=True), hearer=Hearer())


def test_a_request_is_what_the_library_gave_and_says_who_asks() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        got.append((dict(request.headers), await request.json()))
        return web.Response(body=b"data: [DONE]\n\n", content_type="text/event-stream")

    async def main() -> None:
        async with endpoint(answer) as url, client_of(url) as client:
            stream: Any = await client.chat.completions.create(
                stream=True,
                model="m",
                messages=[],
                temperature=omit,
                timeout=not_given,
                extra_headers={"Idempotency-Key": "k-1"},
                extra_body={"think": False},
            )
            async with stream:
                assert [each async for each in stream] == []

    got: list[tuple[dict[str, str], Any]] = []
    asyncio.run(main())
    [(headers, body)] = got
    assert body == {"model": "m", "messages": [], "stream": True, "think": False}
    assert headers["Authorization"] == "Bearer sk-1"
    assert headers["Idempotency-Key"] == "k-1"
    assert headers["Content-Type"] == "application/json"


def test_a_refusal_is_the_sdks_error_with_its_status_headers_and_message() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"error": {"message": "slow down"}}
        return web.json_response(body, status=429, headers={"retry-after": "7"})

    async def main() -> None:
        async with endpoint(answer) as url, client_of(url) as client:
            await asked(client)

    with pytest.raises(RateLimitError, match="slow down") as refused:
        asyncio.run(main())
    assert refused.value.status_code == 429
    assert refused.value.response.headers["retry-after"] == "7"


def test_a_broken_connection_is_the_sdks_error_and_no_timeout() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b"data: ")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def main(url: str) -> None:
        async with client_of(url) as client:
            await asked(client)

    async def cut() -> None:
        async with endpoint(answer) as url:
            await main(url)

    for scenario in (cut(), main("http://127.0.0.1:1/v1")):
        with pytest.raises(APIConnectionError) as broken:
            asyncio.run(scenario)
        assert not isinstance(broken.value, APITimeoutError)


def test_a_connection_that_breaks_behind_the_last_event_takes_nothing_from_the_answer() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000000"})
        await response.prepare(request)
        await response.write(b"data: " + msgspec.json.encode(text("whole")) + b"\n\ndata: [DONE]\n\n")
        assert request.transport is not None
        request.transport.close()
        return response

    async def main() -> None:
        async with endpoint(answer) as url, client_of(url) as client:
            assert await asked(client) == [text("whole")]

    asyncio.run(main())


def test_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async def main() -> None:
        async with endpoint(answer) as url, client_of(url) as client:
            await asked(client)

    monkeypatch.setattr(lean_client, "SILENCE_SECONDS", 0.1)
    with pytest.raises(APITimeoutError):
        asyncio.run(main())


def test_a_connection_is_used_again_for_the_next_answer() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: [DONE]\n\n")
        await asyncio.sleep(0.01)
        await response.write_eof()
        return response

    async def main() -> None:
        async with endpoint(answer) as url, client_of(url) as client:
            for _ in range(3):
                assert await asked(client) == []

    peers: list[Any] = []
    asyncio.run(main())
    assert len(set(peers)) == 1


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
