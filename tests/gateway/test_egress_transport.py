"""The client that only dials vetted addresses, over real sockets."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import httpx
import pytest

from actors.egress import Address, EgressGuard, EgressRefused, EgressRules
from actors.egress_transport import VettedClientFactory, vetted_client


class Receiver:
    """A server on loopback that keeps the head of each request and answers as told."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self.serve(reader, writer))
        self.tasks.add(task)
        await task

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away, as it should
        finally:
            writer.close()
            await writer.wait_closed()


def with_receiver(
    answer: bytes,
    allow: str,
    answers: Sequence[Sequence[str]],
    use: Callable[[Receiver, httpx.AsyncClient], Awaitable[None]],
) -> Receiver:
    """Run ``use`` with a receiver and a client whose successive look-ups give ``answers``."""
    receiver = Receiver(answer)
    left = [list(each) for each in answers]

    async def resolve(host: str, port: int) -> Sequence[Address]:
        return tuple(ip_address(address) for address in left.pop(0))

    async def main() -> None:
        server = await asyncio.start_server(receiver.accept, "127.0.0.1", 0)
        receiver.port = server.sockets[0].getsockname()[1]
        guard = EgressGuard(EgressRules.parse(allow), resolve)
        async with server, vetted_client(guard) as client:
            await use(receiver, client)
            await client.aclose()
            await asyncio.gather(*receiver.tasks)
        guard.close()

    asyncio.run(main())
    return receiver


OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def test_the_vetted_address_is_dialled_and_the_host_header_keeps_the_name() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        response = await client.post(f"http://hooks.example:{receiver.port}/x?y=1", content=b"{}")
        assert response.status_code == 204

    receiver = with_receiver(OK, "127.0.0.0/8", [["127.0.0.1"]], use)
    head = receiver.heads[0].decode()
    assert head.startswith("POST /x?y=1 HTTP/1.1\r\n")
    assert f"Host: hooks.example:{receiver.port}\r\n" in head


def test_a_name_that_turns_private_is_refused_when_it_is_dialled() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        with pytest.raises(EgressRefused, match="not public"):
            await client.post(f"http://hooks.example:{receiver.port}/", content=b"{}")

    receiver = with_receiver(OK, "", [["127.0.0.1"]], use)
    assert receiver.connections == 0


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        with pytest.raises(EgressRefused):
            await client.get(f"http://hooks.example:{receiver.port}/")

    receiver = with_receiver(OK, "127.0.0.1", [["127.0.0.1", "10.0.0.1"]], use)
    assert receiver.connections == 0


def test_the_next_address_is_dialled_when_one_does_not_answer() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        # Nothing listens on 127.0.0.2, whose port belongs to the receiver on 127.0.0.1 alone.
        assert (await client.get(f"http://hooks.example:{receiver.port}/")).status_code == 204

    receiver = with_receiver(OK, "127.0.0.0/8", [["127.0.0.2", "127.0.0.1"]], use)
    assert receiver.connections == 1


def test_a_redirect_is_not_followed() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"http://hooks.example:{receiver.port}/")).status_code == 302

    answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    receiver = with_receiver(answer, "127.0.0.1", [["127.0.0.1"]], use)
    assert len(receiver.heads) == 1


def test_a_followed_redirect_is_checked_like_any_url() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        with pytest.raises(EgressRefused):
            await client.get(f"http://hooks.example:{receiver.port}/", follow_redirects=True)

    answer = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    receiver = with_receiver(answer, "127.0.0.1", [["127.0.0.1"]], use)
    assert len(receiver.heads) == 1


def test_a_kept_connection_is_used_again_for_the_same_name_only() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        await client.get(f"http://hooks.example:{receiver.port}/")
        await client.get(f"http://hooks.example:{receiver.port}/")
        await client.get(f"http://other.example:{receiver.port}/")

    receiver = with_receiver(OK, "127.0.0.1", [["127.0.0.1"], ["127.0.0.1"]], use)
    assert receiver.connections == 2


def test_the_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")

    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"http://127.0.0.1:{receiver.port}/")).status_code == 204

    with_receiver(OK, "127.0.0.1", [], use)


def test_a_refused_connection_is_an_httpx_error() -> None:
    async def use(receiver: Receiver, client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.2:{receiver.port}/")

    with_receiver(OK, "127.0.0.0/8", [], use)


def test_the_factory_for_nodes_applies_its_allow_list() -> None:
    async def use(receiver: Receiver, _: httpx.AsyncClient) -> None:
        async with VettedClientFactory("127.0.0.1")() as client:
            assert (await client.get(f"http://127.0.0.1:{receiver.port}/")).status_code == 204
        async with VettedClientFactory()() as client:
            with pytest.raises(EgressRefused):
                await client.get(f"http://127.0.0.1:{receiver.port}/")

    assert with_receiver(OK, "", [], use).connections == 1
    with pytest.raises(ValueError, match="neither"):
        VettedClientFactory("http://x/")
