"""The live feed's way from a host to a gateway: one connection, and batches one behind the other on it.

    gateway --Ray call--> where to connect, with which token --connection--> batch, batch, ...

A Ray call for each batch took 3.6 ms of CPU on both sides together, and one on a connection takes 0.6: with
two hundred agents that talk at once the calls took a quarter to a third of everything. Where Ray's own
connections are encrypted (``RAY_USE_TLS``) these are, too, and with the same certificates.

Both directions carry frames: the length in four bytes, big-endian, then MessagePack. The gateway says
``Hello`` once; then come ``FeedBatch``es, one every ``silence_seconds`` at least.
"""

import asyncio
import os
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, cast

import msgspec
import ray
import structlog

from actors import messages
from actors.messages import FeedBatch
from actors.watchers import Watchers

log = structlog.get_logger(__name__)

HELLO_SECONDS_MAX = 5.0
HELLO_BYTES_MAX = 4_096
CONNECTIONS_MAX = 1_000
"""To one host; one more is closed at once."""

LAST_NEWS_SECONDS_MAX = 1.0
"""A gateway that takes nothing reads the rest from the log."""

_LENGTH_BYTES = 4


class FeedAddress(msgspec.Struct, frozen=True):
    """``token``: shows that whoever connects may call the host."""

    host: str
    port: int
    token: str


class Hello(msgspec.Struct, frozen=True):
    token: str
    gateway_id: str
    silence_seconds: float


_decode_address = msgspec.msgpack.Decoder(FeedAddress).decode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode


class FeedServer:
    """The host's side; lives on its loop. ``is_leaving``: whether the host tells nothing new any more."""

    def __init__(self, watchers: Watchers, is_leaving: Callable[[], bool]) -> None:
        self._watchers = watchers
        self._is_leaving = is_leaving
        self._token = secrets.token_hex(16)
        self._opening: asyncio.Task[asyncio.Server] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._feeds: dict[str, asyncio.Task[None]] = {}

    def is_over(self, gateway_id: str) -> bool:
        """Whether that gateway has everything there was to tell."""
        return self._is_leaving() and not self._watchers.has_news(gateway_id)

    async def address(self) -> bytes:
        """Where gateways connect; listens from the first call on. Raises: OSError."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(
                asyncio.start_server(self._connected, _own_address(), 0, ssl=_tls(ssl.Purpose.CLIENT_AUTH))
            )
        try:
            server = await self._opening
        except OSError:
            self._opening = None  # whoever asks next tries again
            raise
        host, port = server.sockets[0].getsockname()[:2]
        return messages.encode(FeedAddress(host, port, self._token))

    async def close(self) -> None:
        """End every feed of a host that is leaving, with its last news if the gateway takes them in time."""
        if self._opening is None:
            return
        with suppress(OSError):  # it could not listen
            (await self._opening).close()
        self._watchers.wake_all()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=LAST_NEWS_SECONDS_MAX)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        gateway_id = ""
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                log.warning("a gateway was turned away", connections=CONNECTIONS_MAX)
                return
            async with asyncio.timeout(HELLO_SECONDS_MAX):
                hello = _decode_hello(await _frame(reader, HELLO_BYTES_MAX))
            if not secrets.compare_digest(hello.token.encode(), self._token.encode()):
                log.warning("somebody without the feed's token was turned away")
                return
            gateway_id = hello.gateway_id
            await self._replace(gateway_id, task)
            await self._feed(hello, writer)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            log.debug("a feed ended", gateway=gateway_id, error=str(error)[:200])
        except asyncio.CancelledError:
            # Not passed on: it is ours alone, and asyncio's own callback can't take it (Python 3.11).
            log.debug("a feed was ended", gateway=gateway_id)
            writer.transport.abort()  # it may have stopped reading: what is on its way would stay for ever
        finally:
            self._connections.discard(task)
            if self._feeds.get(gateway_id) is task:
                del self._feeds[gateway_id]
            writer.close()

    async def _replace(self, gateway_id: str, task: "asyncio.Task[None]") -> None:
        """Its former connection takes nothing more from what waits for the gateway."""
        former = self._feeds.get(gateway_id)
        self._feeds[gateway_id] = task
        if former is not None:
            former.cancel()
            await asyncio.wait((former,))

    async def _feed(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        wait_seconds = 0.0  # the first says that the host is there, and must not wait for news
        while True:
            batch = await self._watchers.poll(hello.gateway_id, wait_seconds)
            _send(writer, batch)
            await writer.drain()  # a slow gateway's news wait in its watcher, which is bounded
            if self.is_over(hello.gateway_id):
                return
            wait_seconds = hello.silence_seconds


async def batches(
    handle: Any, gateway_id: str, silence_seconds: float, grace_seconds: float
) -> AsyncGenerator[FeedBatch]:
    """The gateway's side: what the host tells, until it ends the feed or is gone.

    Raises: RayError; TimeoutError when the host is silent for ``silence_seconds`` and ``grace_seconds``;
    OSError, EOFError.
    """
    async with asyncio.timeout(silence_seconds + grace_seconds):
        address = _decode_address(await handle.feed.remote(gateway_id))
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=_tls(ssl.Purpose.SERVER_AUTH)
        )
    try:
        _send(writer, Hello(address.token, gateway_id, silence_seconds))
        while True:
            async with asyncio.timeout(silence_seconds + grace_seconds):
                frame = await _frame(reader)
            yield messages.decode_feed(frame)
    finally:
        writer.close()


def _send(writer: asyncio.StreamWriter, value: Hello | FeedBatch) -> None:
    data = messages.encode(value)
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


async def _frame(reader: asyncio.StreamReader, bytes_max: int | None = None) -> bytes:
    """Raises: EOFError when the connection ends, or the frame is too large."""
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if bytes_max is not None and size > bytes_max:
            raise EOFError(f"a frame of {size} bytes, at most {bytes_max} are taken")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        raise EOFError("the other side closed the connection") from None


def _own_address() -> str:
    """At which Ray's other processes reach this one's machine; without Ray there are none elsewhere."""
    return cast("str", cast("Any", ray).util.get_node_ip_address()) if ray.is_initialized() else "127.0.0.1"


def _tls(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """Ray's own way of encrypting, when it is on: each side shows a certificate of the same authority."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    context.check_hostname = False  # nodes have addresses and come and go; what counts is the authority
    context.verify_mode = ssl.CERT_REQUIRED
    return context
