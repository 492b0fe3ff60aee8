"""The client of OpenAI-compatible endpoints, with three short ways where many runs at once spend their time.

A streamed answer is mostly pieces of text, each a JSON object of one shape: the client's general builder
walks the declared types of each; here they are filled in directly, for that shape alone. A request is plain
JSON already when the model library hands it over, so it is sent as it is instead of being walked for names to
translate. And a pool looks through all its connections for every request: several small ones look through
less.
"""

import itertools
from typing import Any, TypeVar, cast

import httpx2
import pydantic
from openai import AsyncOpenAI, AsyncStream, NotGiven, Omit, not_given
from openai._base_client import make_request_options
from openai._compat import cached_property
from openai.resources.chat import AsyncChat, AsyncCompletions
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta

_ResponseT = TypeVar("_ResponseT")

_ModelT = TypeVar("_ModelT", bound=pydantic.BaseModel)
_construct = cast("Any", pydantic.BaseModel.model_construct).__func__

_CHUNK_KEYS = frozenset({"id", "object", "created", "model", "choices", "system_fingerprint", "usage"})
_CHOICE_KEYS = frozenset({"index", "delta", "finish_reason", "logprobs"})
_DELTA_KEYS = frozenset({"role", "content"})


class LeanClient(AsyncOpenAI):
    @cached_property
    def chat(self) -> AsyncChat:
        return _LeanChat(self)

    def _process_response_data(
        self, *, data: object, cast_to: type[_ResponseT], response: httpx2.Response
    ) -> _ResponseT:
        if cast_to is ChatCompletionChunk:
            chunk = text_chunk(data)
            if chunk is not None:
                return cast("_ResponseT", chunk)
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)


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
            stream_cls=AsyncStream[ChatCompletionChunk],
        )


class SpreadTransport(httpx2.AsyncBaseTransport):
    """One pool of connections made of ``parts``, used in turn."""

    def __init__(self, connections_max: int, parts: int) -> None:
        each = -(-connections_max // parts)
        limits = httpx2.Limits(max_connections=each, max_keepalive_connections=each)
        trust = httpx2.create_ssl_context()  # costly, and the same for all
        self._parts = [httpx2.AsyncHTTPTransport(verify=trust, limits=limits) for _ in range(parts)]
        self._turn = itertools.cycle(self._parts)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await next(self._turn).handle_async_request(request)

    async def aclose(self) -> None:
        for part in self._parts:
            await part.aclose()


def text_chunk(data: object) -> ChatCompletionChunk | None:
    """The chunk, when it holds a piece of text and nothing else; None when it is for the general builder."""
    if not isinstance(data, dict):
        return None
    fields = cast("dict[str, Any]", data)
    choices = fields.get("choices")
    if not fields.keys() <= _CHUNK_KEYS or fields.get("usage") is not None:
        return None
    if not isinstance(choices, list) or len(cast("list[Any]", choices)) != 1:
        return None
    choice = cast("list[Any]", choices)[0]
    if not isinstance(choice, dict):
        return None
    told = cast("dict[str, Any]", choice)
    delta = told.get("delta")
    if not told.keys() <= _CHOICE_KEYS or told.get("logprobs") is not None or not isinstance(delta, dict):
        return None
    piece = cast("dict[str, Any]", delta)
    if not piece.keys() <= _DELTA_KEYS or not isinstance(piece.get("content"), str):
        return None
    if not isinstance(told.get("index"), int) or not isinstance(fields.get("id"), str):
        return None
    inner = _filled(Choice, {**told, "delta": _filled(ChoiceDelta, piece)})
    return _filled(ChatCompletionChunk, {**fields, "choices": [inner]})


def _filled(model: type[_ModelT], values: dict[str, Any]) -> _ModelT:
    """As the class is built by pydantic itself; the client's classes put their slow builder in its place."""
    return cast("_ModelT", _construct(model, **values))
