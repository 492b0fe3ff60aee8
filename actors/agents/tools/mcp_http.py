"""The HTTP client of MCP sessions: vetted addresses only, by the same rules and the same code as ours.

The SDK speaks httpx2, the rest of the house httpx; both name requests, answers and errors alike, so this
translates between them and leaves all dialling to ``egress_transport.VettedTransport``.
"""

from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import httpx
import httpx2

from actors.egress import EgressGuard
from actors.egress_transport import CONNECT_SECONDS, VettedTransport

ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Of one answer that is not an event stream; of one event in a stream it is the SDK's bound."""

READ_SECONDS = 300.0


def mcp_client(transport: "VettedMcpTransport", headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """A client for one session; the caller closes it. ``headers`` go with every request."""
    return httpx2.AsyncClient(
        transport=transport,
        headers={"User-Agent": "heliograph", **headers},
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
    )


@contextmanager
def _as_httpx2_errors() -> Generator[None]:
    try:
        yield
    except httpx.TransportError as error:
        named: Any = getattr(httpx2, type(error).__name__, httpx2.TransportError)
        raise named(str(error) or type(error).__name__) from error


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: httpx.Response, limit: int | None) -> None:
        self._response = response
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        with _as_httpx2_errors():
            async for part in cast(httpx.AsyncByteStream, self._response.stream):
                size += len(part)
                if self._limit is not None and size > self._limit:
                    raise httpx2.ReadError(f"the answer is longer than {self._limit} bytes")
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class VettedMcpTransport(httpx2.AsyncBaseTransport):
    """Raises: EgressRefused before anything is sent; otherwise httpx2's transport errors.

    ``failure``: the latest status of 400 and above, or 0: the SDK's own errors don't tell it.
    """

    def __init__(self, guard: EgressGuard) -> None:
        self._inner = VettedTransport(guard)
        self.failure = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        inner = httpx.Request(
            method=request.method,
            url=httpx.URL(str(request.url)),
            headers=request.headers.raw,
            content=await request.aread(),
            extensions=request.extensions,
        )
        with _as_httpx2_errors():
            response = await self._inner.handle_async_request(inner)
        # 405 is how a server says that it has no stream of its own: no failure.
        if response.is_error and response.status_code != 405:
            self.failure = response.status_code
        is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        return httpx2.Response(
            status_code=response.status_code,
            headers=response.headers.raw,
            stream=_Body(response, None if is_stream else ANSWER_BYTES_MAX),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()
