"""Servers that die on purpose."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contracts.ability.wire import RECEIVER_ADDRESS, Receiver, receiving
from tests.faults.flows import ALL
from tests.faults.server import FaultyServer
from tests.sandbox import Sandbox


@contextmanager
def local(folder: Path) -> Generator[FaultyServer]:
    """Gateway and host in one process that starts within a second or two, with the workload's flows."""
    server = FaultyServer(
        folder,
        local=True,
        callback_allow=RECEIVER_ADDRESS,
        keep_alive_seconds="0.3",
        shutdown_seconds="1",
    )
    server.start()
    server.publish(*ALL)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def local_server(sandbox: Sandbox) -> Iterator[FaultyServer]:
    with local(sandbox.root / "local") as server:
        yield server


@pytest.fixture
def own_local_server(sandbox: Sandbox) -> Iterator[FaultyServer]:
    with local(sandbox.root / "own-local") as server:
        yield server


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving(204) as opened:
        yield opened
