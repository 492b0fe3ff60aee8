"""The feed's connection: who may have it, what it carries, and that one gateway has one at a time."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actors import feed, messages
from actors.feed import FeedAddress, FeedServer, Hello, batches
from actors.messages import Delta, FeedBatch
from actors.watchers import Watchers

SECONDS = 10.0


class Host:
    """A feed of watchers, found as by a Ray handle."""

    def __init__(self) -> None:
        self.watchers = Watchers("one")
        self.is_leaving = False
        self.server = FeedServer(self.watchers, lambda: self.is_leaving)
        self.feed = self

    def remote(self, _gateway_id: str) -> asyncio.Future[bytes]:
        return asyncio.ensure_future(self.server.address())

    async def address(self) -> FeedAddress:
        return msgspec.msgpack.decode(await self.server.address(), type=FeedAddress)

    def tell(self, text: str) -> None:
        self.watchers.delta(Delta("e", "n", "s", 0, text))

    async def connect(self, hello: Hello | bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = await self.address()
        reader, writer = await asyncio.open_connection(address.host, address.port)
        data = hello if isinstance(hello, bytes) else messages.encode(hello)
        writer.write(len(data).to_bytes(4, "big") + data)
        return reader, writer


@asynccontextmanager
async def a_host() -> AsyncGenerator[Host]:
    host = Host()
    host.watchers.watch("g", ["e"])
    try:
        yield host
    finally:
        host.is_leaving = True
        await host.server.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


async def is_turned_away(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True  # it had not read all we said


def texts(batch: FeedBatch) -> list[str]:
    return [item.text for item in batch.items if isinstance(item, Delta)]


def test_the_first_batch_comes_at_once_and_then_what_happens_or_a_sign_of_life() -> None:
    async def story() -> None:
        async with a_host() as host, aclosing(batches(host, "g", 0.05, SECONDS)) as told:
            assert await anext(told) == FeedBatch("one/1")
            host.tell("x" * 200_000)
            while not (batch := await anext(told)).items:
                continue
            assert texts(batch) == ["x" * 200_000]
            assert batch.number == 1
            assert not (await anext(told)).items

    run(story())


def test_without_the_token_or_with_anything_else_for_a_greeting_nobody_is_told_anything() -> None:
    async def story() -> None:
        async with a_host() as host:
            token = (await host.address()).token
            host.tell("secret")
            for hello in (Hello("", "g", 1.0), Hello(token[:-1] + "?", "g", 1.0), b"GET /", b"x" * 5_000):
                reader, writer = await host.connect(hello)
                assert await is_turned_away(reader)
                writer.close()
            assert host.watchers.has_news("g")

    run(story())


def test_whoever_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "HELLO_SECONDS_MAX", 0.05)

    async def story() -> None:
        async with a_host() as host:
            address = await host.address()
            reader, writer = await asyncio.open_connection(address.host, address.port)
            assert await is_turned_away(reader)
            writer.close()

    run(story())


def test_beyond_the_bound_a_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "CONNECTIONS_MAX", 1)

    async def story() -> None:
        async with a_host() as host, aclosing(batches(host, "g", SECONDS, SECONDS)) as told:
            await anext(told)
            reader, writer = await host.connect(Hello((await host.address()).token, "other", 1.0))
            assert await is_turned_away(reader)
            writer.close()
            host.tell("still told")
            assert texts(await anext(told)) == ["still told"]

    run(story())


def test_a_gateway_s_new_connection_ends_its_former_one_which_takes_nothing_more() -> None:
    async def story() -> None:
        async with (
            a_host() as host,
            aclosing(batches(host, "g", SECONDS, SECONDS)) as former,
            aclosing(batches(host, "g", SECONDS, SECONDS)) as latter,
        ):
            await anext(former)
            await anext(latter)
            with pytest.raises((EOFError, OSError)):
                await anext(former)
            host.tell("for one of them")
            assert texts(await anext(latter)) == ["for one of them"]

    run(story())


def test_a_leaving_host_ends_the_feed_behind_its_last_news() -> None:
    async def story() -> None:
        async with a_host() as host, aclosing(batches(host, "g", SECONDS, SECONDS)) as told:
            await anext(told)
            host.is_leaving = True
            host.tell("last")
            assert not host.server.is_over("g")
            assert texts(await anext(told)) == ["last"]
            assert host.server.is_over("g")
            with pytest.raises(EOFError):
                await anext(told)

    run(story())


def test_a_gateway_that_takes_nothing_does_not_hold_up_a_host_that_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "LAST_NEWS_SECONDS_MAX", 0.1)

    async def story() -> None:
        async with a_host() as host:
            _, writer = await host.connect(Hello((await host.address()).token, "g", SECONDS))
            for _ in range(40):  # more than the sockets of both sides hold
                host.tell("x" * 1_000_000)
                await asyncio.sleep(0)
            host.is_leaving = True
            async with asyncio.timeout(SECONDS):
                await host.server.close()
            writer.close()

    run(story())


def test_a_silent_host_is_a_timeout_and_one_that_is_gone_an_error() -> None:
    async def story() -> None:
        async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with a_host() as host:
            server = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
            address = FeedAddress("127.0.0.1", server.sockets[0].getsockname()[1], "")

            async def elsewhere() -> bytes:
                return messages.encode(address)

            host.server.address = elsewhere
            with pytest.raises(TimeoutError):
                await anext(batches(host, "g", 0.05, 0.05))
            server.close()
            await server.wait_closed()
            with pytest.raises(ConnectionRefusedError):
                await anext(batches(host, "g", SECONDS, SECONDS))

    run(story())


def test_a_host_that_could_not_listen_tries_again_when_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        async with a_host() as host:

            async def no_sockets(*_: object, **__: object) -> asyncio.Server:
                raise OSError("too many open files")

            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "start_server", no_sockets)
                with pytest.raises(OSError, match="too many"):
                    await host.address()
            async with aclosing(batches(host, "g", SECONDS, SECONDS)) as told:
                await anext(told)

    run(story())


# --- encrypted, as Ray's own connections --------------------------------------------------------------------


Signer = tuple[x509.Name, ec.EllipticCurvePrivateKey]


def certificate(folder: Path, name: str, authority: Signer | None) -> Signer:
    """Writes ``name``.crt and .key, signed by ``authority`` or by itself; gives its subject and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = authority or (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return subject, key


def test_where_ray_encrypts_the_feed_does_and_takes_nobody_without_a_certificate_of_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = certificate(tmp_path, "ours", None)
    certificate(tmp_path, "node", ours)
    certificate(tmp_path, "stranger", certificate(tmp_path, "theirs", None))

    def use(name: str) -> None:
        monkeypatch.setenv("RAY_USE_TLS", "1")
        monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "ours.crt"))
        monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(tmp_path / f"{name}.crt"))
        monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(tmp_path / f"{name}.key"))

    async def story() -> None:
        async with a_host() as host:
            use("node")
            async with aclosing(batches(host, "g", SECONDS, SECONDS)) as told:
                await anext(told)
                host.tell("hidden")
                assert texts(await anext(told)) == ["hidden"]
            host.tell("not for strangers")
            use("stranger")
            with pytest.raises((OSError, EOFError)):
                await anext(batches(host, "g", SECONDS, SECONDS))
            reader, writer = await host.connect(Hello((await host.address()).token, "g", 1.0))
            assert b"not for strangers" not in await reader.read()
            writer.close()

    run(story())
