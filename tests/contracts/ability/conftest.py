"""The server with this contract's abilities, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.contracts.ability.flows import ALL, LONG, MY_ABILITY
from tests.contracts.live_server import LiveServer

OTHER_TENANT = "b"


@pytest.fixture(scope="package")
def server(live_server: LiveServer) -> LiveServer:
    live_server.publish(*ALL)
    live_server.publish({**LONG, "id": "theirs"}, {**MY_ABILITY, "id": "their-ability"}, tenant=OTHER_TENANT)
    return live_server


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def their_client(server: LiveServer) -> Iterator[httpx.Client]:
    """A client of another tenant."""
    with server.client(server.make_key("run", "read", tenant=OTHER_TENANT)) as opened:
        yield opened
