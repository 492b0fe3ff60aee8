"""Servers for the contract tests: real processes over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.live_server import LiveServer
from tests.sandbox import Sandbox


@pytest.fixture(scope="package")
def live_server(sandbox: Sandbox) -> Iterator[LiveServer]:
    """One server for all contracts; its intervals are short, so that tests can wait for them."""
    server = LiveServer(
        sandbox.root / "live",
        keep_alive_seconds="0.3",
        send_timeout_seconds="1",
        shutdown_seconds="2",
        retention_seconds="86400",
        callback_allow="127.0.0.9",  # where the receivers of callbacks listen; other addresses stay refused
    )
    server.start()
    try:
        yield server
    finally:
        server.close()
        _remove(server)


@pytest.fixture
def own_server(sandbox: Sandbox) -> Iterator[LiveServer]:
    """A server of the test's own, not started yet."""
    server = LiveServer(sandbox.root / "own", shutdown_seconds="2")
    try:
        yield server
    finally:
        server.close()
        _remove(server)


def _remove(server: LiveServer) -> None:
    import shutil

    shutil.rmtree(server.folder)
