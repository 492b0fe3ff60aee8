"""The client of OpenAI-compatible endpoints, with a short way where many runs at once spend their time.

An answer comes as a stream, and most of it is pieces of text, for each of which the SDK and the model library
take a fifth of a millisecond. So the request goes out as the plain JSON it is already, whoever waits for the
text is told as it comes off the socket, and the library gets pieces next to each other as one chunk.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Protocol, Self, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import msgspec
from openai import APIConnectionError, APIError, APITimeoutError, AsyncOpenAI, NotGiven, Omit, not_given
from openai._compat import cached_property
from openai._models import construct_type
from openai._streaming import (
    SSEDecoder,
    _SSELineDecoder,  # pyright: ignore[reportPrivateUsage]
)
from openai.resources.chat import AsyncChat, AsyncCompletions
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError


class Listener(Protocol):
    """Who waits for a streamed answer's text."""

    def hear(self, text: str) -> None:
        """A piece of it arrived."""
        ...

    async def turn(self) -> None:
        """Return when the library may set to work on what arrived."""
        ...


LISTENER: ContextVar[Listener | None] = ContextVar("LISTENER", default=None)
"""Set around the call."""

THINKING_BEGINS, THINKING_ENDS = "<think>", "</think>"
"""Some models' marks of what is no part of their answer, each a piece of its own."""

CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 300.0
"""How long a provider may send nothing before the call counts as broken."""

LAST_BYTES_SECONDS = 1.0
"""For the end of a body behind its last event; then the connection is closed instead of kept."""

REFUSAL_BYTES_MAX = 64 * 1024
"""Of a refusal's body; the rest is not read."""


class LeanClient(AsyncOpenAI):
    """``session``: what sends requests to a URL; given before the first, and called in the loop."""

    session: Callable[[str], aiohttp.ClientSession]

    @cached_property
    def chat(self) -> AsyncChat:
        return _LeanChat(self)


def open_session(url: str, connections_max: int) -> aiohttp.ClientSession:
    """For requests to ``url``, through the proxy that the environment names for it; to be closed."""
    parts, proxies = urlsplit(url), getproxies()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections_max, ssl=httpx2.create_ssl_context()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        proxy=None if proxy_bypass(parts.hostname or "") else proxies.get(parts.scheme) or proxies.get("all"),
    )


class _LeanChat(AsyncChat):
    def __init__(self, client: LeanClient) -> None:
        super().__init__(client)
        self._lean = client

    @cached_property
    def completions(self) -> AsyncCompletions:
        return _LeanCompletions(self._lean)


class _LeanCompletions(AsyncCompletions):
    def __init__(self, client: LeanClient) -> None:
        super().__init__(client)
        self._lean = client

    async def create(  # pyright: ignore[reportIncompatibleMethodOverride] - all of it, by name
        self,
        *,
        stream: bool | None = False,
        extra_headers: Any = None,
        extra_body: Any = None,
        timeout: Any = not_given,
        **options: Any,
    ) -> Any:
        if not stream:
            raise NotImplementedError("every answer is streamed")
        headers: dict[str, str] = {**self._headers, **(extra_headers or {})}
        given = {name: value for name, value in options.items() if not isinstance(value, Omit | NotGiven)}
        body: dict[str, Any] = {**given, "stream": True, **(extra_body or {})}
        with _faults(self._url):
            response = await self._lean.session(self._url).post(
                self._url, data=msgspec.json.encode(body), headers=headers
            )
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise await self._refusal(response)
        return JoinedStream(self._url, response)

    @cached_property
    def _url(self) -> str:
        return str(self._lean.base_url.join("chat/completions"))

    @cached_property
    def _headers(self) -> dict[str, str]:
        client = self._lean
        known = {**client.default_headers, "Authorization": f"Bearer {client.api_key}"}
        return {name: value for name, value in known.items() if isinstance(value, str)}

    async def _refusal(self, response: aiohttp.ClientResponse) -> APIError:
        """As the SDK makes it of an answer that says no."""
        body = b""
        with _faults(self._url):
            async with response:
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) >= REFUSAL_BYTES_MAX:
                        break
        told = {
            name: value
            for name, value in response.headers.items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        }
        request = httpx2.Request("POST", self._url)
        return self._lean._make_status_error_from_response(  # pyright: ignore[reportPrivateUsage]
            httpx2.Response(response.status, headers=told, content=body, request=request)
        )


class JoinedStream:
    """A streamed answer's chunks; an asynchronous context that ends with the connection given back.

    Tells pieces of text as they arrive (``LISTENER``), and hands on those next to each other as one chunk.
    All else is handed on as it came: calls of tools, usage, ends, and a model's thinking aloud.
    """

    def __init__(self, url: str, response: aiohttp.ClientResponse) -> None:
        self._url = url
        self._response = response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Once its body was read to the end the connection is free; before, it is cut."""
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        listener = LISTENER.get()
        pieces = _Pieces()
        is_thinking = False
        async for data in self._events():
            text = None if listener is None else text_of(data)
            if text is not None and text.strip() in (THINKING_BEGINS, THINKING_ENDS):
                is_thinking = text.strip() == THINKING_BEGINS
                text = None
            if listener is None or text is None or is_thinking:
                if listener is not None and pieces.first:
                    await listener.turn()
                    yield self._chunk(pieces.joined())
                yield self._chunk(data)
            else:
                pieces.add(data, text)
                if text:
                    listener.hear(text)
        if listener is not None and pieces.first:
            await listener.turn()
            yield self._chunk(pieces.joined())

    async def _events(self) -> AsyncIterator[str]:
        """The data of each event before ``[DONE]``."""
        lines, decoder = _SSELineDecoder(), SSEDecoder()
        content = self._response.content
        with _faults(self._url):
            async for block in content.iter_any():
                for line in lines.feed(block):
                    event = decoder.decode(line.decode())
                    if event is None:
                        continue
                    if event.data.startswith("[DONE]"):
                        await self._read_out()
                        return
                    yield event.data

    async def _read_out(self) -> None:
        """A connection can be used again once its answer was read to the end; the answer is whole without."""
        try:
            async with asyncio.timeout(LAST_BYTES_SECONDS):
                async for _ in self._response.content.iter_any():
                    continue
        except (TimeoutError, aiohttp.ClientError, OSError):
            self._response.close()

    def _chunk(self, data: str) -> ChatCompletionChunk:
        """Raises: APIError that the event tells; ValueError when it is no JSON."""
        try:
            chunk = ChatCompletionChunk.model_validate_json(data)
            error: Any = chunk.model_extra and chunk.model_extra.get("error")
        except ValidationError:
            # The SDK's own way is slow, and takes what is nearly a chunk.
            value: Any = json.loads(data)
            chunk = cast("ChatCompletionChunk", construct_type(value=value, type_=ChatCompletionChunk))
            error = cast("dict[str, Any]", value).get("error") if isinstance(value, dict) else None
        if error:
            message: Any = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else None
            raise APIError(
                message if message and isinstance(message, str) else "An error occurred during streaming",
                request=httpx2.Request("POST", self._url),
                body=cast("object", error),
            )
        return chunk


@contextmanager
def _faults(url: str) -> Generator[None]:
    """The transport's faults as the SDK's."""
    try:
        yield
    except TimeoutError as fault:
        raise APITimeoutError(request=httpx2.Request("POST", url)) from fault
    except (aiohttp.ClientError, OSError) as fault:
        message = str(fault) or type(fault).__name__
        raise APIConnectionError(message=message, request=httpx2.Request("POST", url)) from fault


class _Pieces:
    """Chunks of text that wait to be handed on as one."""

    def __init__(self) -> None:
        self.first = ""
        self._texts: list[str] = []

    def add(self, data: str, text: str) -> None:
        self.first = self.first or data
        self._texts.append(text)

    def joined(self) -> str:
        """The first of them with the text of all; none waits any more."""
        first = self.first
        if len(self._texts) > 1:
            chunk = msgspec.json.decode(first)
            chunk["choices"][0]["delta"]["content"] = "".join(self._texts)
            first = msgspec.json.encode(chunk).decode()
        self.first = ""
        self._texts.clear()
        return first


class _Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: str
    role: str | None = None
    refusal: None = None


class _Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: Literal[0]
    delta: _Delta
    finish_reason: None = None
    logprobs: None = None


class _TextChunk(msgspec.Struct, frozen=True):
    """Its other fields are about the stream as a whole, the same in each chunk."""

    choices: tuple[_Choice]
    usage: None = None


_decode = msgspec.json.Decoder(_TextChunk).decode


def text_of(data: str) -> str | None:
    """The chunk's text when it holds a piece of text and nothing else; None otherwise."""
    try:
        return _decode(data).choices[0].delta.content
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
