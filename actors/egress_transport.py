"""An HTTP client that can only dial vetted addresses.

The name is looked up here, every address is checked, and one of exactly these is dialled; nothing looks the
name up again in between. Host header, SNI and the certificate check keep the name. Connections are pooled
by name, so a kept one leads to an address that was vetted when it was opened. Proxies of the environment
are not used: behind one, the address could not be vetted.

Built on httpcore's public pool, because httpx has no door for a network backend.
"""

import ssl
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

import httpcore
import httpx

from actors.egress import EgressGuard, EgressRules, parsed_destination

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
CONNECTIONS_MAX = 64
KEPT_CONNECTIONS_MAX = 16

_SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

# Most specific first: the first class that fits is the one raised.
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.TimeoutException, httpx.TimeoutException),
)


@contextmanager
def _as_httpx_errors() -> Generator[None]:
    try:
        yield
    except tuple(error for error, _ in _ERRORS) as caught:
        outer = next(outer for inner, outer in _ERRORS if isinstance(caught, inner))
        raise outer(str(caught)) from caught


class _VettingBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to vetted addresses only."""

    def __init__(self, guard: EgressGuard) -> None:
        self._guard = guard
        # httpcore declares this name differently when anyio is missing; httpx brings it.
        self._dial = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        scheme = "https" if port == 443 else "http"
        name = f"[{host}]" if ":" in host else host
        where = parsed_destination(httpx.URL(f"{scheme}://{name}:{port}"))
        failure: Exception | None = None
        for address in await self._guard.vet(where):
            try:
                return await self._dial.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[_SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("Unix sockets are out of bounds")


class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, parts: AsyncIterator[bytes], response: httpcore.Response) -> None:
        self._parts = parts
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for part in self._parts:
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class VettedTransport(httpx.AsyncBaseTransport):
    """Sends requests whose URL obeys the egress rule, to addresses that obey it.

    Raises: EgressRefused before anything is sent; otherwise httpx's transport errors.
    """

    def __init__(self, guard: EgressGuard, tls: ssl.SSLContext | None = None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=KEPT_CONNECTIONS_MAX,
            keepalive_expiry=15.0,
            network_backend=_VettingBackend(guard),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # A kept connection is not dialled again, so the text of the URL is checked for every request.
        parsed_destination(request.url)
        url = request.url
        inner = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast(httpx.AsyncByteStream, request.stream),
            extensions=request.extensions,
        )
        with _as_httpx_errors():
            response = await self._pool.handle_async_request(inner)
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseBody(cast(AsyncIterator[bytes], response.stream), response),
            extensions=cast(dict[str, Any], response.extensions),
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def vetted_client(
    guard: EgressGuard,
    *,
    timeout_seconds: float | None = TOTAL_SECONDS,
    tls: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """A client for URLs other people chose: vetted addresses, no redirects, no environment.

    ``timeout_seconds`` bounds each read and write, None nothing but the dialling; the bound on a whole
    exchange is the caller's ``asyncio.timeout``.
    """
    return httpx.AsyncClient(
        transport=VettedTransport(guard, tls),
        timeout=httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": "heliograph"},
    )


class VettedClientFactory:
    """Makes the client of a host's http_request nodes on first use: most hosts never need one.

    ``allow``: the allow-list, as ``EgressRules.parse`` reads it. Raises: ValueError for a faulty one.
    """

    def __init__(self, allow: str = "") -> None:
        self._rules = EgressRules.parse(allow)

    def __call__(self) -> httpx.AsyncClient:
        return vetted_client(EgressGuard(self._rules), timeout_seconds=None)
