"""One HTTP request on its way through the chassis, and what handlers read from it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Message, Receive, Scope

from gateway.context import Gateway
from gateway.envelopes import HOUSE, Envelope, Problem
from gateway.keys import Caller

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its request was complete; nobody reads an answer."""


class Call:
    """``caller`` is set once the key was checked, ``path`` once the route matched.

    ``answer_headers`` are added to whatever answer is sent (rate limits, correlation id).
    """

    __slots__ = (
        "_query",
        "answer_headers",
        "body_max",
        "caller",
        "correlation_id",
        "envelope",
        "execution_id",
        "gateway",
        "given_correlation_id",
        "headers",
        "method",
        "path",
        "receive",
        "resource",
        "scope",
        "url_path",
    )

    caller: Caller

    def __init__(self, scope: Scope, receive: Receive, gateway: Gateway) -> None:
        self.scope = scope
        self.receive = receive
        self.gateway = gateway
        self.method: str = scope["method"]
        self.url_path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.path: Mapping[str, str] = {}
        self.envelope: Envelope = HOUSE
        self.answer_headers: list[tuple[bytes, bytes]] = []
        self.correlation_id = ""
        self.given_correlation_id = ""
        self.execution_id = ""
        self.resource = ""
        self.body_max = gateway.settings.body_bytes_max
        self._query: dict[str, list[str]] | None = None

    # --- the request --------------------------------------------------------------------------------

    def header(self, name: bytes) -> str:
        """The header's value, or ``""``; ``name`` in lower case."""
        value = self.headers.get(name)
        return value.decode("latin-1").strip() if value is not None else ""

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = self.query_values(name)
        return values[0] if values else None

    def query_values(self, name: str) -> list[str]:
        if self._query is None:
            self._query = {}
            raw: bytes = self.scope.get("query_string", b"")
            for key, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
                self._query.setdefault(key, []).append(value)
        return self._query.get(name, [])

    def base_url(self) -> str:
        """What absolute URLs begin with: the setting, else the request's scheme and Host."""
        base = self.gateway.settings.public_base_url.rstrip("/")
        if base:
            return base
        host = self.header(b"host") or "{}:{}".format(*self.scope.get("server") or ("localhost", 80))
        return f"{self.scope.get('scheme', 'http')}://{host}"

    @property
    def media_type(self) -> str:
        """The body's media type in lower case, without parameters; empty when none is named."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    # --- the body -----------------------------------------------------------------------------------

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises: Problem body_too_large past ``body_max``; ClientGone."""
        size = 0
        more = True
        while more:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self.body_max:
                # The rest stays unread, so the connection can't be used again.
                raise Problem("body_too_large", headers={"Connection": "close"})
            if chunk:
                yield chunk
            more = message.get("more_body", False)

    async def body(self) -> bytes:
        """The whole body, bounded by ``body_max``."""
        message: Message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(first) > self.body_max:
                raise Problem("body_too_large")
            return first
        self.body_max -= len(first)
        return first + b"".join([chunk async for chunk in self.chunks()])

    async def json(self, kind: type[T]) -> T | None:
        """The JSON body decoded as ``kind``; None for an empty body, which needs no media type.

        Raises: Problem unsupported_media_type, invalid_input, body_too_large.
        """
        return self.decoded(await self.body(), kind)

    def decoded(self, data: bytes, kind: type[T]) -> T | None:
        """The same for a body that was read already."""
        if not data:
            return None
        media_type = self.media_type
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise Problem("unsupported_media_type")
        return decode_json(data, kind)


def decode_json(data: bytes, kind: type[T]) -> T:
    """``data`` as ``kind``. Raises: Problem invalid_input naming the field and the rule."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        rule, _, where = str(error).partition(" - at `")
        field = where.removesuffix("`").removeprefix("$").lstrip(".")
        field = field or "body"
        raise Problem("invalid_input", f"{field}: {rule}", [(field, rule)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        rule = "is not valid JSON"
        raise Problem("invalid_input", f"body: {rule}", [("body", rule)]) from None


def retry_after(seconds: float) -> int:
    """Whole seconds for Retry-After, at least 1."""
    return max(1, math.ceil(seconds))
