"""The client of OpenAI-compatible endpoints, with two short ways where many runs at once spend their time.

A streamed answer is mostly pieces of text, and the model library takes a fifth of a millisecond for each:
here whoever waits for the text is told at once, and the library gets pieces next to each other as one. A
request is plain JSON already when the library hands it over, so it is sent as it is instead of being walked
for names to translate.
"""

from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Literal

import msgspec
from openai import AsyncOpenAI, AsyncStream, NotGiven, Omit, not_given
from openai._base_client import make_request_options
from openai._compat import cached_property
from openai._streaming import ServerSentEvent
from openai.resources.chat import AsyncChat, AsyncCompletions
from openai.types.chat import ChatCompletion, ChatCompletionChunk

TEXT: ContextVar[Callable[[str], None] | None] = ContextVar("TEXT", default=None)
"""Who is told each piece of a streamed answer's text when it arrives; set around the call."""

THINKING_BEGINS, THINKING_ENDS = "<think>", "</think>"
"""Some models' marks of what is no part of their answer, each a piece of its own."""


class LeanClient(AsyncOpenAI):
    @cached_property
    def chat(self) -> AsyncChat:
        return _LeanChat(self)


class _LeanChat(AsyncChat):
    @cached_property
    def completions(self) -> AsyncCompletions:
        return _LeanCompletions(self._client)


class _LeanCompletions(AsyncCompletions):
    async def create(  # pyright: ignore[reportIncompatibleMethodOverride] - all of it, by name
        self,
        *,
        stream: bool | None = False,
        extra_headers: Any = None,
        extra_body: Any = None,
        timeout: Any = not_given,
        **options: Any,
    ) -> Any:
        given = {name: value for name, value in options.items() if not isinstance(value, Omit | NotGiven)}
        return await self._post(
            "/chat/completions",
            body={**given, "stream": bool(stream)},
            options=make_request_options(
                extra_headers=extra_headers,
                extra_body=extra_body,
                timeout=timeout,
                security={"bearer_auth": True},
            ),
            cast_to=ChatCompletion,
            stream=bool(stream),
            stream_cls=JoinedStream,
        )


class JoinedStream(AsyncStream[ChatCompletionChunk]):
    """Tells pieces of text as they arrive (``TEXT``), and hands on those next to each other as one chunk.

    All else is handed on as it came: calls of tools, usage, ends, and a model's thinking aloud.
    """

    async def _iter_events(self) -> AsyncIterator[ServerSentEvent]:
        tell = TEXT.get()
        pieces = _Pieces()
        is_thinking = False
        async for event in super()._iter_events():
            text = None if tell is None else text_of(event.data)
            if text is not None and text.strip() in (THINKING_BEGINS, THINKING_ENDS):
                is_thinking = text.strip() == THINKING_BEGINS
                text = None
            if tell is None or text is None or is_thinking:
                if pieces.first is not None:
                    yield pieces.joined()
                yield event
            else:
                pieces.add(event, text)
                if text:
                    tell(text)
        if pieces.first is not None:
            yield pieces.joined()


class _Pieces:
    """Chunks of text that wait to be handed on as one."""

    def __init__(self) -> None:
        self.first: ServerSentEvent | None = None
        self._texts: list[str] = []

    def add(self, event: ServerSentEvent, text: str) -> None:
        self.first = self.first or event
        self._texts.append(text)

    def joined(self) -> ServerSentEvent:
        """The first of them with the text of all; none waits any more."""
        first = self.first
        assert first is not None
        if len(self._texts) > 1:
            chunk = msgspec.json.decode(first.data)
            chunk["choices"][0]["delta"]["content"] = "".join(self._texts)
            first = ServerSentEvent(event=first.event, data=msgspec.json.encode(chunk).decode())
        self.first = None
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
