"""A Ray of our own that dies takes the server with it, loudly; the next start goes on from the log."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import psutil
import pytest

from tests.contracts.executions.flows import sleep
from tests.contracts.executions.wire import start, wait_for
from tests.contracts.live_server import LiveServer, flow
from tests.sandbox import Sandbox

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance, pytest.mark.ray]

PATIENT = flow("patient", sleep("nap", 0.8), sleep("more", 0.8, needs=["nap"]))


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[LiveServer]:
    server = LiveServer(sandbox.root / "lost", hosts="1")
    server.start()
    server.publish(PATIENT)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_the_server_ends_with_its_ray_and_the_next_one_finishes_the_work(
    name: str, server: LiveServer
) -> None:
    with server.client() as client:
        execution_id = start(client, "patient")
        wait_for(client, execution_id, "RUNNING")
    [victim] = [child for child in psutil.Process(server.pid).children() if child.name() == name]
    victim.kill()
    assert server.ended() == 1
    assert f"error: Ray's {name} died; start the server again" in server.errors()
    server.start()
    with server.client() as client:
        assert wait_for(client, execution_id)["status"] == "COMPLETED"
