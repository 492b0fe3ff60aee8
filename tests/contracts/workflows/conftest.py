"""A server whose models are the repository's own model server, and clients of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import pytest

from tests.contracts.ability.wire import RECEIVER_ADDRESS
from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.wire import Api
from tests.model_server import ModelServer
from tests.model_server.fixture import model_server, running_model_server
from tests.sandbox import Sandbox

__all__ = ["model_server", "running_model_server"]

MODEL = "scripted"


@pytest.fixture(scope="package")
def server(sandbox: Sandbox, running_model_server: ModelServer) -> Iterator[LiveServer]:
    """One for all workflows scenarios. Its streams fall silent soon, so that a test can wait for it."""
    started = LiveServer(
        sandbox.root / "workflows",
        keep_alive_seconds="0.3",
        shutdown_seconds="2",
        model=MODEL,
        model_url=running_model_server.url,
        callback_allow=RECEIVER_ADDRESS,
        tool_allow="127.0.0.0/8",
    )
    started.environment["HELIOGRAPH_MODEL_KEY"] = "sk-of-the-model-server"
    started.start()
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(started.folder)


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def api(client: httpx.Client, model_server: ModelServer) -> Api:
    """The same client, in the contract's words; its agents' model echoes, unless the test says otherwise."""
    return Api(client)


@pytest.fixture
def their_api(server: LiveServer) -> Iterator[Api]:
    """A client of another tenant."""
    with server.client(server.make_key("run", "read", tenant="workflows-b")) as opened:
        yield Api(opened)
