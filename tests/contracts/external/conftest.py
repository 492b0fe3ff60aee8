"""A server whose models are the repository's own model server, and clients of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import pytest

from tests.contracts.external.flows import ALL
from tests.contracts.external.script import SCRIPT
from tests.contracts.external.wire import Api
from tests.contracts.live_server import LiveServer
from tests.model_server import ModelServer
from tests.model_server.fixture import running_model_server
from tests.sandbox import Sandbox

__all__ = ["running_model_server"]


@pytest.fixture
def models(running_model_server: ModelServer) -> ModelServer:
    """Plays this contract's script; its journal is this test's."""
    running_model_server.reset()
    running_model_server.play(*SCRIPT)
    return running_model_server


@pytest.fixture(scope="package")
def server(sandbox: Sandbox, running_model_server: ModelServer) -> Iterator[LiveServer]:
    """One for all scenarios of this contract, restarts excepted."""
    started = LiveServer(sandbox.root / "external", **settings_for(running_model_server))
    started.environment["HELIOGRAPH_MODEL_KEY"] = "sk-of-the-model-server"
    started.start()
    started.publish(*ALL)
    try:
        yield started
    finally:
        started.close()
        shutil.rmtree(started.folder)


def settings_for(model_server: ModelServer) -> dict[str, str]:
    return {
        "keep_alive_seconds": "0.3",
        "shutdown_seconds": "2",
        "model": "scripted",
        "model_url": model_server.url,
        "tool_allow": "127.0.0.0/8",
    }


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def api(client: httpx.Client, models: ModelServer) -> Api:
    """The same client, in the contract's words; its models follow the script."""
    return Api(client)


@pytest.fixture
def their_api(server: LiveServer, models: ModelServer) -> Iterator[Api]:
    """A client of another tenant."""
    with server.client(server.make_key("run", "read", tenant="external-b")) as opened:
        yield Api(opened)
