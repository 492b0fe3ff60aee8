"""A file on a web server, read from its beginning as a blocking stream through the vetted egress.

A map may take hours over a file, and no server keeps a connection that long: when it breaks, reading goes
on where it stood, if the server tells versions of the file apart (ETag or Last-Modified) and gives parts of
it. Redirects are not followed, so that what was allowed is what is read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import msgspec

from actors.record_formats import SourceFault

TRIES_MAX = 5
"""Connections that may break in a row before the file can't be read."""

RETRY_SECONDS = 0.5
READ_SECONDS_MAX = 60.0
"""Between two blocks of a file."""


class HttpHead(msgspec.Struct, frozen=True):
    """What a server says of a file: ``version`` is empty when it doesn't tell versions apart."""

    size: int | None
    version: str
    media_type: str


class HttpFile:
    """One URL. ``client`` makes a client that reaches allowed addresses only."""

    def __init__(self, url: str, client: Callable[[], httpx.AsyncClient]) -> None:
        self._url = url
        self._client = client
        self.name = str(httpx.URL(url).copy_with(query=None, fragment=None))

    def head(self) -> HttpHead:
        """Asks for the file and reads no more than the answer's head: not every server knows HEAD.

        Raises: SourceFault, EgressRefused, httpx.HTTPError.
        """

        async def ask() -> HttpHead:
            async with self._client() as client:
                response = await self._get(client, 0, "")
                await response.aclose()
                return _head(response)

        return asyncio.run(ask())

    def blocks(self, known: HttpHead) -> Iterator[bytes]:
        """The whole file in blocks. Raises: as ``head``; SourceFault when it is another version by now."""
        read = 0
        failures = 0
        with asyncio.Runner() as runner:
            client = self._client()
            try:
                while True:
                    try:
                        response = runner.run(self._get(client, read, known.version))
                        try:
                            self._check(response, read, known)
                            parts = response.aiter_raw()
                            while block := runner.run(_next(parts)):
                                read += len(block)
                                failures = 0
                                yield block
                            return
                        finally:
                            runner.run(response.aclose())
                    except httpx.TransportError as error:
                        failures += 1
                        if (read and not known.version) or failures >= TRIES_MAX:
                            raise SourceFault(
                                f"{self.name}: broke off after {read} bytes ({error})"
                            ) from error
                        runner.run(asyncio.sleep(RETRY_SECONDS * failures))
            finally:
                runner.run(client.aclose())

    async def _get(self, client: httpx.AsyncClient, start: int, version: str) -> httpx.Response:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        response = await client.send(client.build_request("GET", self._url, headers=headers), stream=True)
        if response.status_code not in (200, 206):
            await response.aclose()
            hint = ": redirects are not followed" if response.is_redirect else ""
            raise SourceFault(f"{self.name} answered {response.status_code}{hint}")
        return response

    def _check(self, response: httpx.Response, start: int, known: HttpHead) -> None:
        is_part = response.status_code == 206
        head = _head(response)
        # A server that gives no parts begins again: the same version, but not from where we stood.
        if head.version != known.version or is_part != bool(start):
            raise SourceFault(f"{self.name} changed, or can't be read in parts, while it was read")
        if is_part and not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
            raise SourceFault(f"{self.name}: the server gave another part than was asked for")


def _head(response: httpx.Response) -> HttpHead:
    headers = response.headers
    length = headers.get("content-length", "")
    etag = headers.get("etag", "")
    return HttpHead(
        size=int(length) if length.isdigit() and response.status_code == 200 else None,
        # A weak ETag doesn't promise the same bytes.
        version=etag if etag and not etag.startswith("W/") else headers.get("last-modified", ""),
        media_type=headers.get("content-type", ""),
    )


async def _next(parts: AsyncIterator[bytes]) -> bytes:
    """The next block that isn't empty; empty at the end."""
    async for part in parts:
        if part:
            return part
    return b""
