"""The server with this contract's flows, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.contracts.executions.flows import ALL
from tests.contracts.live_server import LiveServer


@pytest.fixture(scope="package")
def server(live_server: LiveServer) -> LiveServer:
    live_server.publish(*ALL)
    return live_server


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened
